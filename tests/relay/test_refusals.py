"""A refused request has changed nothing: what it would have interrupted runs on, and what was reserved is given back."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import product

import pytest
from relay.test_relay import HELLO, ONE, OTHER, Upstream, code_of, ended
from support.waiting import until

from ws_chat import ChatError
from ws_chat.protocol.frames import Chat, Done, Start
from ws_chat.relay import relay as relay_module
from ws_chat.relay.access import Quota
from ws_chat.relay.conversation import encode_request
from ws_chat.relay.relay import Relay
from ws_chat.stores.base import LogExistsError
from ws_chat.stores.memory import MemoryStore
from ws_chat.stores.redis.store import RedisStore

pytestmark = pytest.mark.anyio

R1 = ONE.key("r1", named=True)
LONG = [{"role": "user", "content": "x" * 1000}]
DONE = Done("r1", 1, "cancelled", None, "m", None, {"ttft_ms": None, "total_ms": 1.0})


class SharedStore(MemoryStore):
    """A store with other processes, one of which may run r1. `fail` is raised by `create`."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = []
        self.fail: Exception | None = None

    async def cancel(self, key):
        self.cancelled.append(key)

    async def create(self, key, start, request):
        if self.fail:
            raise self.fail
        return await super().create(key, start, request)

    async def create_elsewhere(self, chat: Chat) -> None:
        await super().create(ONE.key(chat.id, named=True), Start(chat.id, 0, "m"), encode_request(chat, b""))


@pytest.fixture
async def upstream():
    return Upstream()


@pytest.fixture
async def store():
    return SharedStore()


def chat(generation_id: str | None = None, *, previous: bool = False, messages=HELLO, **fields) -> Chat:
    """Return a chat that interrupts r1, if it has to follow a `previous` one."""
    return Chat.of({"messages": messages}, id=generation_id, previous_id="r1" if previous else None, **fields)


def nothing_is_reserved(relay) -> bool:
    runner = relay._runner
    running = Counter("anonymous" for _ in runner._running)
    locked = [lock for lock in relay._starting.values() if lock.locked()]
    return not runner._reserved and runner._of_principals == running and not locked


LIMITS = {
    "too_large": {"max_bytes": 1000},
    "too_many_generations": {"max_generations_per_principal": 1},
    "overloaded": {"max_generations": 1},
    "rate_limited": {"quota": 1},
    "model_not_allowed": {"models": ["m-*"]},
    "draining": {},
    "id_conflict": {},
    "not_found": {},
}


FREED = {"too_many_generations", "overloaded"}
"""What a request that interrupts one of this process is not refused for: that frees a place."""


@pytest.mark.parametrize(
    ("code", "where"), [*product(LIMITS, ["elsewhere"]), *product(sorted(LIMITS.keys() - FREED), ["here"])]
)
async def test_what_a_refused_request_would_have_interrupted_runs_on(code, where, upstream, store):
    limits = dict(LIMITS[code])
    quota = Quota(limits.pop("quota", None))
    relay = Relay(upstream, store, quota=quota, **limits)
    refused = chat("r2", previous=True)
    if where == "here":
        await relay.start(ONE, "r1", chat("r1"))
    else:
        await store.create_elsewhere(chat("r1"))
        if code in {"too_many_generations", "overloaded", "rate_limited"}:
            await relay.start(ONE, "r0", chat("r0"))
    running = relay.running
    match code:
        case "too_large":
            refused = chat("r2", previous=True, messages=LONG)
        case "model_not_allowed":
            refused = chat("r2", previous=True, model="n-1")
        case "draining":
            relay.draining = True
        case "id_conflict":
            await store.create_elsewhere(chat("r2", messages=LONG))
        case "not_found":
            refused = Chat.of({"messages": HELLO}, id="r2", previous_id="r9")

    assert await code_of(relay.start(ONE, refused.id or "r2", refused)) == code

    assert (await store.get(R1)).terminal is None
    assert not store.cancelled
    assert not [run for run in relay._runner._running.values() if run.task.cancelling()]
    assert relay.running == running
    assert nothing_is_reserved(relay)
    assert code == "id_conflict" or await store.get(ONE.key("r2", named=True)) is None
    await relay.close()


async def test_a_refused_request_counts_towards_no_quota(upstream, store):
    relay = Relay(upstream, store, quota=Quota(3), max_bytes=1000, models=["m-*"])
    await relay.start(ONE, "r1", chat("r1"))
    for refused, code in [
        (chat("r2", previous=True, messages=LONG), "too_large"),
        (chat("r2", model="n-1"), "model_not_allowed"),
        (Chat.of({"messages": HELLO}, previous_id="r9"), "not_found"),
        (chat("r1", messages=LONG), "id_conflict"),
    ]:
        assert await code_of(relay.start(ONE, refused.id or "r2", refused)) == code
    store.fail = ChatError("overloaded", "The shared log cannot be reached.", retry_after=1)
    for _ in range(3):
        assert await code_of(relay.start(ONE, "r2", chat("r2"))) == "overloaded"
    store.fail = None
    await relay.start(ONE, "r2", chat("r2"))
    await relay.start(ONE, "r3", chat())
    assert await code_of(relay.start(ONE, "r4", chat())) == "rate_limited"
    await relay.start(ONE, "r2", chat("r2"))  # sent again
    await relay.close()


async def test_other_models_and_servers_are_refused_beside_a_list_of_models(upstream, store):
    relay = Relay(upstream, store, models=["m-*"])
    for field in ("models", "fallbacks", "api_base", "extra_body"):
        with pytest.raises(ChatError, match=f'"{field}"') as caught:
            await relay.start(ONE, "r1", Chat.of({"messages": HELLO, field: ["n-1"]}, model="m-1"))
        assert (caught.value.info.code, caught.value.info.param) == ("model_not_allowed", field)
    await relay.close()

    relay = Relay(upstream, store)
    await relay.start(ONE, "r1", Chat.of({"messages": HELLO, "models": ["n-1"]}))
    await relay.close()


async def test_a_quota_that_replicas_share_is_given_back_too(shared):
    one, other = RedisStore([shared.url]), RedisStore([shared.url])
    quota, same = Quota(1, one.counters), Quota(1, other.counters)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with quota.counted("a"):
                raise RuntimeError
    async with same.counted("a"):
        pass
    assert await code_of(quota.counted("a").__aenter__()) == "rate_limited"
    for store in (one, other):
        await store.close()


async def test_waiting_for_an_interrupted_generation_is_bounded(upstream, store, monkeypatch):
    monkeypatch.setattr(relay_module, "START_TIMEOUT", 0.01)
    relay = Relay(upstream, store, quota=Quota(1), max_generations=1)
    await store.create_elsewhere(chat("r1"))

    with pytest.raises(ChatError) as refused:
        await relay.start(ONE, "r2", chat("r2", previous=True))

    assert (refused.value.info.code, refused.value.info.retry_after) == ("overloaded", 1)
    assert store.cancelled == [R1]
    assert not (await store.get(R1))._watchers
    assert nothing_is_reserved(relay)
    monkeypatch.setattr(relay_module, "START_TIMEOUT", 60)
    await relay.start(ONE, "r2", chat("r2"))
    await relay.close()


async def test_one_that_another_process_runs_is_interrupted(upstream, store):
    relay = Relay(upstream, store)
    await store.create_elsewhere(chat("r1"))
    log = await store.get(R1)
    start = asyncio.create_task(relay.start(ONE, "r2", chat("r2", previous=True)))
    await until(lambda: store.cancelled, "r1 to be cancelled")
    log.append([b'{"content":"late"}'])
    log.end(DONE)
    await start
    await until(lambda: upstream.requests, "r2 to run")
    assert upstream.requests[0]["messages"] == [*HELLO, {"role": "assistant", "content": "late"}, *HELLO]
    await relay.close()


async def test_a_client_that_goes_while_it_interrupts_leaves_nothing_reserved(upstream, store):
    relay = Relay(upstream, store, quota=Quota(1))
    await store.create_elsewhere(chat("r1"))
    start = asyncio.create_task(relay.start(ONE, "r2", chat("r2", previous=True)))
    await until(lambda: store.cancelled, "r1 to be cancelled")
    start.cancel()
    await asyncio.wait([start])
    assert nothing_is_reserved(relay)
    await relay.start(ONE, "r3", chat())
    await relay.close()


async def test_a_place_is_held_while_a_log_is_created(upstream, store):
    go = asyncio.Event()
    create = store.create

    async def slow(*arguments):
        await go.wait()
        return await create(*arguments)

    store.create = slow
    relay = Relay(upstream, store, max_generations=1)
    start = asyncio.create_task(relay.start(ONE, "r1", chat("r1")))
    await until(lambda: relay._runner._reserved, "r1 to hold its place")
    assert await code_of(relay.start(OTHER, "r2", chat())) == "overloaded"
    assert await code_of(relay.start(OTHER, "r3", chat("r3"))) == "overloaded"
    go.set()
    await start
    assert relay.running == 1
    await relay.close()


async def test_what_another_process_creates_at_the_same_instant_is_followed(upstream, store):
    relay = Relay(upstream, store, quota=Quota(1))
    found = iter([None])
    get = store.get

    async def late(key, after=0):
        for nothing in found:
            return nothing
        return await get(key, after)

    store.get = late
    store.fail = LogExistsError()
    await store.create_elsewhere(chat("r1"))
    log = await relay.start(ONE, "r1", chat("r1"))
    assert log is await get(R1)
    store.fail = None
    upstream.go.set()
    await ended(await relay.start(ONE, "r2", chat()))
    assert nothing_is_reserved(relay)
    await relay.close()
