"""The Python client: what an answer is to whoever asked, in front of the real server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from support.service import HELLO
from support.waiting import until

from ws_chat.client import ConnectionLostError, NotFoundError, connect
from ws_chat.client.reply import Reply as Answered
from ws_chat.testing import DONE, Hang, Reply, Wait, chunk, sse, text, usage_chunk

pytestmark = pytest.mark.anyio


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
        await (await fake.request(2)).closed.wait()


async def test_it_connects_once_however_often_it_is_opened(service, fake):
    fake.reply([Hang()])
    chat = connect(service.url)
    await asyncio.gather(chat.open(), chat.open())
    reply = await chat.ask(HELLO, model="m").begin()
    assert (reply.status, reply.model, service.connections.open) == ("running", "m", 1)
    await chat.close()
    with pytest.raises(RuntimeError):
        await chat.open()


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
    await until(lambda: not service.connections.open, "the server to see the connection close")


async def test_closing_is_for_once_and_for_all(service):
    chat = connect(service.url)
    assert (await chat.ask("hi")).text == "Hello", "it connects when it is first asked"
    running = chat.ask("hi")
    await chat.close()
    await chat.close()
    with pytest.raises(ConnectionLostError):  # asked for a moment ago, and not even begun
        await running
    for use in (chat.ask, chat.resume):
        with pytest.raises(RuntimeError, match="closed"):
            use("hi")
    with pytest.raises(RuntimeError, match="closed"):
        await chat.cancel("r1")
    with pytest.raises(RuntimeError, match="closed"):
        async with chat:
            pass


async def test_every_iteration_starts_at_the_first_frame(service, fake):
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO)
        ending = asyncio.create_task(reply.end())
        early = asyncio.create_task(_texts(reply))
        async for piece in reply.texts():
            assert piece == "a"
            break
        more.set()
        assert await early == await _texts(reply) == ["a", "b"]
        assert (await ending) is (await reply) is reply
        assert [frame["seq"] async for frame in reply] == [1, 2]


async def _texts(reply) -> list[str]:
    return [piece async for piece in reply.texts()]


def test_a_frame_that_comes_twice_counts_once():
    reply = Answered("r1", "{}")
    for seq, content in ((1, "a"), (1, "a"), (2, "b"), (1, "a")):
        reply._receive({"type": "token", "id": "r1", "seq": seq, "content": content})
    assert (reply.text, reply.seq, len(reply._frames)) == ("ab", 2, 2)
    reply._finish()
    assert not reply._request, "an answer that is kept does not keep its request, which may be large"


async def test_a_block_that_is_left_early_cancels(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        async with chat.ask(HELLO) as reply:
            await anext(aiter(reply))
        assert (await reply).status == "cancelled"
        async with aclosing(chat.stream(HELLO)) as pieces:
            assert await anext(pieces) == "a"
        await (await fake.request(2)).closed.wait()
        with pytest.raises(TimeoutError):
            async with chat.ask(HELLO) as reply:
                await asyncio.wait_for(reply.end(), 0.01)
        assert (await reply).status == "cancelled"

        waiting = chat.ask(HELLO)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.end(), 0.01)
        assert waiting.status == "running", "waiting no longer is not cancelling"


async def test_a_stream_that_is_left_just_before_closing_cancels(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat:
        async for _ in chat.stream(HELLO):
            break
    await (await fake.request()).closed.wait()


async def test_an_answer_is_followed_by_its_id(service, fake):
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with connect(service.url) as chat, connect(service.url) as other:
        first = chat.ask(HELLO)
        await anext(aiter(first))
        whole, rest = other.resume(first.id), connect(service.url)
        assert other.resume(first.id) is whole
        with pytest.raises(ValueError, match="followed"):
            other.resume(first.id, after=1)
        await whole.begin()
        with pytest.raises(ValueError, match="with the epoch"):
            other.resume(first.id, epoch="another")
        assert other.resume(first.id, epoch=first.epoch) is whole
        with pytest.raises(ValueError, match="running"):
            other.ask(HELLO, request_id=first.id)
        assert chat.resume(first.id) is first
        more.set()
        assert (await whole).text == "ab"
        async with rest:
            assert (await rest.resume(first.id, after=1)).text == "b"
            assert (await rest.resume(first.id, after=1, epoch=first.epoch)).text == "b"
        for wrong in (-1, "1", True, 1.0):
            with pytest.raises((ValueError, TypeError)):
                chat.resume(first.id, after=wrong)
        for odd in ("", "a-b", "a\n", "a" * 33, "é", 1, b"a"):
            with pytest.raises((ValueError, TypeError), match="epoch"):
                chat.resume(first.id, epoch=odd)
        with pytest.raises(NotFoundError):
            await chat.resume("r9")
    assert len(fake.requests) == 1


async def test_an_answer_is_cancelled_by_its_id(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with connect(service.url) as chat, connect(service.url) as other:
        first, second = chat.ask(HELLO), chat.ask(HELLO)
        await asyncio.gather(*(anext(aiter(reply)) for reply in (first, second)))
        await other.cancel(first.id)
        assert (await first).status == "cancelled"
        await other.cancel(first.id)
        await chat.cancel(second.id)
        assert (await second).status == "cancelled"
        results = await asyncio.gather(
            other.cancel("r8"), other.cancel(first.id), other.cancel("r9"), return_exceptions=True
        )
        assert [type(result) for result in results] == [NotFoundError, type(None), NotFoundError]


async def test_what_is_known_of_an_answer(service, fake):
    deltas = [{"reasoning_content": "hm"}, {"reasoning_content": "m"}, {"content": "a"}, {"refusal": "no"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    fake.reply([*(sse(chunk(delta)) for delta in deltas), *text()[1:]])
    fake.reply([sse(chunk({"tool_calls": [{"index": 0, **call}]})), sse(chunk({}, "tool_calls")), DONE])
    async with connect(service.url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        assert (reply.status, reply.error, repr(reply)) == ("running", None, "<Reply r1 running, seq 0: ''>")
        await reply
        assert (reply.text, reply.reasoning, reply.refusal) == ("a", "hmm", "no")
        assert reply.message == {"role": "assistant", "content": "a", "refusal": "no"}
        assert repr(reply) == "<Reply r1 completed, seq 5: 'a'>"
        called = await chat.ask(HELLO)
        assert called.message == {"role": "assistant", "content": None, "tool_calls": [call]}


def test_only_what_a_caller_needs_is_seen():
    shown = {name for name in dir(connect("ws://127.0.0.1")) if not name.startswith("_")}
    assert shown == {"ask", "cancel", "close", "open", "resume", "stream"}
