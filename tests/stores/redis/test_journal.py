"""The journal: in pieces, written anew when it is old, and found whole by whoever needs it."""

from __future__ import annotations

import asyncio

import pytest
from stores.test_stores import DONE, K1, end
from support.waiting import until

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.frames import Start
from ws_chat.stores.redis.names import redis_name

pytestmark = pytest.mark.anyio

DELTAS = [encode_delta({"content": f"{number} "}) for number in range(1000)]


async def until_it_holds(log, last: int) -> None:
    await until(lambda: log.last >= last, f"{last} deltas in the copy")


def read_all(log) -> list[bytes]:
    read = []
    while part := log.after(len(read), 500):  # as many as it likes: fewer where it was packed
        read += part
    return read


async def append(log, deltas) -> None:
    """Append deltas, each of which gets an entry of its own."""
    for delta in deltas:
        log.append([delta])
        await until(lambda: log.journalled == log.last, f"delta {log.last} to be in the journal")


async def entries(redis, store) -> dict[bytes, bytes]:
    """Return the entries of a replica's journal by id."""
    return {place: fields[b"entry"] for place, fields in await redis.xrange(f"ws_chat:{{0}}:journal:{store.replica}")}


@pytest.mark.parametrize("early", [True, False])
async def test_many_deltas_are_written_in_pieces(stores, redis, windows, early):
    windows("redis.journal.ENTRY", 300)
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    copy = await other.get(K1) if early else None
    log.append(DELTAS)
    copy = copy or await other.get(K1)
    await until_it_holds(copy, 1000)
    assert read_all(copy) == DELTAS
    if early:
        assert all(entry.count(b"content") <= 300 for entry in (await entries(redis, one)).values())
    await end(log)
    assert read_all(await other.get(K1)) == DELTAS


async def test_what_runs_for_long_is_written_anew_and_the_old_is_let_go(stores, redis, windows):
    windows("redis.journal.JOURNAL_AGE", 30)
    windows("redis.journal.KEPT", 30)
    windows("redis.journal.INTERVAL", 0.001)
    await redis.config_set("stream-node-max-entries", 1)  # Redis trims by whole nodes
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    await append(log, DELTAS[:20])
    old = await entries(redis, one)
    await asyncio.sleep(0.1)  # the age of entries is a matter of Redis' clock; older ones do no harm
    await append(log, DELTAS[20:30])
    left = await entries(redis, one)
    assert any(b'"named/anonymous/r1":[1,' in entry for entry in left.values()), "one entry has all of it"
    assert not old.keys() & left.keys(), "and the entries before it are gone"
    copy = await other.get(K1)
    await until_it_holds(copy, 30)
    assert list(copy.after(0, 1000)) == DELTAS[:30]
    await one._shards[0]._journal._link.close()  # it writes no more
    lost = await other._shards[0]._lease._journalled(one.replica, {redis_name(K1)})
    assert lost[redis_name(K1)] == DELTAS[:30]
    log.end(DONE)


async def test_when_nothing_runs_nothing_is_left_of_what_was_said(stores, redis, windows):
    one, _ = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    log.append(DELTAS)
    await end(log)
    assert await entries(redis, one)
    windows("redis.journal.KEPT", 50)

    async def gone() -> bool:
        return not await entries(redis, one)

    await until(gone, "the journal to be removed")
