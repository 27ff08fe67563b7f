"""Upstreams that attack: what they send is bounded, and they get nothing but the request."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.memory import bounded_memory
from support.raw import CHUNKED, Raw
from support.service import HELLO, both_paths

from ws_chat.protocol.deltas import Outcome
from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.sse import MAX_EVENT_BYTES
from ws_chat.testing import DONE, chunk, sse, text
from ws_chat.upstreams import openai as openai_module
from ws_chat.upstreams.completion import MESSAGE_LIMIT, NAME_LIMIT, USAGE_LIMIT, VALUES_LIMIT, CompletionParser
from ws_chat.upstreams.openai import OpenAIUpstream

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.anyio, both_paths]

CLOSED = b"Connection: close\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
MEGABYTES = 1_000_000


@pytest.fixture(autouse=True)
def _hasty(path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False)


@pytest.fixture
async def raw():
    async with Raw() as server:
        yield server


async def answer(raw: Raw, *, base: str = "", upstream: OpenAIUpstream | None = None) -> tuple[list[Any], Outcome]:
    """Return the deltas and the outcome of one request."""
    used = upstream or OpenAIUpstream(model="m", api_key="sk-operator-key", base_url=base or f"{raw.origin}/v1")
    deltas: list[Any] = []
    outcome = Outcome()
    try:
        await used.generate({"model": "m", "messages": HELLO}, deltas.extend, outcome)
    finally:
        if not upstream:
            await used.close()
    return deltas, outcome


async def code(raw: Raw) -> str:
    with pytest.raises(ChatError) as caught:
        await answer(raw)
    return caught.value.info.code


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def body(*events: bytes) -> Iterable[bytes]:
    """Return a response of these events, which may be an endless iterator, and of [DONE]."""
    return itertools.chain([EVENTS + CLOSED], events, [DONE, b""])


FINISH = sse(chunk({}, "stop"))


@pytest.mark.parametrize(
    "endless",
    [
        [b"HTTP/1.1 200 OK\r\nX-", b"x" * 50_000],
        [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 8000],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 1000],
        [EVENTS + CLOSED, b"data: " + b"x" * 100_000],
        [EVENTS + CLOSED, b": " + b"x" * 100_000],
        [EVENTS + CLOSED, b"data\n" * 10_000],
    ],
    ids=["header", "headers", "interim responses", "event", "comment", "lines"],
)
async def test_what_has_no_end_is_malformed(endless, raw, path):
    if path == "fallback" and b"103" in endless[1]:
        pytest.skip("httpx2 does not limit interim responses")
    raw.default = lambda: itertools.chain([endless[0]], itertools.repeat(endless[1]))

    with bounded_memory(5 * MAX_EVENT_BYTES):
        assert await code(raw) == "upstream_malformed"


async def test_an_error_without_end_is_read_up_to_a_limit(raw):
    head = b"HTTP/1.1 400 No\r\nContent-Type: text/plain\r\n" + CLOSED
    raw.default = lambda: itertools.chain([head], itertools.repeat(b"no " * 10_000))

    with bounded_memory(4 * MEGABYTES):
        assert await code(raw) == "upstream_rejected"


@pytest.mark.parametrize("status", [200, 400, 429, 503])
async def test_a_compressed_response_is_not_decompressed(status, raw):
    bomb = gzip.compress(b" " * 40 * MEGABYTES, 1)
    head = b"HTTP/1.1 %d Bomb\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n" % (status, len(bomb))
    raw.default = lambda: [head + CLOSED, bomb, b""]

    with bounded_memory(2 * MEGABYTES):
        found = await code(raw)
    assert (
        found
        == {
            200: "upstream_malformed",
            400: "upstream_rejected",
            429: "upstream_rate_limited",
            503: "upstream_unavailable",
        }[status]
    )
    assert b"accept-encoding: identity\r\n" in raw.requests[0].lower()


@pytest.mark.parametrize("field", ["delta", "usage", "unknown"])
async def test_an_event_of_many_values_is_malformed(field, raw):
    values = [[]] * VALUES_LIMIT
    fields = {"delta": {"choices": [{"delta": {"x": values}}]}, "usage": {"usage": {"x": values}}}
    raw.default = lambda: body(event(**fields.get(field, {"x": values})))

    with bounded_memory(10 * MEGABYTES):
        assert await code(raw) == "upstream_malformed"


async def test_a_large_usage_breaks_no_answer_and_is_not_kept(raw):
    usage = event(choices=[], usage={"x": "y" * USAGE_LIMIT})
    raw.default = lambda: body(*text("a", usage=False)[:-1], usage)
    deltas, outcome = await answer(raw)
    assert (deltas, outcome.finish_reason, outcome.usage) == ([b'{"content":"a"}'], "stop", None)

    raw.default = lambda: body(usage, FINISH)
    assert await code(raw) == "upstream_malformed"


async def test_the_names_of_an_upstream_are_cut(raw):
    name = "m" * MEGABYTES
    raw.default = lambda: body(event(model=name, choices=[{"delta": {"content": "a"}, "finish_reason": name}]))

    deltas, outcome = await answer(raw)
    assert deltas == [b'{"content":"a"}']
    assert outcome.model == outcome.finish_reason == "m" * NAME_LIMIT


async def test_what_is_logged_is_bounded(raw, caplog):
    raw.default = lambda: [b"HTTP/1.1 200 OK\r\nX \x00:" + b"y " * 20_000 + b"\r\n\r\n"]
    assert await code(raw) == "upstream_malformed"
    raw.default = lambda: [b"HTTP/1.1 400 No\r\nLocation: /" + b"y" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n"]
    assert await code(raw) == "upstream_rejected"

    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2
    assert max(map(len, lines)) < MESSAGE_LIMIT + 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status, raw, caplog):
    async with Raw() as other:
        location = f"{other.origin}/v1/chat/completions?secret=1".encode()
        raw.default = lambda: [b"HTTP/1.1 %d Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, location)]

        assert await code(raw) == "upstream_malformed"
        assert other.connections == 0
    assert len(raw.requests) == 1
    assert f"a redirect to {other_origin(location)}" in caplog.text
    assert "secret" not in caplog.text


def other_origin(location: bytes) -> str:
    return location.partition(b"?")[0].decode()


async def test_cookies_are_not_kept(raw):
    upstream = OpenAIUpstream(model="m", base_url=f"{raw.origin}/v1")
    answered = b"".join([sse(chunk({"content": "a"}, "stop")), DONE])
    head = EVENTS + b"Set-Cookie: who=alice; Path=/\r\nContent-Length: %d\r\n\r\n" % len(answered)
    raw.default = lambda: [head + answered]
    for _ in range(2):
        await answer(raw, upstream=upstream)
    await upstream.close()

    assert len(raw.requests) == 2
    assert not [request for request in raw.requests if b"cookie" in request.lower()]


async def test_another_protocol_is_malformed(raw, caplog):
    raw.default = lambda: [b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello"]

    assert await code(raw) == "upstream_malformed"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_comments_after_the_finish_reason_are_not_waited_for(raw, monkeypatch):
    monkeypatch.setattr(openai_module, "TAIL_TIMEOUT", 0.1)
    raw.default = lambda: itertools.chain([CHUNKED + chunked(FINISH)], itertools.repeat(chunked(b": drip\n\n" * 500)))

    _, outcome = await answer(raw)
    assert outcome.finish_reason == "stop"


async def test_deltas_after_a_finish_reason_are_waited_for():
    """Some servers send a finish_reason with every delta."""
    calls: list[int] = []
    parser = CompletionParser(len, Outcome(), str)
    parser.on_tail = lambda: calls.append(1)
    counted = []
    for read in (sse(chunk({"content": "a"})), *[sse(chunk({"content": "a"}, "stop")), b": x\n\n", FINISH] * 2):
        parser.feed(read)
        counted.append(len(calls))

    assert counted == [0, 1, 1, 1, 2, 2, 2]


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_models_without_usage_are_remembered_up_to_a_limit(raw, monkeypatch):
    monkeypatch.setattr(openai_module, "MAX_REMEMBERED", 2)
    upstream = OpenAIUpstream(model="m", base_url=f"{raw.origin}/v1")
    refusal = b"HTTP/1.1 400 No\r\nContent-Length: 14\r\n\r\nstream_options"
    for model in "abc":
        raw.scripts = [[refusal], [EVENTS + CLOSED, FINISH, DONE, b""]]
        await upstream.generate({"model": model, "messages": HELLO}, len, Outcome())
    await upstream.close()

    assert list(upstream._without_usage) == ["b", "c"]


async def test_secrets_of_the_base_url_are_sent_and_not_logged(raw, caplog):
    caplog.set_level(logging.DEBUG)
    base = raw.origin.replace("://", "://alice:hunter2@") + "/v1?api_key=s3cret&api-version=1"
    raw.default = lambda: [EVENTS + CLOSED, FINISH, DONE, b""]
    await answer(raw, base=base)
    raw.default = lambda: [b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(ChatError):
        await answer(raw, base=base)
    raw.default = lambda: [b""]
    with pytest.raises(ChatError):
        await answer(raw, base=base)

    assert raw.requests[0].startswith(b"POST /v1/chat/completions?api_key=s3cret&api-version=1 HTTP/1.1\r\n")
    assert b"Authorization: Basic YWxpY2U6aHVudGVyMg==\r\n" in raw.requests[0]
    assert "HTTP Request: POST" in caplog.text
    assert "/v1/: RemoteProtocolError" in caplog.text
    for secret in ("alice", "hunter2", "s3cret", "YWxpY2U6aHVudGVyMg"):
        assert secret not in caplog.text
