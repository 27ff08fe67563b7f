"""Requests with the head of the SDK's earlier ones: the same requests, retries and errors as through the SDK."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from support.clock import advance, with_clock
from support.raw import CHUNKED, Raw
from support.service import HELLO
from support.waiting import until

from ws_chat.protocol.deltas import Outcome
from ws_chat.protocol.errors import ChatError
from ws_chat.testing import DONE, chunk, sse
from ws_chat.upstreams.openai import OpenAIUpstream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("path")]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def status(number: int, body: bytes = b"", *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 %d Refused" % number, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", body])


A = chunked(sse(chunk({"content": "a"})))
ANSWER = CHUNKED + A + chunked(sse(chunk({}, "stop")), DONE) + b"0\r\n\r\n"
DELTA = b'{"content":"a"}'
MESSAGES = {"model": "m", "messages": HELLO}


@pytest.fixture(autouse=True)
def _hasty(path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)


@pytest.fixture
async def raw():
    async with Raw() as server:
        server.default = lambda: [ANSWER]
        yield server


class Counted:
    """An upstream that counts the requests that its SDK makes, two of which are needed for a template."""

    def __init__(self, raw: Raw, **options: Any) -> None:
        options = {"api_key": "sk-operator-key", "base_url": f"{raw.origin}/v1", **options}
        self.upstream = OpenAIUpstream(model="m", **options)
        self.client = self.upstream._client
        self.made = 0
        post = self.client.post

        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            return await post(*args, **kwargs)

        self.client.post = counted

    async def ask(self, **fields: Any) -> tuple[list[Any], Any]:
        """Return the deltas of an answer, and how it ended: its finish_reason, or its error."""
        deltas: list[Any] = []
        outcome = Outcome()
        try:
            await self.upstream.generate({**MESSAGES, **fields}, deltas.extend, outcome)
        except ChatError as error:
            return deltas, error.info
        return deltas, outcome.finish_reason

    async def warm(self) -> None:
        for _ in range(2):
            await self.ask()


@pytest.fixture
async def asking(raw):
    async with contextlib.AsyncExitStack() as stack:

        def build(**options: Any) -> Counted:
            counted = Counted(raw, **options)
            stack.push_async_callback(counted.upstream.close)
            return counted

        yield build


async def test_the_sdk_makes_two_heads_and_all_requests_are_the_same(raw, asking):
    asked = asking()
    for _ in range(4):
        assert await asked.ask() == ([DELTA], "stop")

    assert asked.made == 2
    assert raw.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nauthorization: Bearer sk-operator-key\r\n" in raw.requests[0]
    assert raw.requests[0].endswith(b"}")
    assert len(set(raw.requests)) == 1
    assert raw.connections == 1


FAILURES = {
    "400": ([status(400, b"bad temperature")], 1),
    "a refused field": ([status(400, b'{"error":{"message":"stream_options"}}'), status(422)], 2),
    "401": ([status(401)], 1),
    "429": ([status(429, b"slow", b"Retry-After: 0.01")] * 3, 3),
    "429 and then an answer": ([status(429)], 2),
    "429 that is not to be retried": ([status(429, b"", b"x-should-retry: false", b"Retry-After: 7")], 1),
    "500": ([status(500, b"oh")] * 3, 3),
    "503 with gzip": ([status(503, b"oh", b"Content-Encoding: gzip")] * 3, 3),
    "307": ([status(307, b"", b"Location: /elsewhere")], 1),
    "closed without an answer": ([b""] * 5, 4),
    "closed and then an answer": ([b""], 2),
    "garbage": ([b"garbage\r\n\r\n"] * 3, 3),
    "half a head": ([b"HTTP/1.1 200 OK\r\nX: "] * 3, 3),
    "200 with gzip": ([status(200, b"x", b"Content-Encoding: gzip")], 1),
    "200 without an event stream": ([status(200, b"<html>")], 1),
    "an answer that is cut": ([CHUNKED + A], 1),
    "an answer that is garbage": ([CHUNKED + A + chunked(b"data: {\n\n")], 1),
    "an answer with an error": ([CHUNKED + A + chunked(sse({"error": "oh"}))], 1),
    "an answer without an end": ([CHUNKED + A + chunked(sse(chunk({}, "stop")))], 1),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_that_of_the_sdk(name, raw, asking):
    replies, count = FAILURES[name]
    through_template, through_sdk = asking(), asking()
    await through_template.warm()
    through_sdk.upstream._transport = None
    results = []
    sent = []
    for asked in (through_template, through_sdk):
        if asked is through_sdk:
            await asked.ask()  # so that both have an idle connection
        raw.requests.clear()
        raw.scripts = [[reply, b""] for reply in replies]
        results.append(await asked.ask())
        sent.append(list(raw.requests))

    assert results[0] == results[1]
    assert sent[0] == sent[1]
    assert len(sent[0]) == count


async def test_a_server_that_cannot_be_reached_is_tried_as_often_as_by_the_sdk(raw, asking, monkeypatch):
    asked = asking()
    await asked.warm()
    await raw.stop()
    raw._server.close()
    await until(lambda: not asked.upstream._transport._open, "the idle connection to be lost")
    connect = asked.upstream._transport._connect
    tried = []

    async def counted(*args: Any) -> Any:
        tried.append(args)
        return await connect(*args)

    monkeypatch.setattr(asked.upstream._transport, "_connect", counted)
    deltas, error = await asked.ask()

    assert (deltas, error.code) == ([], "upstream_unavailable")
    assert len(tried) == 3


@with_clock
async def test_silence_is_not_retried(raw, asking):
    asked = asking(timeout=20)
    await asked.warm()
    raw.default = lambda: [b"wait"]
    silent = asyncio.create_task(asked.ask())
    await until(lambda: len(raw.requests) == 3, "the request")
    advance(20)

    assert (await silent)[1].code == "upstream_timeout"
    assert len(raw.requests) == 3


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"api_key": "sk-another"}, b"authorization: Bearer sk-another\r\n"),
        ({"base_url": "/v2"}, b"POST /v2/chat/completions "),
        ({"timeout": 7.0}, b"x-stainless-read-timeout: 7.0\r\n"),
    ],
)
async def test_what_changes_makes_a_new_head(change, changed, raw, asking):
    asked = asking()
    await asked.warm()
    for name, value in change.items():
        setattr(asked.client, name, raw.origin + value if name == "base_url" else value)
    for _ in range(3):
        await asked.ask()

    assert [changed in request for request in raw.requests] == [False, False, True, True, True]
    assert asked.made == 4


async def test_a_head_that_changes_is_no_template(raw, asking):
    asked = asking()
    asked.client._idempotency_header = "Idempotency-Key"  # another in each request
    for _ in range(4):
        await asked.ask()

    assert asked.made == 4
    assert len(set(raw.requests)) == 4


async def test_a_retry_is_no_template(raw, asking):
    asked = asking()
    raw.scripts = [[status(500)], [ANSWER]]
    for _ in range(3):
        await asked.ask()

    assert [b"retry-count: 1" in request for request in raw.requests] == [False, True, False, False]
    assert asked.made == 2


async def test_a_proxy_and_a_password_leave_all_to_the_sdk(raw, asking, monkeypatch):
    asked = asking(base_url=f"{raw.origin}/v1".replace("://", "://alice:secret@"))
    for _ in range(3):
        await asked.ask()
    assert asked.made == 3

    monkeypatch.setenv("http_proxy", raw.origin)
    asked = asking(base_url="http://example.invalid/v1")
    for _ in range(3):
        await asked.ask()
    assert asked.made == 3
    assert raw.requests[-1].startswith(b"POST http://example.invalid/v1/chat/completions ")


async def test_a_cancelled_request_closes_its_connection(raw, asking):
    asked = asking()
    await asked.warm()
    for script in ([b"wait"], [CHUNKED + A, b"wait"]):
        raw.scripts = [script]
        before = len(raw.requests)
        running = asyncio.create_task(asked.ask())
        await until(lambda: len(raw.requests) == before + 1, "the request")  # noqa: B023
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: not asked.upstream._transport._open, "the connection to be closed")
        assert len(raw.requests) == before + 1


async def test_a_result_that_the_sdk_does_not_ask_for_is_closed(raw, asking):
    asked = asking()
    await asked.warm()

    async def fail(*_: Any, **__: Any) -> None:
        raise LookupError

    asked.client.post = fail
    raw.default = lambda: [status(400)[:-4] + b"9\r\n\r\n", b"wait"]
    with pytest.raises(LookupError):
        await asked.upstream.generate(MESSAGES, len, Outcome())
    await until(lambda: not asked.upstream._transport._open, "the connection to be closed")


async def test_connections_are_used_again_at_once_by_many(raw, asking):
    """The next request may be sent on a connection before the task of the one before it has run again."""
    asked = asking()
    await asked.warm()

    async def ask_many() -> None:
        for _ in range(20):
            assert await asked.ask() == ([DELTA], "stop")

    await asyncio.gather(*(ask_many() for _ in range(10)))
    assert asked.made == 2
    assert raw.connections <= 10
