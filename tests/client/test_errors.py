"""What the client raises, and what it says of itself."""

from __future__ import annotations

import copy
import pickle

import pytest
from support.scripted import done, refusal, scripted, send_frames, start, token
from support.service import HELLO

from ws_chat.client import (
    AuthenticationError,
    ClientError,
    ConnectionLostError,
    GenerationGoneError,
    HistoryGoneError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ReplyError,
    UpstreamError,
    connect,
)
from ws_chat.client.errors import error_from, history_gone
from ws_chat.testing import Cut, Hang, Reply, text

pytestmark = pytest.mark.anyio


async def test_errors_say_what_they_are(service, fake):
    fake.refuse(400, "no such thing")
    fake.refuse(429, "slow down", x_should_retry="false")
    fake.reply([*text("a")[:2], Cut()])
    async with connect(service.url) as chat:
        with pytest.raises(UpstreamError) as refused:
            await chat.ask(HELLO).end()
        assert (refused.value.code, refused.value.status, refused.value.retryable) == ("upstream_rejected", 400, False)
        with pytest.raises(RateLimitError) as limited:
            await chat.ask(HELLO).end()
        assert (limited.value.code, limited.value.retryable) == ("upstream_rate_limited", True)
        broken = chat.ask(HELLO)
        with pytest.raises(UpstreamError) as incomplete:
            await broken.end()
        assert broken.text == "a", "what was said stays said"
        assert (broken.status, broken.error) == ("failed", incomplete.value)
        with pytest.raises(UpstreamError):
            _ = [frame async for frame in broken]
        with pytest.raises(NotFoundError):
            await chat.ask(HELLO, previous="r9").end()
        with pytest.raises(InvalidRequestError):
            await chat.ask([]).end()
    assert len(fake.requests) == 3, "a generation that failed is not tried again"


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("authentication_error", "unauthorized", AuthenticationError),
        ("permission_error", "model_not_allowed", PermissionDeniedError),
        ("invalid_request_error", "not_found", NotFoundError),
        ("invalid_request_error", "generation_gone", GenerationGoneError),
    ],
)
def test_errors_have_one_base_and_can_be_pickled(kind, code, expected):
    error = error_from({**refusal(code, kind, retryable=False)["error"], "retry_after": 1.5})
    assert isinstance(error, expected)
    assert issubclass(ConnectionLostError, ClientError)
    assert issubclass(ReplyError, ClientError)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (f"{code}: no", vars(error))
    gone = history_gone(refusal("not_found", kind, retryable=False)["error"])
    assert str(pickle.loads(pickle.dumps(gone))) == str(gone)


async def test_a_history_that_is_gone_says_so(serve, fake):
    service = await serve(resume_window=0, retention=0)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        async for _ in reply:
            for connection in service.server.server_state.connections.copy():
                connection.transport.abort()
            break
        with pytest.raises(HistoryGoneError, match=r"restarted.*Ask again; `previous` cannot"):
            await reply.end()
        assert (reply.text, reply.status) == ("a", "failed")


async def test_a_history_that_a_restarted_server_does_not_know_is_gone_too():
    async def restarted(socket):
        frame = await socket.recv()
        if '"resume"' in frame:
            # It knows the id by another request, which has not come so far.
            error = refusal("invalid_request", "invalid_request_error", retryable=False)
            error["error"]["param"] = "after"
            await send_frames(socket, "r1", error)
            await socket.wait_closed()
        else:
            await send_frames(socket, "r1", start(), token(1, "a"))

    async with scripted(restarted) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        with pytest.raises(HistoryGoneError):
            await reply
        assert reply.text == "a"


async def test_an_answer_of_a_lost_replica_fails_at_once():
    asked = []

    async def handle(socket):
        asked.append(await socket.recv())
        if '"resume"' in asked[-1]:
            await send_frames(socket, "r1", refusal("generation_lost", "upstream_error", retryable=True))
            await socket.wait_closed()
        else:
            await send_frames(socket, "r1", start(), token(1, "a"))

    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        with pytest.raises(UpstreamError) as lost:
            await reply
        assert (lost.value.code, lost.value.retryable, reply.text, len(asked)) == ("generation_lost", True, "a", 2)


@pytest.mark.parametrize("nonsense", ["hello", "[]", "{}", '{"type":"token","id":"r1"}', '{"type":"start","id":"r1"}'])
async def test_a_server_of_another_kind_is_found_out(nonsense):
    async def handle(socket):
        await socket.recv()
        await socket.send(nonsense)
        await socket.wait_closed()

    async with scripted(handle) as url, connect(url) as chat:
        with pytest.raises(ProtocolError):
            await chat.ask(HELLO, request_id="r1")


async def test_unknown_frames_and_fields_of_a_newer_server_are_ignored():
    async def handle(socket):
        news = {"type": "news", "id": "r1"}
        await socket.recv()
        await send_frames(socket, "r1", news, refusal("overloaded", "server_error", retryable=True))
        await socket.recv()
        await send_frames(socket, "r1", news, start(), news, {**token(1, "a"), "news": 1}, done(2))
        await socket.wait_closed()

    async with scripted(handle) as url, connect(url) as chat:
        assert (await chat.ask(HELLO, request_id="r1")).text == "a"


async def test_any_exception_ends_the_reply(service, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    async with connect(service.url) as chat:
        monkeypatch.setattr("ws_chat.client.connection.ChatConnection.carry", broken)
        with pytest.raises(ZeroDivisionError):
            await chat.ask(HELLO).end()
