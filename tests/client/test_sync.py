"""The client without async."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.service import HELLO
from support.waiting import until

from ws_chat.client import ConnectionLostError, NotFoundError, connect_sync
from ws_chat.protocol import deltas
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio


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


async def test_without_a_block(service):
    def use():
        chat = connect_sync(service.url)
        chat.open()
        assert chat.ask("hi").begin().model.startswith("gpt-4o-mini")
        reply = chat.ask("hi").end()
        assert (reply.text, reply.status, reply.usage["completion_tokens"]) == ("Hello", "completed", 2)
        assert repr(reply) == f"<SyncReply {reply.id} completed, seq 3: 'Hello'>"
        assert chat.resume(reply.id, after=1).end().text == "lo"
        with chat as same, same as again:
            assert again is chat
        chat.close()
        for closed in (lambda: chat.ask("hi"), lambda: chat.resume("r1"), lambda: chat.cancel("r1"), chat.__enter__):
            with pytest.raises(RuntimeError, match="closed"):
                closed()
        with pytest.raises(RuntimeError, match="closed"):
            next(chat.stream("hi"))
        assert "".join(reply.texts()) == reply.end().text == "Hello", "what has come stays"
        reply.cancel()

    await asyncio.to_thread(use)


def test_mistakes_are_raised_at_the_call():
    chat = connect_sync("ws://127.0.0.1:1", patience=0)
    with pytest.raises(TypeError):
        chat.ask("hi", stop={1})
    with pytest.raises(ConnectionLostError):
        chat.ask("hi").end()
    chat.close()
    with pytest.raises(ConnectionLostError):
        connect_sync("ws://127.0.0.1:1", patience=0).__enter__()
    connect_sync("ws://127.0.0.1:1").close()


async def test_a_block_that_is_left_early_cancels(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])

    def use():
        with connect_sync(service.url) as chat:
            with chat.ask(HELLO) as reply:
                assert next(iter(reply))["content"] == "a"
            assert reply.end().status == "cancelled"
            other = chat.ask(HELLO)
            next(iter(other))
            chat.cancel(other.id)
            assert other.end().status == "cancelled"

    await asyncio.to_thread(use)


WAITS = {"Event.wait", "ReplyState._more"}
"""What is awaited where somebody waits for an answer."""


@pytest.mark.parametrize("there", [True, False])
async def test_closing_wakes_all_waiters(there, service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    chat = connect_sync(service.url if there else "ws://127.0.0.1:1")
    reply = chat.ask(HELLO)

    def waiting() -> int:
        tasks = asyncio.all_tasks(chat._thread._loop)
        return sum(task.get_coro().__qualname__ in WAITS for task in tasks)

    try:
        uses = (reply.end, lambda: list(reply), lambda: list(chat.stream("hi")))
        threads = [asyncio.create_task(asyncio.to_thread(use)) for use in uses]
        await until(lambda: waiting() == 3, "three threads that wait for an answer")
    finally:
        await asyncio.to_thread(chat.close)
    ends = await asyncio.gather(*threads, return_exceptions=True)
    assert [type(end) for end in ends] == [ConnectionLostError] * 3


async def test_a_waiter_that_starts_while_it_closes_gets_the_same_error(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])

    def use():
        chat = connect_sync(service.url)
        reply = chat.ask(HELLO)
        closing, waiting = threading.Event(), threading.Event()
        close, run = chat._chat.close, chat._thread.run

        async def slow() -> None:
            closing.set()
            await asyncio.to_thread(waiting.wait)
            await close()

        def seen(coroutine):
            waiting.set()
            return run(coroutine)

        chat._chat.close, chat._thread.run = slow, seen
        thread = threading.Thread(target=chat.close)
        thread.start()
        closing.wait()
        with pytest.raises(ConnectionLostError):
            reply.end()
        thread.join()

    await asyncio.to_thread(use)


def test_tool_calls_are_read_while_another_thread_adds_to_them(monkeypatch):
    calls = deltas.ToolCalls([{"index": 0, "id": "c1"}])
    result = deltas._result

    def interrupted(value):
        monkeypatch.setattr(deltas, "_result", result)
        calls.add([{"index": 0, "type": "function"}])
        return result(value)

    monkeypatch.setattr(deltas, "_result", interrupted)
    assert calls.result()[0]["id"] == "c1"
