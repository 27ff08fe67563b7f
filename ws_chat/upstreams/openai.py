"""OpenAI and every server that speaks its chat-completions protocol, through the official SDK.

The SDK makes the request and the connection: keys, retries (only before the answer starts), status errors. The answer
itself is read as bytes and parsed here: the SDK's parsed chunks cost many times more than the rest of a token's path, and
the SDK reports neither a truncated stream nor one that is no event stream.

An upstream is not trusted: it is asked for no compression and a compressed answer is refused, redirects are not followed (a
307 would post the conversation to another host), cookies are not kept, and what is read of an error is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import urllib.request
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, cast

import httpx2
import msgspec
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.sse import NotAnEventStreamError
from ws_chat.protocol.urls import redact_url
from ws_chat.upstreams.base import Request
from ws_chat.upstreams.completion import CompletionParser, error_message, shorten
from ws_chat.upstreams.http.body import DRAIN_TIMEOUT, Body
from ws_chat.upstreams.http.transport import PUSHED, PushTransport, replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from ws_chat.protocol.deltas import Outcome
    from ws_chat.upstreams.base import Emit
    from ws_chat.upstreams.http.body import Head

_encode: Final = msgspec.json.Encoder().encode

logger = logging.getLogger("ws_chat.upstream")

CONNECT_TIMEOUT: Final = 10.0
MAX_MODELS_BYTES: Final = 2**20
TAIL_TIMEOUT: Final = 3.0
"""Seconds to wait after a finish_reason for usage and [DONE], which some servers never send."""
MAX_RETRY_AFTER: Final = 7 * 24 * 3600.0
ERROR_LIMIT: Final = 64 * 1024
"""Bytes of an error response's body that are read."""
MAX_REMEMBERED: Final = 1000
"""Models that are remembered as those whose servers refuse `include_usage`: clients name them."""

# The first match counts: the SDK's timeout is one of its connection errors.
_TRANSLATIONS: Final[tuple[tuple[tuple[type[Exception], ...], str, str], ...]] = (
    (
        (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError),
        "upstream_timeout",
        "The upstream was silent for too long.",
    ),
    ((NotAnEventStreamError,), "upstream_malformed", "The upstream's response is not an event stream."),
    ((httpx2.RemoteProtocolError,), "upstream_malformed", "The upstream's response is not HTTP."),
    ((httpx2.HTTPError,), "upstream_unavailable", "The connection to the upstream was lost."),
    ((openai.APIError,), "upstream_unavailable", "The upstream cannot be reached."),
)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class OpenAIUpstream:
    """Answers from an OpenAI-compatible server.

    `timeout`: seconds of silence, before the answer's first byte and between bytes.
    """

    def __init__(
        self, *, model: str, api_key: str | None = None, base_url: str | None = None, timeout: float = 120.0
    ) -> None:
        self._model = model
        self._transport, self._client = _client(api_key, base_url, timeout)
        self._made_with: tuple[object, ...] = ()  # what the head of the SDK's last request depended on
        self._mask = _masking(api_key)
        self._without_usage: dict[str, None] = {}  # models whose servers refuse `include_usage`, oldest first

    def resolve(self, model: str | None) -> str:
        return model or self._model

    async def generate(self, request: Mapping[str, Any], emit: Emit, outcome: Outcome) -> None:
        """Relay one streamed chat completion. Raises ChatError (every `upstream_…` code)."""
        parser = CompletionParser(emit, outcome, self._mask)
        try:
            await self._relay(request, parser)
        except (ChatError, openai.APIError, httpx2.HTTPError, NotAnEventStreamError, TimeoutError) as error:
            if parser.finished:
                return  # the answer is complete
            if isinstance(error, ChatError):
                raise
            self._log(error)
            raise self._translate(error) from None

    async def models(self) -> list[str]:
        """Return the ids of the models that the server offers. Raises ChatError."""
        try:
            get: Any = self._client.get  # the overloads do not express `cast_to`
            options = {"max_retries": 0}
            stream = openai.AsyncStream[object]
            response = await get("/models", cast_to=httpx2.Response, options=options, stream=True, stream_cls=stream)
            body = bytearray()
            async with contextlib.aclosing(response.aiter_bytes()) as reads:
                async for read in reads:
                    body += read
                    if len(body) > MAX_MODELS_BYTES:
                        raise ChatError("upstream_malformed", "The upstream's list of models is too large.")
            return [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except (openai.APIError, httpx2.HTTPError) as error:
            raise self._translate(error) from None
        except msgspec.DecodeError:
            raise ChatError("upstream_malformed", "The upstream's list of models is none.") from None

    async def close(self) -> None:
        await self._client.close()

    async def _relay(self, request: Mapping[str, Any], parser: CompletionParser) -> None:
        """Send a request with `include_usage`, and again without it if the server refuses that; parse its answer."""
        body = request.raw if isinstance(request, Request) else request
        options = request.get("stream_options", {})
        model = request["model"]
        if model in self._without_usage or not isinstance(options, dict) or "include_usage" in options:
            await self._send({**body, "stream": True}, parser)
            return
        with_usage = {**body, "stream_options": {**options, "include_usage": True}, "stream": True}
        try:
            await self._send(with_usage, parser)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not _refuses_usage(error):
                raise
        else:
            return
        response = await self._post(_encode({**body, "stream": True}))
        if len(self._without_usage) >= MAX_REMEMBERED:
            del self._without_usage[next(iter(self._without_usage))]
        self._without_usage[model] = None
        await _read(response, parser)

    async def _send(self, request: Mapping[str, Any], parser: CompletionParser) -> None:
        """Send a request: with the head of the SDK's earlier ones, or else, and if that does not succeed, through the SDK."""
        content = _encode(request)
        client, transport = self._client, self._transport
        made_with = (client.api_key, client.base_url, client.timeout)
        if made_with != self._made_with:
            self._made_with = made_with
            if transport:
                transport.forget()
        if transport is None or transport.template is None:
            await _read(await self._post(content), parser)
            return
        body = Body(parser.feed)
        result: tuple[Head, Body] | Exception
        tail = _Tail(body, parser)
        try:
            head = await transport.post(transport.template, content, body)
            if body.pushed:
                body.check()
                parser.end()
                return
            result = head, body
        except httpx2.TransportError as error:
            if body.pushed:
                raise
            result = error
        finally:
            tail.cancel()
            if body.pushed:
                await body.aclose()
        async with replay(result):
            response = await self._post(content)
        await _read(response, parser)

    async def _post(self, content: bytes) -> httpx2.Response:
        # The SDK's documented way to call any endpoint: `chat.completions.create` walks every message of the history.
        response = await self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=content,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        return cast("httpx2.Response", response)  # because of `cast_to`, which the overloads do not express

    def _log(self, error: Exception) -> None:
        """Log what clients do not get: the address and the innermost cause. Never a message's content."""
        server = self._client.base_url  # without userinfo and query: see `_client`
        if isinstance(error, openai.APIStatusError):
            location = error.response.headers.get("location")
            hint = f" and a redirect to {shorten(redact_url(location), self._mask)}" if location else ""
            if error.status_code == 404 and not str(server).rstrip("/").endswith("/v1"):
                hint = ". Does OPENAI_BASE_URL end in /v1?"
            logger.warning("%s answered with status %d%s", server, error.status_code, hint)
            return
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        logger.warning("%s: %s: %r", server, type(cause).__name__, shorten(str(cause), self._mask))

    def _translate(self, error: Exception) -> ChatError:
        if isinstance(error, openai.APIStatusError):
            return self._status_error(error.response, error.body)
        if isinstance(error, httpx2.RemoteProtocolError) and "peer closed" in str(error):
            return ChatError("upstream_incomplete", "The upstream's answer was cut off.")
        cause = error.__cause__
        if isinstance(cause, httpx2.RemoteProtocolError) and not re.search("disconnected|closed", str(cause)):
            error = cause
        code, message = next((code, message) for kinds, code, message in _TRANSLATIONS if isinstance(error, kinds))
        return ChatError(code, message)

    def _status_error(self, response: httpx2.Response, body: object) -> ChatError:
        status = response.status_code
        fallback = f"The upstream answered with status {status}."
        if status in (401, 403):
            return ChatError("upstream_auth", "The upstream did not accept this server's credentials.")
        if status == 429:
            message = error_message(body, self._mask) or fallback
            return ChatError("upstream_rate_limited", message, retry_after=_retry_after(response.headers))
        if 400 <= status < 500:
            if status == 404:
                fallback += " Does the server's OPENAI_BASE_URL end in /v1?"
            return ChatError("upstream_rejected", error_message(body, self._mask) or fallback, status=status)
        if status < 400:
            return ChatError("upstream_malformed", f"{fallback[:-1]}: redirects are not followed.")
        return ChatError("upstream_unavailable", fallback)


class _Tail:
    """Stops a body TAIL_TIMEOUT after the finish_reason."""

    def __init__(self, body: Body, parser: CompletionParser) -> None:
        self._body = body
        self._timer: asyncio.TimerHandle | None = None
        parser.on_tail = self._start

    def _start(self) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(TAIL_TIMEOUT, self._body.stop)

    def cancel(self) -> None:
        if self._timer:
            self._timer.cancel()


async def _read(response: httpx2.Response, parser: CompletionParser) -> None:
    """Parse the body of the SDK's response, and close it."""
    body = response.extensions.get(PUSHED)
    try:
        if _is_compressed(response):
            raise ChatError("upstream_malformed", "The upstream's response is compressed, which was not asked for.")
        if body is None:
            await _pull(response, parser)
        else:
            tail = _Tail(body, parser)
            try:
                await body.push(parser.feed)
            finally:
                tail.cancel()
        parser.end()
    finally:
        await response.aclose()


async def _pull(response: httpx2.Response, parser: CompletionParser) -> None:
    """Parse the body of a response of httpx2's own transport."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as tail, contextlib.aclosing(response.aiter_bytes()) as reads:
        parser.on_tail = lambda: tail.reschedule(loop.time() + TAIL_TIMEOUT)
        async for read in reads:
            if parser.feed(read):
                await _drain(reads)
                return


async def _drain(reads: AsyncIterator[bytes]) -> None:
    """Read a stream to its end, soon after [DONE]: only then can its connection serve another request."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            async for _ in reads:
                pass


def _redact(record: logging.LogRecord) -> bool:
    """Remove the query, which may hold a key, of the URL in httpx2's line for each request."""
    if isinstance(record.args, tuple):
        record.args = tuple(redact_url(str(arg)) if isinstance(arg, httpx2.URL) else arg for arg in record.args)
    return True


def _client(api_key: str | None, base_url: str | None, timeout: float) -> tuple[PushTransport | None, AsyncOpenAI]:
    """Return the SDK's client, and its transport if requests may be sent without the SDK."""
    timeouts = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None)
    # Always passed: the SDK would use an empty OPENAI_BASE_URL as the URL.
    url = httpx2.URL(base_url or "https://api.openai.com/v1")
    # httpx2 would take it from the URL, but the URL is logged.
    auth = (url.username, url.password) if url.userinfo else None
    logging.getLogger("httpx2").addFilter(_redact)
    # httpx2 connects through a proxy. The relay limits how many requests run.
    proxied = urllib.request.getproxies().keys() & {"http", "https", "all"}
    transport = None if proxied else PushTransport()
    http_client = DefaultAsyncHttpxClient(
        transport=transport,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=timeouts,
        auth=auth,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        event_hooks={"response": [_limit_error]},
    )
    client = AsyncOpenAI(
        api_key=api_key or "none",  # the SDK requires one
        base_url=url.copy_with(userinfo=b"", query=None),
        default_query=dict(url.params),
        default_headers={"Accept-Encoding": "identity"},
        timeout=timeouts,
        http_client=http_client,
    )
    return (None if auth else transport), client  # `auth` may change from one request to the next


class _Limited(httpx2.AsyncByteStream):
    """The first ERROR_LIMIT bytes of a body."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = ERROR_LIMIT
        async with contextlib.aclosing(aiter(self._body)) as reads:  # type: ignore[type-var]  # they are generators
            async for read in reads:
                yield read[:left]
                left -= len(read)
                if left <= 0:
                    return

    async def aclose(self) -> None:
        await self._body.aclose()


async def _limit_error(response: httpx2.Response) -> None:
    """Limit what the SDK reads of an error: nothing of a compressed one, a kilobyte of which may be a gigabyte."""
    if response.is_success:
        return
    if _is_compressed(response):
        await response.aclose()
    else:
        response.stream = _Limited(cast("httpx2.AsyncByteStream", response.stream))


def _is_compressed(response: httpx2.Response) -> bool:
    return response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", "")


def _refuses_usage(error: openai.APIStatusError) -> bool:
    body = str(error.body)
    return "stream_options" in body or "include_usage" in body


def _masking(api_key: str | None) -> Callable[[str], str]:
    """Return a function that masks this key and anything that looks like a secret of the operator."""
    patterns = [
        r"(?i:\bBearer\s+[^\s,;]+)",
        r"(?i:\b(?:sk|pk|rk|gsk|xai)-[\w*.-]{4,})",
        r"(?i:\b(?:org|proj)[-_]\w{8,})",
        r"(?<![^\s*])[^\s*]*\*{3}\S*",  # from the start of a word only, else it takes quadratic time
    ]
    if api_key and len(api_key) >= 8:  # a shorter one is a placeholder, like EMPTY or ollama, and may be a word
        patterns.insert(0, re.escape(api_key))
        patterns.append(re.escape(api_key[:4]) + r"[\w-]*(?:\.{2,}|…)\S*")  # as servers quote it: abcd...wxyz
    secrets = re.compile("|".join(patterns))
    return lambda message: secrets.sub("***", message)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110), which may be a date; None for an invalid one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds <= MAX_RETRY_AFTER else None
