"""What the client does when the server refuses, goes away or closes a socket that carries several answers."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.patience import Clock, recorded_pauses
from support.scripted import done, refusal, scripted, send_frames, start, token
from support.service import HELLO
from support.waiting import until

from ws_chat.client import (
    ConnectionLostError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UpstreamError,
    connect,
)
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    return recorded_pauses(monkeypatch)


async def test_a_request_that_is_too_large_fails_alone(serve, fake):
    service = await serve(max_frame_bytes=10_000)
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with connect(service.url) as chat:
        running = chat.ask(HELLO)
        await anext(aiter(running))
        small, large, last = chat.ask("hi"), chat.ask("x" * 20_000), chat.ask("hi")
        with pytest.raises(InvalidRequestError, match="larger than") as refused:
            await large
        assert (refused.value.code, refused.value.status, refused.value.retryable) == ("too_large", 413, False)
        more.set()
        assert [(await reply).text for reply in (running, small, last)] == ["ab"] * 3
    assert len(fake.requests) == 3


async def test_a_policy_violation_is_not_sent_again():
    asked = []

    async def handle(socket):
        async for message in socket:
            frame = json.loads(message)
            asked.append(frame)
            if frame.get("type") == "resume":
                await send_frames(socket, frame["id"], start(1), done(2))
            elif frame["id"] == "bad":
                await socket.close(1008, "no such words here")
            else:
                await send_frames(socket, frame["id"], start(), token(1, "a"))

    async with scripted(handle) as url, connect(url) as chat:
        good = chat.ask(HELLO, request_id="good")
        await anext(aiter(good))
        with pytest.raises(PermissionDeniedError, match="no such words here") as refused:
            await chat.ask(HELLO, request_id="bad")
        assert refused.value.code == "policy_violation"
        assert (await good).text == "a"
    assert [frame["id"] for frame in asked] == ["good", "bad", "good"]


async def test_a_socket_that_is_closed_on_every_request_is_given_up(clock, pauses):
    async def handle(socket):
        await socket.recv()
        clock.now += 0.1
        await socket.close(1011, "a bug")

    async with scripted(handle) as url, connect(url, patience=0.25) as chat:
        with pytest.raises(ConnectionLostError, match="breaks off every connection: code 1011 a bug"):
            await chat.ask(HELLO)
    assert len(pauses) == 2


async def test_a_socket_that_breaks_after_a_long_wait_is_opened_again(clock, pauses):
    sockets = []

    async def handle(socket):
        sockets.append(socket)
        frame = json.loads(await socket.recv())
        await send_frames(socket, frame["id"], start())
        clock.now += 15
        if len(sockets) == 4:
            await send_frames(socket, frame["id"], done(1))
        await socket.close()

    async with scripted(handle) as url, connect(url, patience=20) as chat:
        assert (await chat.ask(HELLO)).status == "completed"
    assert pauses == []


async def test_a_request_refused_for_lack_of_room_is_sent_again(serve, fake, pauses):
    service = await serve(max_generations_per_connection=2)
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with connect(service.url) as chat:
        replies = [chat.ask(HELLO) for _ in range(6)]
        await fake.request(2)
        await until(lambda: len(pauses) >= 12, "two more refusals of each of the others")
        assert len(fake.requests) == 2
        more.set()
        assert [(await reply).text for reply in replies] == ["ab"] * 6
    assert len(fake.requests) == 6


async def test_what_continues_waits_for_what_it_continues(service, fake, monkeypatch):
    refused = []

    async def handle(socket):
        known = set()
        async for message in socket:
            frame = json.loads(message)
            if frame.get("previous_id", "first") not in {"first", *known}:
                await send_frames(socket, frame["id"], refusal("not_found", "invalid_request_error", retryable=False))
            elif not refused:
                refused.append(frame)
                await send_frames(socket, frame["id"], refusal("overloaded", "server_error", retryable=True))
            else:
                known.add(frame["id"])
                await send_frames(socket, frame["id"], start(), done(1))

    async with scripted(handle) as url, connect(url) as chat:
        first = chat.ask(HELLO)
        assert (await chat.ask(HELLO, previous=first)).status == "completed"


async def test_a_repeated_refusal_is_raised_when_patience_ends(serve, fake, clock, pauses):
    service = await serve(max_generations=1)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url, patience=10) as chat:
        running = chat.ask(HELLO)
        await anext(aiter(running))
        refused = chat.ask(HELLO)
        cancelled = chat.ask(HELLO)
        await until(lambda: len(pauses) >= 4, "both to be refused")
        await cancelled.cancel()
        assert (await cancelled).status == "cancelled"
        clock.now = 9
        seen = len(pauses)
        await until(lambda: len(pauses) > seen, "one more refusal, whose retry_after of 1 s ends with patience")
        assert refused.status == "running"
        clock.now = 10
        with pytest.raises(Exception, match="overloaded"):
            await refused
        assert running.status == "running"
    assert len(fake.requests) == 1


async def test_a_cancelled_request_is_not_sent_again():
    asked = []

    async def handle(socket):
        async for message in socket:
            frame = json.loads(message)
            asked.append(frame.get("type", "chat"))
            if asked[-1] == "ping":
                await send_frames(socket, None, {"type": "pong"})
            elif frame["id"] == "r1" and asked[-1] == "cancel":
                await send_frames(socket, "r1", refusal("overloaded", "server_error", retryable=True))

    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        await until(lambda: asked, "the request")
        await reply.cancel()
        assert (await reply).status == "cancelled"
        await chat.cancel("r2")  # whose pong comes after anything that was asked before it
    assert asked == ["chat", "cancel", "cancel", "ping"]


async def test_a_final_refusal_is_raised_at_once():
    asked = []

    async def handle(socket):
        async for message in socket:
            asked.append(message)
            kind = "rate_limit_error" if len(asked) == 1 else "upstream_error"
            await send_frames(
                socket, json.loads(message)["id"], {**refusal("x", kind, retryable=len(asked) > 1), "seq": 1}
            )

    async with scripted(handle) as url, connect(url) as chat:
        with pytest.raises(RateLimitError):
            await chat.ask(HELLO)
        with pytest.raises(UpstreamError) as failed:
            await chat.ask(HELLO)
        assert failed.value.retryable, "by hand: it has been paid for"
    assert len(asked) == 2


async def test_a_cancel_that_is_lost_is_sent_again():
    sockets = []

    async def handle(socket):
        sockets.append(socket)
        if len(sockets) == 1:
            await socket.recv()
            return
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "ping":
                await send_frames(socket, None, {"type": "pong"})
            elif frame["id"] == "r9":
                await send_frames(socket, "r9", refusal("not_found", "invalid_request_error", retryable=False))

    async with scripted(handle) as url, connect(url) as chat:
        await chat.cancel("r1")
        with pytest.raises(NotFoundError):
            await chat.cancel("r9")
    assert len(sockets) == 2


async def test_only_the_pong_with_its_id_says_that_a_cancel_was_accepted():
    """Other frames are answered while a cancel waits for the store."""

    async def handle(socket):
        async for message in socket:
            if json.loads(message)["type"] == "ping":
                await send_frames(socket, "r9", {"type": "pong"})
                await send_frames(socket, "r1", refusal("overloaded", "server_error", retryable=False))
                await send_frames(socket, "r1", {"type": "pong"})

    async with scripted(handle) as url, connect(url) as chat:
        with pytest.raises(ServerError):
            await chat.cancel("r1")


@pytest.mark.parametrize("word", ["goaway", "draining"])
async def test_goaway_is_honoured(word):
    """New questions go over a new socket; what runs ends on the old one."""
    sockets, old = [], []

    async def answer(socket):
        sockets.append(socket)
        first = len(sockets) == 1
        async for message in socket:
            generation_id = json.loads(message)["id"]
            if first and old and word == "draining":
                await send_frames(socket, generation_id, refusal("draining", "server_error", retryable=True))
            elif first:
                await send_frames(socket, generation_id, start())
                if word == "goaway":
                    await send_frames(socket, None, {"type": "goaway", "deadline_ms": 1000})
                old.append((socket, generation_id))
                going.set()
            else:
                await send_frames(socket, generation_id, start(), token(1, "new"), done(2))

    going = asyncio.Event()
    async with scripted(answer) as url, connect(url) as chat:
        first = chat.ask(HELLO)
        await going.wait()
        assert (await chat.ask(HELLO).end()).text == "new"
        await send_frames(*old[0], token(1, "old"), done(2))
        assert (await first.end()).text == "old"
        await sockets[0].wait_closed()
        assert len(sockets) == 2


async def test_with_move_running_answers_are_resumed_on_a_new_socket():
    sockets, resumed = [], []

    async def answer(socket):
        sockets.append(socket)
        async for message in socket:
            frame = json.loads(message)
            if len(sockets) == 1:
                await send_frames(socket, frame["id"], start() | {"epoch": "e1"}, token(1, "a"))
                await send_frames(socket, None, {"type": "goaway", "deadline_ms": 600_000, "move": True})
            else:
                resumed.append(frame)
                await send_frames(socket, frame["id"], start(1) | {"epoch": "e1"}, token(2, "b"), done(3))

    async with scripted(answer) as url, connect(url) as chat:
        reply = await chat.ask(HELLO)
        await sockets[0].wait_closed()
    assert reply.text == "ab"
    assert resumed == [{"type": "resume", "id": reply.id, "after": 1, "epoch": "e1"}]
    assert sockets[0].close_code == 1000


async def test_with_move_and_no_other_server_running_answers_end_where_they_are():
    sockets, refused = [], asyncio.Event()

    async def answer(socket):
        sockets.append(socket)
        frame = json.loads(await socket.recv())
        await send_frames(socket, frame["id"], start(), token(1, "a"))
        await send_frames(socket, None, {"type": "goaway", "deadline_ms": 600_000, "move": True})
        await refused.wait()
        await send_frames(socket, frame["id"], token(2, "b"), done(3))
        await socket.wait_closed()

    def admit(connection, _):
        if sockets:
            refused.set()
            return connection.respond(503, "draining")
        return None

    reported = []
    async with (
        scripted(answer, process_request=admit) as url,
        connect(url, on_retry=lambda *report: reported.append(report)) as chat,
    ):
        assert (await chat.ask(HELLO)).text == "ab"
    assert len(sockets) == 1
    assert reported == [], "nothing is wrong with the answer"
