"""OpenAI and every server that speaks its chat-completions protocol, through the official SDK.

From the SDK come the request and the connection: keys, retries (only before the answer begins), pool, status errors.
The answer itself is read as bytes and split and decoded here, because the SDK's parsed chunks cost many times more
than the rest of a token's path, and because the SDK reports neither a truncated stream nor one that is no stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import urllib.request
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, cast

import httpx2
import msgspec
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.sse import NotAnEventStreamError
from ws_chat.upstreams.completion import Answer, error_message
from ws_chat.upstreams.http.connection import DRAIN_TIMEOUT
from ws_chat.upstreams.http.transport import PUSHED, PushTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from ws_chat.protocol.deltas import Outcome
    from ws_chat.upstreams.base import Emit

logger = logging.getLogger("ws_chat.upstream")

CONNECT_TIMEOUT: Final = 10.0
GRACE: Final = 3.0
"""Seconds of silence after a finish_reason, for the usage and [DONE] that some servers never send."""
MAX_RETRY_AFTER: Final = 7 * 24 * 3600.0

# Foreign errors and what they are called here, first match; the SDK's timeout is one of its connection errors.
_FAULTS: Final[tuple[tuple[tuple[type[Exception], ...], str, str], ...]] = (
    (
        (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError),
        "upstream_timeout",
        "The upstream was silent for too long.",
    ),
    ((NotAnEventStreamError,), "upstream_malformed", "What the upstream sent is no event stream."),
    ((httpx2.DecodingError,), "upstream_malformed", "What the upstream sent cannot be decompressed."),
    ((httpx2.RemoteProtocolError,), "upstream_malformed", "What the upstream sent is not HTTP."),
    ((httpx2.HTTPError,), "upstream_unavailable", "The connection to the upstream was lost."),
    ((openai.APIError,), "upstream_unavailable", "The upstream cannot be reached."),
)


class OpenAIUpstream:
    """Answers from an OpenAI-compatible server.

    `timeout` is how many seconds it may be silent, before the answer's first byte and between bytes.
    """

    def __init__(
        self, *, model: str, api_key: str | None = None, base_url: str | None = None, timeout: float = 120.0
    ) -> None:
        self._model = model
        self._client = _client(api_key, base_url, timeout)
        self._mask = _masking(api_key)
        self._without_usage: set[str] = set()  # models whose servers refuse to be asked for it

    def resolve(self, model: str | None) -> str:
        """Return the model asked for, or the configured one."""
        return model or self._model

    async def generate(self, request: Mapping[str, Any], emit: Emit, outcome: Outcome) -> None:
        """Relay one streamed chat completion. Raises ChatError (every `upstream_…` code)."""
        answer = Answer(emit, outcome, self._mask)
        try:
            await self._relay(request, answer)
        except (ChatError, openai.APIError, httpx2.HTTPError, NotAnEventStreamError, TimeoutError) as error:
            if answer.finished:
                return  # what breaks after a finish_reason breaks no answer
            if isinstance(error, ChatError):
                raise
            self._log(error)
            raise self._translate(error) from None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _relay(self, request: Mapping[str, Any], answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        response = await self._open(request)
        try:
            async with asyncio.timeout(None) as grace:
                answer.on_more = lambda: grace.reschedule(loop.time() + GRACE)
                body = response.extensions.get(PUSHED)
                if body is not None and "content-encoding" not in response.headers:
                    await body.push(answer.feed)
                else:
                    async with contextlib.aclosing(response.aiter_bytes()) as reads:
                        async for read in reads:
                            if answer.feed(read):
                                await _drain(reads)
                                break
            answer.end()
        finally:
            await response.aclose()

    async def _open(self, request: Mapping[str, Any]) -> httpx2.Response:
        """Send the request, asking for usage; without asking, where the server refuses that."""
        options = request.get("stream_options", {})
        model = request["model"]
        if model in self._without_usage or not isinstance(options, dict) or "include_usage" in options:
            return await self._post(request)
        try:
            return await self._post({**request, "stream_options": {**options, "include_usage": True}})
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not _refuses_usage(error):
                raise
        response = await self._post(request)
        self._without_usage.add(model)
        return response

    async def _post(self, body: Mapping[str, Any]) -> httpx2.Response:
        # The documented way to any endpoint. `chat.completions.create` walks every message of the history first.
        response = await self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=msgspec.json.encode({**body, "stream": True}),
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        return cast("httpx2.Response", response)  # what `cast_to` asks for; the overloads do not say so

    def _log(self, error: Exception) -> None:
        """Tell the operator what the client is not told: where, and the innermost cause. Never what was said."""
        if isinstance(error, openai.APIStatusError):
            logger.warning("%s answered with status %d", self._client.base_url, error.status_code)
            return
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        logger.warning("%s: %s: %r", self._client.base_url, type(cause).__name__, self._mask(str(cause)))

    def _translate(self, error: Exception) -> ChatError:
        if isinstance(error, openai.APIStatusError):
            return self._status_error(error.response, error.body)
        if isinstance(error, httpx2.RemoteProtocolError) and "peer closed" in str(error):
            return ChatError("upstream_incomplete", "The upstream's answer was cut off.")
        code, message = next((code, message) for kinds, code, message in _FAULTS if isinstance(error, kinds))
        return ChatError(code, message)

    def _status_error(self, response: httpx2.Response, body: object) -> ChatError:
        status = response.status_code
        said = f"The upstream answered with status {status}."
        if status in (401, 403):
            return ChatError("upstream_auth", "The upstream did not accept this server's credentials.")
        if status == 429:
            retry_after = _seconds(response.headers.get("retry-after"))
            return ChatError("upstream_rate_limited", error_message(body, self._mask) or said, retry_after=retry_after)
        if 400 <= status < 500:
            return ChatError("upstream_rejected", error_message(body, self._mask) or said, status=status)
        return ChatError("upstream_unavailable", said)


async def _drain(reads: AsyncIterator[bytes]) -> None:
    """Read a stream to its end, which is next after [DONE]: only then can its connection serve another request."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            async for _ in reads:
                pass


def _client(api_key: str | None, base_url: str | None, timeout: float) -> AsyncOpenAI:
    timeouts = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None)
    # An empty OPENAI_BASE_URL counts as none, but not for the SDK, which would read it again.
    url = httpx2.URL(base_url or "https://api.openai.com/v1")
    # As httpx2 would send it, but not in the URL, which its log and ours contain.
    auth = (url.username, url.password) if url.userinfo else None
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        # Through a proxy of the environment httpx2 finds its own way. How many run is the relay's to limit.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        http_client = DefaultAsyncHttpxClient(limits=limits, timeout=timeouts, auth=auth)
    else:
        http_client = DefaultAsyncHttpxClient(transport=PushTransport(), timeout=timeouts, auth=auth)
    # The SDK insists on a key; servers that need none ignore it.
    url = url.copy_with(userinfo=b"")
    return AsyncOpenAI(api_key=api_key or "none", base_url=url, timeout=timeouts, http_client=http_client)


def _refuses_usage(error: openai.APIStatusError) -> bool:
    return "stream_options" in error.response.text or "include_usage" in error.response.text


def _masking(api_key: str | None) -> Callable[[str], str]:
    """Return a function that masks this key and whatever else looks like one of the operator's secrets."""
    patterns = [
        r"(?i:\bBearer\s+[^\s,;]+)",
        r"(?i:\b(?:sk|pk|rk|gsk|xai)-[\w*.-]{4,})",
        r"(?i:\b(?:org|proj)[-_]\w{8,})",
        r"[^\s*]*\*{3}\S*",
    ]
    if api_key and len(api_key) >= 8:  # a shorter one, like EMPTY or ollama, is a placeholder and may be a word
        patterns.insert(0, re.escape(api_key))
        patterns.append(re.escape(api_key[:4]) + r"[\w-]*(?:\.{2,}|…)\S*")  # as servers quote one: abcd...wxyz
    secrets = re.compile("|".join(patterns))
    return lambda message: secrets.sub("***", message)


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header (RFC 9110): seconds, or a date. None for what makes no sense."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds <= MAX_RETRY_AFTER else None
