"""The journal: in pieces, written anew when it is old, and found whole by whoever needs it."""

from __future__ import annotations

import asyncio

import pytest
from test_stores import DONE, K1, end

from ws_chat.frames import Start
from ws_chat.stores import redis_journal

pytestmark = pytest.mark.anyio

DELTAS = [{"content": f"{number} "} for number in range(1000)]


async def until_it_holds(log, last: int) -> None:
    async with asyncio.timeout(30):
        while log.last < last:
            await asyncio.sleep(0.01)


async def entries(redis, store) -> list[bytes]:
    return [fields[b"entry"] for _, fields in await redis.xrange(f"ws_chat:{{0}}:journal:{store.replica}")]


@pytest.mark.parametrize("early", [True, False])
async def test_many_deltas_are_written_in_pieces(stores, redis, monkeypatch, early):
    monkeypatch.setattr(redis_journal, "ENTRY", 300)
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    copy = await other.get(K1) if early else None
    log.append(DELTAS)
    copy = copy or await other.get(K1)
    await until_it_holds(copy, 1000)
    assert list(copy.after(0, 1000)) == DELTAS
    if early:
        assert all(entry.count(b"content") <= 300 for entry in await entries(redis, one))
    await end(log)
    ended = await other.get(K1)
    assert [delta for at in range(0, 1000, 500) for delta in ended.after(at, 500)] == DELTAS


async def test_what_runs_for_long_is_written_anew_and_the_old_is_let_go(stores, redis, monkeypatch):
    monkeypatch.setattr(redis_journal, "JOURNAL_AGE", 50)
    monkeypatch.setattr(redis_journal, "KEPT", 50)
    monkeypatch.setattr(redis_journal, "INTERVAL", 0.001)
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    for delta in DELTAS:
        log.append([delta])
        await asyncio.sleep(0.001)
    copy = await other.get(K1)
    await until_it_holds(copy, 1000)
    assert list(copy.after(0, 1000)) == DELTAS
    left = await entries(redis, one)
    whole = [entry for entry in left if b'"named/anonymous/r1":[1,' in entry]
    assert len(whole) > 1
    assert len(left) < 500, "of about a thousand"
    await one._shards[0]._journal._link.close()  # it writes no more
    lost = await other._shards[0]._lease._journalled(one.replica, {K1})
    assert lost[K1] == DELTAS
    log.end(DONE)


async def test_when_nothing_runs_nothing_is_left_of_what_was_said(stores, redis, monkeypatch):
    one, _ = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    log.append(DELTAS)
    await end(log)
    assert await entries(redis, one)
    monkeypatch.setattr(redis_journal, "KEPT", 50)
    async with asyncio.timeout(30):
        while await entries(redis, one):
            await asyncio.sleep(0.01)
