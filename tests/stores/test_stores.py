"""One contract, every store."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster
from support.processes import redis_cluster, redis_server
from support.service import Nothing
from support.waiting import until

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import DIGEST_SIZE, Done, Failed, Start
from ws_chat.stores.base import HEAD_LIMIT, GenerationKey, LogEndedError, LogExistsError, rest_of
from ws_chat.stores.memory import PART_SIZE, MemoryLog, MemoryStore
from ws_chat.stores.redis.store import RedisStore

pytestmark = pytest.mark.anyio

DONE = Done("r1", 4, "completed", "stop", "m", None, {"ttft_ms": None, "total_ms": 1.0})
A, B, C = (encode_delta({"content": letter}) for letter in "abc")


def named(generation_id: str) -> GenerationKey:
    return GenerationKey("anonymous", generation_id, named=True)


K1 = named("r1")


@pytest.fixture(scope="module")
async def redis_urls():
    """One Redis, and a cluster of which two nodes are named."""
    async with redis_server() as one, redis_cluster() as nodes:
        yield {"redis": [one.url], "cluster": [node.url.replace("://", "+cluster://") for node in nodes[:2]]}


async def empty(url: str) -> None:
    kind = RedisCluster if "+cluster" in url else Redis
    async with kind.from_url(url.replace("+cluster", "")) as client:
        await client.flushall()


@pytest.fixture(params=["memory", "redis", "cluster"])
async def store(request, redis_urls, windows):
    if request.param == "memory":
        yield MemoryStore()
        return
    store = RedisStore(redis_urls[request.param])
    await store.open(Nothing())
    yield store
    await store.close()
    for url in set(redis_urls[request.param]):
        await empty(url)


async def end(log) -> None:
    over = asyncio.Event()
    log.end(DONE, lambda _: over.set())
    await over.wait()


async def test_a_log_is_read_after_any_seq(store):
    log = await store.create(K1, Start("r1", 0, "m", "e1"), b"{}")
    assert (log.start, log.last, log.terminal) == (Start("r1", 0, "m", "e1"), 0, None)
    assert list(log.after(0, 10)) == []

    log.append([A, B])
    log.append([C])
    await end(log)

    assert [list(log.after(seq, 10)) for seq in range(5)] == [[A, B, C], [B, C], [C], [], []]
    assert list(log.after(0, 2)) == [A, B]
    assert (log.last, log.terminal) == (3, DONE)


async def test_every_write_wakes_every_reader_at_once(store):
    log = await store.create(K1, Start("r1", 0, "m"), b"{}")
    seen: list[tuple[str, int, list, bool]] = []

    def watch(name):
        def wake(last, deltas):
            assert last == log.last
            seen.append((name, last, list(deltas), log.terminal is not None))

        return wake

    first, second = watch("first"), watch("second")
    log.watch(first)
    log.watch(second)
    log.append([A])
    log.unwatch(first)
    log.unwatch(first)
    log.append([B, C])
    await end(log)

    assert seen == [
        ("first", 1, [A], False),
        ("second", 1, [A], False),
        ("second", 3, [B, C], False),
        ("second", 3, [], True),
    ]


async def test_a_reader_may_leave_while_it_is_woken(store):
    log = await store.create(K1, Start("r1", 0, "m"), b"{}")
    woken = []

    def leave(*_):
        log.unwatch(leave)
        woken.append("leave")

    log.watch(leave)
    log.watch(lambda *_: woken.append("stay"))
    log.append([A])
    log.append([B])

    assert woken == ["leave", "stay", "stay"]


async def test_nothing_is_written_after_the_end(store):
    log = await store.create(K1, Start("r1", 0, "m"), b"{}")
    log.append([A])
    await end(log)

    with pytest.raises(LogEndedError):
        log.append([B])
    with pytest.raises(LogEndedError):
        log.end(DONE)
    assert (list(log.after(0, 10)), log.last) == ([A], 1)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_long_log_is_read_part_by_part(store, ended):
    log = await store.create(K1, Start("r1", 0, "m"), b"{}")
    deltas = [encode_delta({"content": f"{number} ", "x": [None, {"y": number}]}) for number in range(1600)]
    for at in range(0, 1600, 300):
        log.append(deltas[at : at + 300])
    if ended:
        await end(log)

    assert log.size >= sum(map(len, deltas))
    for seq in (0, 1, 511, 512, 513, 1024, 1088, 1599, 1600, 2000):
        read = []
        while part := log.after(seq + len(read), 100):
            assert len(part) <= 100
            read += part
        assert read == deltas[seq:]


async def test_few_large_deltas_are_packed_together(store):
    log = await store.create(K1, Start("r1", 0, "m"), b"{}")
    deltas = [encode_delta({"content": "x" * (number * 40 % 9000)}) for number in range(1, 700)]
    log.append(deltas)
    await end(log)

    assert max(len(part.lines) for part in log._parts) < PART_SIZE + 9100
    read = []
    while part := log.after(len(read), 1000):
        read += part
    assert read == deltas


TEXT = st.builds(lambda text: {"content": text}, st.text('\\\n"{}:,c', min_size=1))
FIELDS = st.dictionaries(
    st.text('"}:\n{c', max_size=3), st.text('"}:\n{', max_size=4) | st.none() | st.lists(TEXT), min_size=1
)


@given(st.lists(TEXT | FIELDS, min_size=1).map(lambda found: [*map(msgspec.json.encode, found)]), st.integers(1, 40))
def test_packed_deltas_are_the_same_bytes(deltas, limit):
    log = MemoryLog(Start("r1", 0, "m"))
    log.append(deltas)
    log.end(DONE)
    read = []
    while part := log.after(len(read), limit):
        read += part
    assert read == deltas
    assert log.size == sum(map(len, deltas))


@pytest.mark.parametrize("name", ["content", "reasoning_content"])
def test_packed_text_takes_little_more_than_its_characters(name):
    log = MemoryLog(Start("r1", 0, "m"))
    log.append([encode_delta({name: "12345"})] * 600)
    log.end(DONE)
    assert log.packed_size < 600 * 6


async def test_logs_are_found_by_key(store):
    log = await store.create(K1, Start("r1", 0, "m"), b'{"a":1}')

    assert await store.get(K1) is log
    assert log.request == b'{"a":1}'
    assert await store.get(K1._replace(named=False)) is None
    with pytest.raises(LogExistsError):
        await store.create(K1, Start("r1", 0, "m"), b"{}")
    unnamed = K1._replace(named=False)
    await store.create(unnamed, Start("r1", 0, "m"), b"{}")
    store.remove(unnamed)
    store.remove(unnamed)
    assert await store.get(unnamed) is None
    assert await store.get(K1) is log


async def gone(store, key: GenerationKey) -> None:
    async def forgotten() -> bool:
        return await store.get(key) is None

    await until(forgotten, f"{key} to be forgotten")


async def test_an_ended_log_is_forgotten_at_once(store):
    log = await store.create(K1, Start("r1", 0, "m"), b"d" * DIGEST_SIZE + b"[]")
    log.append([A, B, C])
    await end(log)
    await store.forget(K1)

    assert await store.get(K1) is None
    assert list(log.after(0, 3)) == [A, B, C], "its readers read on"
    await store.forget(K1)
    assert await store.create(K1, Start("r1", 0, "m"), b"{}")


@pytest.mark.parametrize("echo", [b'{"a":1}', b'{"a":"%b"}' % (b"x" * HEAD_LIMIT)])
async def test_a_request_is_the_same_at_another_replica(stores, echo):
    one, other = stores
    request = b"d\n" * 8 + echo + b'\n[{"role":"user","content":"hi"}]'
    log = await one.create(K1, Start("r1", 0, "m"), request)
    copy = await other.get(K1)
    assert copy.request == request
    copy.watch(lambda *_: None)
    failed = Failed("r1", 1, ErrorInfo.of("upstream_rejected", "no"))
    log.end(failed)
    await until(lambda: copy.terminal, "the end")
    again = await other.get(K1)

    assert log.request == again.request == rest_of(request)
    assert len(again.request) <= HEAD_LIMIT


async def test_an_ended_log_is_forgotten_by_any_replica(stores):
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"")
    copy = await other.get(K1)
    copy.watch(lambda *_: None)
    log.append([A, B, C])
    await end(log)
    await other.forget(K1)

    assert await other.get(K1) is None
    await gone(one, K1)
    await until(lambda: copy.terminal, "the end of the copy that is read")


async def test_an_ended_log_is_forgotten_after_the_retention():
    store = MemoryStore(retention=0.01)
    running = await store.create(named("running"), Start("r0", 0, "m"), b"")
    for key in map(named, ("k1", "k2")):
        log = await store.create(key, Start("r1", 0, "m"), b"{}")
        log.append([A])
        log.end(DONE)
    assert store.kept_bytes > 0

    await gone(store, named("k1"))
    await gone(store, named("k2"))
    assert (store.kept_bytes, store.evicted) == (0, 0)
    assert await store.get(named("running")) is running
    assert list(log.after(0, 10)) == [A], "whoever reads it reads on"


async def test_memory_has_a_bound_and_the_oldest_end_goes_first():
    store = MemoryStore(limit=300_000)
    logs = [await store.create(named(f"k{number}"), Start("r1", 0, "m"), b"x" * 100_000) for number in range(4)]
    for number in (1, 0, 2, 3):
        logs[number].end(DONE)

    assert [await store.get(named(f"k{number}")) is not None for number in range(4)] == [False, False, True, True]
    assert store.evicted == 2
    assert 200_000 < store.kept_bytes <= 300_000
    store.remove(named("k2"))
    store.remove(named("k3"))
    assert store.kept_bytes == 0
    await store.close()


async def test_a_log_that_was_forgotten_while_it_ran_is_not_kept():
    store = MemoryStore()
    log = await store.create(K1, Start("r1", 0, "m"), b"")
    store.remove(K1)
    log.end(DONE)

    assert await store.get(K1) is None
    assert store.kept_bytes == 0


async def keep(
    store: MemoryStore, owner: str, generation_id: str, size: int, *, is_named: bool = True
) -> GenerationKey:
    key = GenerationKey(owner, generation_id, named=is_named)
    (await store.create(key, Start(generation_id, 0, "m"), b"x" * size)).end(DONE)
    return key


async def test_what_one_principal_keeps_evicts_nothing_of_another():
    evicted = []
    store = MemoryStore(limit=100_000)
    store.on_evict = lambda: evicted.append(store.kept_bytes)
    alice = [await keep(store, "alice", f"r{number}", 10_000) for number in range(2)]
    bob = [await keep(store, "bob", f"r{number}", 10_000) for number in range(40)]
    over = [await keep(store, f"eve/{number}", "r1", 10_000, is_named=False) for number in range(40)]

    assert [await store.get(key) is not None for key in alice] == [True, True]
    assert [await store.get(key) is not None for key in (*bob, *over)].count(True) < 8
    assert await store.get(bob[-1])
    assert await store.get(over[-1])
    assert len(evicted) == store.evicted > 70
    for key in (*alice, *bob, *over):
        store.remove(key)
    assert (store.kept_bytes, store._shares) == (0, {})


async def test_only_the_error_is_kept_of_what_failed_before_its_first_delta():
    store = MemoryStore(limit=100_000)
    paid = await keep(store, "alice", "r0", 50_000)
    failed = Failed("r1", 1, ErrorInfo.of("upstream_rejected", "no"))
    for number in range(20):
        key = GenerationKey("alice", f"f{number}", named=True)
        log = await store.create(key, Start(key.id, 0, "m"), b"d" * DIGEST_SIZE + b"x" * 50_000)
        log.end(failed)

    assert await store.get(paid)
    assert (log.request, log.terminal) == (b"d" * DIGEST_SIZE, failed)
    assert store.evicted == 0
