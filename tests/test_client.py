"""The Python client, in front of the real server, over a network that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from conftest import HELLO
from dropping import DroppingProxy
from fake_openai import DONE, Cut, Hang, Reply, chunk, sse, text, usage_chunk
from websockets.asyncio.server import serve as serve_sockets

from ws_chat.client import (
    AuthenticationError,
    ConnectionLostError,
    HistoryGoneError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    ServerError,
    UpstreamError,
    connect,
    connect_sync,
)
from ws_chat.client import Reply as Answer

pytestmark = pytest.mark.anyio

LONG = [f"{number} " for number in range(1500)]


@contextlib.asynccontextmanager
async def breaking(service, budget):
    proxy = DroppingProxy(int(service.url.rsplit(":", 1)[1]), budget)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def test_a_text_and_what_is_known_at_its_end(service, fake):
    async with connect(service.url) as chat:
        assert [piece async for piece in chat.stream("hi", temperature=0.5)] == ["Hel", "lo"]
        reply = await chat.ask(HELLO, model="m-1").end()

    assert (reply.text, reply.seq, reply.status, reply.finish_reason) == ("Hello", 3, "completed", "stop")
    assert (reply.usage["completion_tokens"], reply.model) == (2, "gpt-4o-mini-2024-07-18")
    assert (fake.requests[0].body["temperature"], fake.requests[0].body["messages"]) == (0.5, HELLO)
    assert fake.requests[1].body["model"] == "m-1"


async def test_tool_calls_are_joined_and_their_results_continue(service, fake):
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    pieces = [
        [head],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ":1}"}}, other],
    ]
    steps = [sse(chunk({"tool_calls": piece})) for piece in pieces]
    fake.reply([*steps, sse(chunk({}, "tool_calls"), usage_chunk()), DONE])
    async with connect(service.url) as chat:
        first = await chat.ask("weather?", tools=[{"type": "function", "function": {"name": "f"}}]).end()
        second = await chat.ask([{"role": "tool", "tool_call_id": "c1", "content": "ok"}], previous=first).end()

    assert [(call["id"], call["function"]) for call in first.tool_calls] == [
        ("c1", {"name": "f", "arguments": '{"a":1}'}),
        ("c2", {"name": "g", "arguments": "{}"}),
    ]
    assert second.text == "Hello"
    assert len(fake.requests[1].body["messages"]) == 3


async def test_what_a_server_repeats_empty_in_a_tool_call_changes_nothing(service, fake):
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    more = {"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": "}"}}
    last = {"index": 0, "id": None, "function": {"name": None, "arguments": None}}
    pieces = [sse(chunk({"tool_calls": [piece]})) for piece in (head, more, last)]
    fake.reply([*pieces, sse(chunk({}, "tool_calls")), DONE])
    async with connect(service.url) as chat:
        reply = await chat.ask(HELLO).end()

    assert reply.tool_calls == [{**head, "function": {"name": "f", "arguments": "{}"}}]


async def test_who_leaves_an_iteration_finds_the_rest_later(service, fake):
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        await reply.over.wait()
        assert (await anext(aiter(reply)))["content"] == "Hel"
        assert [frame["content"] async for frame in reply] == ["lo"]


async def test_several_at_once_on_one_socket(service, fake):
    async with connect(service.url) as chat:
        replies = await asyncio.gather(*(chat.ask(HELLO).end() for _ in range(10)))
        assert [reply.text for reply in replies] == ["Hello"] * 10
        assert service.connections.open == 1


async def test_cancel(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        async for frame in reply:
            assert frame["content"] == "a"
            await reply.cancel()
        assert (reply.status, reply.text, reply.ended) == ("cancelled", "a", True)
        async for _ in chat.stream(HELLO):
            break
        async with asyncio.timeout(5):
            await (await fake.request(2)).closed.wait()


async def test_what_is_cancelled_before_it_was_asked_for_costs_nothing(service, fake):
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        await reply.cancel()
        await reply.end()
        assert (reply.status, reply.text) == ("cancelled", "")
        with pytest.raises(NotFoundError):
            await chat.ask(HELLO, previous=reply).end()
    assert not fake.requests


async def test_what_is_closed_stays_closed(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        await anext(aiter(reply))
    with pytest.raises(ConnectionLostError):
        await reply.end()
    with pytest.raises(RuntimeError):
        chat.ask(HELLO)
    async with asyncio.timeout(5):
        while service.connections.open:
            await asyncio.sleep(0.01)


async def test_an_answer_is_whole_whatever_the_network_does(service, fake):
    fake.default = Reply([b"".join(text(*LONG[at : at + 50])[1:51]) for at in range(0, 1500, 50)] + text()[1:])
    chance = random.Random(1)
    async with (
        breaking(service, lambda: int(chance.expovariate(1 / 6000)) + 250) as proxy,
        connect(proxy.url) as chat,
    ):
        replies = [chat.ask(HELLO) for _ in range(10)]
        seen = await asyncio.gather(*(_all(reply) for reply in replies))

    assert seen == ["".join(LONG)] * 10
    assert {(reply.status, reply.seq) for reply in replies} == {("completed", 1501)}
    assert proxy.drops > 5
    assert len(fake.requests) == 10


async def test_a_frame_that_comes_twice_counts_once():
    reply = Answer({"id": "r1", "messages": HELLO}, cancel=None)
    for seq, content in ((1, "a"), (1, "a"), (2, "b"), (1, "a")):
        reply.take({"type": "token", "id": "r1", "seq": seq, "content": content})
    assert (reply.text, reply.seq) == ("ab", 2)


async def _all(reply) -> str:
    seen, last = [], 0
    async for frame in reply:
        assert frame["seq"] > last
        last = frame["seq"]
        seen.append(frame["content"])
    assert "".join(seen) == reply.text
    return reply.text


async def test_what_was_never_acknowledged_is_sent_again(service, fake):
    budgets = iter([200, None])  # the first breaks in the handshake or soon after it
    async with breaking(service, lambda: next(budgets, None)) as proxy, connect(proxy.url) as chat:
        reply = await chat.ask(HELLO).end()

    assert reply.text == "Hello"
    assert len(fake.requests) == 1


async def test_errors_say_what_they_are(serve, service, fake):
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
        with pytest.raises(UpstreamError):
            await broken.end()
        assert broken.text == "a", "what was said stays said"
        with pytest.raises(NotFoundError):
            await chat.ask(HELLO, previous="r9").end()
        with pytest.raises(InvalidRequestError):
            await chat.ask([]).end()
    full = await serve(max_connections=1)
    async with connect(full.url):
        with pytest.raises(ServerError) as overloaded:
            await connect(full.url).__aenter__()
        assert (overloaded.value.code, overloaded.value.retry_after) == ("overloaded", 1)


async def test_a_history_that_is_gone_says_so(serve, fake):
    service = await serve(resume_window=0, retention=0)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        async for _ in reply:
            for connection in service.server.server_state.connections.copy():
                connection.transport.abort()
            break
        with pytest.raises(HistoryGoneError):
            await reply.end()
        assert reply.text == "a"


async def test_a_server_that_stays_away_is_given_up(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with breaking(service, lambda: None) as proxy, connect(proxy.url, patience=0.2) as chat:
        reply = chat.ask(HELLO)
        await anext(aiter(reply))
        await proxy.stop()
        with pytest.raises(ConnectionLostError):
            await reply.end()
        assert reply.text == "a"


@pytest.mark.parametrize("accepting", [False, True])
async def test_no_server_at_all(accepting):
    if not accepting:
        with pytest.raises(OSError, match=r"refused|failed"):
            await connect("ws://127.0.0.1:1").__aenter__()
        return

    async def refuse(connection, request):
        return connection.respond(
            401, json.dumps({"error": {"type": "authentication_error", "code": "unauthorized", "message": "no"}})
        )

    async with serve_sockets(lambda _: None, "127.0.0.1", 0, process_request=refuse) as server:
        with pytest.raises(AuthenticationError):
            await connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", api_key="x").__aenter__()


async def test_goaway_is_honoured():
    """New questions go over a new socket; what runs ends on the old one."""
    sockets = []

    async def answer(socket):
        sockets.append(socket)
        number = len(sockets)
        async for message in socket:
            frame = json.loads(message)
            assert frame["type" if "type" in frame else "id"] is not None
            await socket.send(json.dumps({"type": "start", "id": frame["id"], "seq": 0, "model": "m"}))
            if number == 1:
                await socket.send('{"type":"goaway","deadline_ms":1000}')
                old.append((socket, frame["id"]))
                going.set()
            else:
                await _say(socket, frame["id"], "new")

    old, going = [], asyncio.Event()
    async with (
        serve_sockets(answer, "127.0.0.1", 0) as server,
        connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as chat,
    ):
        first = chat.ask(HELLO)
        await going.wait()
        assert (await chat.ask(HELLO).end()).text == "new"
        await _say(*old[0], "old")
        assert (await first.end()).text == "old"
        async with asyncio.timeout(5):
            await sockets[0].wait_closed()
        assert len(sockets) == 2


async def _say(socket, generation_id, content) -> None:
    for frame in (
        {"type": "token", "seq": 1, "content": content},
        {"type": "done", "seq": 2, "status": "completed", "model": "m"},
    ):
        await socket.send(json.dumps({"id": generation_id, **frame}))


async def test_without_async(service, fake):
    def use() -> tuple[list[str], str, str]:
        with connect_sync(service.url) as chat:
            pieces = list(chat.stream("hi"))
            first = chat.ask("hi")
            frames = [frame["content"] for frame in first]
            second = chat.ask("more", previous=first).end()
            with pytest.raises(NotFoundError):
                chat.ask("hi", previous="r9").end()
            for _ in chat.stream("hi"):
                break
            return pieces, "".join(frames), second.text

    assert await asyncio.to_thread(use) == (["Hel", "lo"], "Hello", "Hello")
    assert len(fake.requests[2].body["messages"]) == 3
