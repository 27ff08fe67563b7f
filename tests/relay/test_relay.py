"""The use case without doors: what happens when two callers come at the same instant."""

from __future__ import annotations

import asyncio

import pytest
from support.waiting import until

from ws_chat import ChatError
from ws_chat.protocol.frames import Chat, Done, Failed
from ws_chat.relay.access import ANONYMOUS, Caller
from ws_chat.relay.reader import Reader
from ws_chat.relay.relay import JOINED_AT_ONCE, Relay
from ws_chat.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "hi"}]
ONE, OTHER = Caller(ANONYMOUS, "one", "sse"), Caller(ANONYMOUS, "other", "websocket")


class Upstream:
    """Says one delta and waits for `go`; closes when `closing` is set."""

    def __init__(self) -> None:
        self.requests = []
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.closing = asyncio.Event()
        self.closing.set()
        self.ending = asyncio.Event()

    def resolve(self, model):
        return model or "m"

    async def generate(self, request, emit, outcome) -> None:
        self.requests.append(request)
        emit([{"content": "a"}])
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.ending.set()
            await self.closing.wait()
        outcome.finish_reason = "stop"

    async def close(self) -> None:
        pass


class DistantStore(MemoryStore):
    """A store whose answers take a turn of the event loop, as those of another machine do."""

    async def get(self, key, after=0):
        found = await super().get(key, after)
        await asyncio.sleep(0)  # the turn that an answer from another machine takes
        return found


@pytest.fixture
async def upstream():
    return Upstream()


async def ended(log) -> Done | Failed:
    over = asyncio.Event()
    log.watch(lambda *_: over.set())
    while not log.terminal:
        over.clear()
        await over.wait()
    return log.terminal


async def code_of(coroutine) -> str:
    with pytest.raises(ChatError) as refused:
        await coroutine
    return refused.value.info.code


async def test_two_that_send_the_same_at_the_same_instant_share_one(upstream):
    relay = Relay(upstream, DistantStore())
    chat = Chat.of({"messages": HELLO}, id="r1")
    one, other = await asyncio.gather(relay.start(ONE, "r1", chat), relay.start(OTHER, "r1", chat))
    assert one is other
    upstream.go.set()
    assert (await ended(one)).status == "completed"
    assert len(upstream.requests) == 1
    await relay.close()


async def test_of_two_that_send_different_things_at_the_same_instant_one_is_refused(upstream):
    relay = Relay(upstream, DistantStore())
    chats = [Chat.of({"messages": HELLO, "seed": seed}, id="r1") for seed in (1, 2)]
    outcomes = await asyncio.gather(
        *(relay.start(caller, "r1", chat) for caller, chat in zip((ONE, OTHER), chats, strict=True)),
        return_exceptions=True,
    )
    assert [type(outcome) is ChatError for outcome in outcomes] == [False, True]
    assert outcomes[1].info.code == "id_conflict"
    await relay.close()


async def interrupting(relay, upstream) -> asyncio.Task:
    """Start r1, and r2 that interrupts it; return the start of r2, which waits for the end of r1."""
    log = await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    await until(lambda: log.last, "r1 to run")
    upstream.closing.clear()
    task = asyncio.create_task(relay.start(ONE, "r2", Chat.of({"messages": HELLO}, id="r2", previous_id="r1")))
    await until(lambda: relay._runner._running[ONE.key("r1", named=True)].task.cancelling(), "r1 to be cancelled")
    return task


async def test_the_place_of_the_interrupted_one_goes_to_no_other(upstream):
    relay = Relay(upstream, MemoryStore(), max_generations=1)
    start = await interrupting(relay, upstream)
    assert await code_of(relay.start(OTHER, "r3", Chat.of({"messages": HELLO}))) == "overloaded"
    upstream.closing.set()
    upstream.go.set()
    assert (await ended(await start)).status == "completed"
    assert [len(request["messages"]) for request in upstream.requests] == [1, 3]
    await relay.close()


async def test_what_starts_while_the_server_stops_ends_at_once(upstream):
    relay = Relay(upstream, MemoryStore())
    start = await interrupting(relay, upstream)
    stopping = asyncio.create_task(relay.stop())
    await until(lambda: relay._runner._stopped, "the relay to stop")
    upstream.closing.set()
    assert (await ended(await start)).error.code == "draining"
    await stopping
    assert len(upstream.requests) == 1
    await relay.close()


async def test_a_drain_waits_for_what_is_being_started(upstream):
    relay = Relay(upstream, MemoryStore())
    start = await interrupting(relay, upstream)
    draining = asyncio.create_task(relay.drain(60))
    await until(lambda: relay.draining, "the relay to drain")
    upstream.closing.set()
    upstream.go.set()
    assert (await ended(await start)).status == "completed"
    await draining
    await relay.close()


async def test_a_request_that_interrupts_needs_no_room_of_its_own(upstream):
    relay = Relay(upstream, MemoryStore(), max_generations=1)
    await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    assert await code_of(relay.start(ONE, "r2", Chat.of({"messages": HELLO}))) == "overloaded"
    log = await relay.start(ONE, "r2", Chat.of({"messages": HELLO}, previous_id="r1"))
    upstream.go.set()
    assert (await ended(log)).status == "completed"
    await relay.close()


async def test_a_history_has_a_size(upstream):
    relay = Relay(upstream, MemoryStore(), max_bytes=1000)
    upstream.go.set()
    long = [{"role": "user", "content": "x" * 600}]
    await ended(await relay.start(ONE, "r1", Chat.of({"messages": long}, id="r1")))
    assert await code_of(relay.start(ONE, "r2", Chat.of({"messages": long}, id="r2", previous_id="r1"))) == "too_large"
    await ended(await relay.start(ONE, "r2", Chat.of({"messages": HELLO}, id="r2", previous_id="r1")))
    assert len(upstream.requests) == 2
    await relay.close()


async def test_a_reader_of_what_is_forgotten_counts_nowhere_else(upstream):
    store = MemoryStore()
    relay = Relay(upstream, store, resume_window=0)
    chat = Chat.of({"messages": HELLO}, id="r1")
    upstream.go.set()
    old = Reader(await relay.start(ONE, "r1", chat), 0, None, None)
    await ended(old.log)
    store.remove(ONE.key("r1", named=True))
    upstream.go.clear()
    new = Reader(await relay.start(ONE, "r1", chat), 0, None, None)
    key = ONE.key("r1", named=True)
    relay.attach(key, new)
    relay.attach(key, old)
    relay.detach(ONE, key, old)
    later = Reader(await relay.start(ONE, "r2", Chat.of({"messages": HELLO}, id="r2")), 0, None, None)
    relay.attach(ONE.key("r2", named=True), later)
    relay.detach(ONE, ONE.key("r2", named=True), later)
    assert (await ended(later.log)).status == "cancelled", "its window was opened later"
    assert relay.running == 1
    relay.detach(ONE, key, new)
    assert (await ended(new.log)).status == "cancelled"
    await relay.close()


async def test_two_that_interrupt_the_same_way_at_the_same_instant_share_one(upstream):
    relay = Relay(upstream, DistantStore(), max_generations=1)
    await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    chat = Chat.of({"messages": HELLO}, id="r2", previous_id="r1")
    one, other = await asyncio.gather(relay.start(ONE, "r2", chat), relay.start(OTHER, "r2", chat))
    assert one is other
    await relay.close()


class Verbose(Upstream):
    """Emits 20,000 deltas."""

    async def generate(self, request, emit, outcome) -> None:
        self.requests.append(request)
        emit([{"content": "ab"}] * 20_000)
        outcome.finish_reason = "stop"


async def test_to_continue_from_a_long_answer_takes_many_turns_of_the_event_loop():
    upstream = Verbose()
    relay = Relay(upstream, MemoryStore())
    await ended(await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1")))
    turns = 0
    chat = Chat.of({"messages": HELLO}, previous_id="r1")
    task = asyncio.create_task(relay.start(ONE, "r2", chat))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    await ended(task.result())

    assert upstream.requests[1]["messages"] == [*HELLO, {"role": "assistant", "content": "ab" * 20_000}, *HELLO]
    assert turns > 20_000 / JOINED_AT_ONCE
    await relay.close()


async def test_to_continue_from_an_answer_of_large_deltas_takes_all_of_them(upstream):
    """A log may give fewer deltas at a time than there are."""
    relay = Relay(upstream, MemoryStore(), max_bytes=10_000_000)
    log = await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    await until(lambda: log.last, "the first delta")
    log.append([b'{"content":"%b"}' % (b"x" * 50_000)] * 20)
    upstream.go.set()
    await ended(log)
    await relay.start(ONE, "r2", Chat.of({"messages": HELLO}, id="r2", previous_id="r1"))
    await until(lambda: len(upstream.requests) == 2, "r2 to start")

    assert upstream.requests[1]["messages"][1]["content"] == "a" + "x" * 1_000_000
    await relay.close()


async def test_an_answer_that_is_too_long_to_continue_from_is_not_joined_to_its_end():
    relay = Relay(Verbose(), MemoryStore(), max_bytes=1000)
    log = await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    await ended(log)
    read, after = [], log.after
    relay._store._logs[ONE.key("r1", named=True)] = log = Log(log, lambda *given: read.append(given) or after(*given))

    assert await code_of(relay.start(ONE, "r2", Chat.of({"messages": HELLO}, previous_id="r1"))) == "too_large"
    assert len(read) <= 2
    await relay.close()


class Log:
    """A log whose `after` is another one."""

    def __init__(self, log, after) -> None:
        self._log = log
        self.after = after

    def __getattr__(self, name):
        return getattr(self._log, name)


async def test_a_request_is_decoded_field_by_field(upstream):
    relay = Relay(upstream, MemoryStore())
    await relay.start(ONE, "r1", Chat.of({"messages": HELLO, "temperature": 1.0}, id="r1"))
    await upstream.started.wait()
    (request,) = upstream.requests

    assert request == {"messages": HELLO, "temperature": 1.0, "model": "m"}
    assert dict(request) == {**request}
    assert bytes(request.raw["messages"]) == b'[{"role":"user","content":"hi"}]'
    assert request["messages"] is request["messages"]
    await relay.close()


class Endless(Upstream):
    """Answers without an end."""

    async def generate(self, request, emit, outcome) -> None:
        try:
            while True:
                emit([{"content": "x" * 90}, b'{"content":"y"}', {"role": "assistant"}])
                await asyncio.sleep(0)
        finally:
            self.ending.set()


async def test_an_answer_has_a_size():
    upstream = Endless()
    relay = Relay(upstream, MemoryStore(), max_answer_bytes=1000)
    log = await relay.start(ONE, "r1", Chat.of({"messages": HELLO}, id="r1"))
    terminal = await ended(log)

    assert isinstance(terminal, Failed)
    assert (terminal.error.code, terminal.seq) == ("upstream_malformed", log.last + 1)
    assert "1000 bytes" in terminal.error.message
    assert 800 < log.size <= 1000
    assert log.last % 2 == 0, "what is empty makes no delta"
    assert upstream.ending.is_set()
    await relay.close()
