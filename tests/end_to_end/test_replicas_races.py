"""Replicas at bad moments: answers of Redis that are lost, reads that stall, ends and leavings that cross."""

from __future__ import annotations

import asyncio

import pytest
from end_to_end.test_replicas import begin, begin_elsewhere, closed, over_http, shard_of, slowly, until_read_elsewhere
from end_to_end.test_replicas_lost import hold_renewals, kill, replica, until_ready
from stores.test_stores import K1, end, named
from support.replicas import SHARD
from support.service import HELLO, Nothing, Socket, events
from support.waiting import until
from websockets.asyncio.client import connect

from ws_chat import ChatError
from ws_chat.protocol.frames import Start
from ws_chat.stores.redis import journal as redis_journal
from ws_chat.stores.redis.connection import cancel
from ws_chat.stores.redis.names import RESTORE, redis_name
from ws_chat.stores.redis.store import RedisStore
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio


def lose_the_answer(link, script: str) -> None:
    """Let Redis run a script, and nobody hear of it, once."""
    run = link.run

    async def lossy(what, *arguments):
        answer = await run(what, *arguments)
        if what is script:
            link.run = run
            raise ChatError("overloaded", "lost", retry_after=1)
        return answer

    link.run = lossy


async def test_a_start_whose_answer_was_lost_can_be_sent_to_another_replica(shared, serve, fake, windows):
    windows("redis.subscription.TOLD", 0.2)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    lose_the_answer(shard_of(one)._link, redis_journal.CREATE)
    assert (await one.post({"messages": HELLO, "id": "r1"})).status_code == 503

    async def taken() -> bool:
        response = await other.post({"messages": HELLO, "id": "r1"})
        assert response.status_code in (200, 503)
        return response.status_code == 200

    await until(taken, "the other replica to take it")
    assert len(fake.requests) == 1


async def test_of_two_sends_whose_start_was_lost_none_is_a_bug_of_ours(shared, serve, fake):
    one = await serve(redis_urls=shared.url)
    lose_the_answer(shard_of(one)._link, redis_journal.CREATE)
    answers = await asyncio.gather(*(one.post({"messages": HELLO, "id": "r1"}) for _ in range(2)))
    assert {answer.status_code for answer in answers} <= {200, 503}


async def test_the_end_of_a_lost_generation_can_be_resumed_at(shared, redis, serve, fake, windows):
    windows("redis.connection.STEADY", 0.0)
    other = await serve(redis_urls=shared.url)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with replica(fake, shared) as (running, url), other.socket() as elsewhere:
        async with connect(url) as connection:
            await begin(Socket(connection))
            await begin_elsewhere(elsewhere)
            await kill(running, redis, other)
        failed = await elsewhere.receive()
        await elsewhere.send({"type": "resume", "id": "r1", "after": failed["seq"]})
        start = await elsewhere.receive()
        epoch = start["epoch"]
        assert [start["seq"], await elsewhere.receive()] == [failed["seq"], failed]
        response = await over_http("GET", other, query=f"?after={failed['seq']}")
        (again,) = events(response.content)
        assert (response.status_code, again["event"], again["id"]) == (200, "error", f"{failed['seq']}-{epoch}")


async def test_a_lease_that_is_not_renewed_lapses(shared, windows):
    windows("redis.connection.STEADY", 0.0)
    windows("redis.lease.LEASE", 50)
    one, other = RedisStore([shared.url]), RedisStore([shared.url])
    await one.open(Nothing())
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    log.append([{"content": "a"}])
    await until(lambda: log.journalled, "the delta to be in the journal")
    await cancel(one._shards[0]._tasks)  # as if it were dead
    windows("redis.lease.LEASE", 600_000)
    await other.open(Nothing())
    lost = await other.get(K1)
    if lost.terminal is None:
        over = asyncio.Event()
        lost.watch(lambda *_: over.set())
        await over.wait()
    assert (list(lost.after(0, 9)), lost.terminal.error.code) == ([{"content": "a"}], "generation_lost")
    for store in (one, other):
        await store.close()


async def test_who_reads_nothing_for_a_moment_misses_no_end(stores):
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    log.append([{"content": "a"}])
    copy = await other.get(K1)
    copy.watch(lambda *_: None)
    link, stalling, go = other._shards[0]._link, asyncio.Event(), asyncio.Event()
    read = link.read

    async def stalled(positions):
        stalling.set()
        await go.wait()
        return await read(positions)

    link.read = stalled
    await stalling.wait()
    await end(log)
    for number in range(10):  # more than a node of a stream, which is what Redis trims by
        another = await one.create(named(f"x{number}"), Start("x", 0, "m"), b"{}")
        another.append([{"content": "x" * 6000}])
        await until(lambda another=another: another.journalled, "the delta to be in the journal")
        await end(another)
    go.set()
    await until(lambda: copy.terminal, "the end in the copy")


async def test_readers_elsewhere_count_again_after_redis_has_forgotten_everything(shared, redis, serve, fake):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b")
    async with other.socket() as elsewhere:
        async with one.socket() as socket:
            await begin(socket)
            await begin_elsewhere(elsewhere)
            await until_read_elsewhere(one)
        renew = hold_renewals(other)
        await redis.flushall()
        (log,) = shard_of(one)._journal.logs
        await until(lambda: not log.watchers, "a replica to see the other without a lease")
        renew.set()
        await until_read_elsewhere(one)
        go.set()
        assert (await elsewhere.until_end())[-1].get("status") == "completed"


async def test_who_leaves_while_redis_is_away_is_counted_out_later(shared, serve, fake, windows):
    windows("redis.subscription.LINGER", 0.05)
    settings = {"redis_urls": shared.url, "resume_window": 0.05}
    one, other = await serve(**settings), await serve(**settings)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with one.socket() as socket:
        await begin(socket)
        async with other.socket() as elsewhere:
            await begin_elsewhere(elsewhere)
            await until_read_elsewhere(one)
            await shared.stop()
            await until_ready(other, 503)
        await until(lambda: shard_of(other)._leaving, "the copy to be left")
        await shared.start()
        await until_ready(one, 200)
        await until_ready(other, 200)
    await closed(fake)
    await until(lambda: not one.relay.running, "the generation to end")


async def test_interrupting_elsewhere_waits_for_the_end_however_slow_redis_is(shared, serve, fake, windows):
    windows("redis.subscription.LINGER", 0.05)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.reply([*text("a")[:2], Hang()])
    following = shard_of(other)._following
    ask = following.ask

    async def slow(log, what):
        if what == "cancel":
            await asyncio.sleep(0.2)  # longer than LINGER by the same clock: then a copy without a reader is left
        return await ask(log, what)

    following.ask = slow
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await elsewhere.send({"messages": HELLO, "previous_id": "r1", "id": "r2"})
        assert (await socket.receive())["status"] == "cancelled"
        assert (await elsewhere.receive())["type"] == "start"


async def test_a_copy_that_is_left_and_followed_again_at_once_counts_as_read(stores, redis):
    one, other = stores
    log = await one.create(K1, Start("r1", 0, "m"), b"{}")
    inbox = f"{SHARD}inbox:{one.replica}"

    async def all_taken() -> bool:
        (last,) = await redis.xrevrange(inbox, count=1)
        return one._shards[0]._following._positions[inbox] == last[0]

    for _ in range(5):
        other._shards[0]._following._leave(await other.get(K1))
        again = await other.get(K1)
        again.watch(print)
        await until(all_taken, "what was asked for to be taken")
        assert log.watchers == {other.replica}
        again.unwatch(print)
    await end(log)


async def test_nothing_is_kept_of_what_has_ended(stores):
    one, other = stores
    for number in range(20):
        log = await one.create(named(str(number)), Start("r", 0, "m"), b"{}")
        log.append([{"content": "x"}])
        found = asyncio.create_task(other.get(named(str(number))))
        await asyncio.sleep(number / 200)  # each end at another moment: the same must be left whichever it meets
        await end(log)
        await found
    journal, following = one._shards[0]._journal, other._shards[0]._following
    await until(
        lambda: not (journal._whole or journal._logs or following._logs) and len(following._positions) == 1,
        "nothing to be left but the position in the own inbox",
    )


async def test_nothing_is_kept_of_what_ends_while_it_is_restored(stores):
    shard = stores[0]._shards[0]
    log = await shard.create(K1, Start("r1", 0, "m"), b"{}")
    run = shard._link.run

    async def late(script, *arguments):
        answer = await run(script, *arguments)
        if script is RESTORE and log.terminal is None:
            await end(log)
        return answer

    shard._link.run = late
    await shard._journal.restore()
    assert not shard._journal._whole


async def test_nothing_is_kept_of_what_ends_while_an_entry_cannot_be_written(stores):
    shard = stores[0]._shards[0]
    log = await shard.create(K1, Start("r1", 0, "m"), b"{}")
    log.append([{"content": "x"}])

    call = shard._link.call

    async def away(*_):
        shard._link.call = call
        await end(log)
        raise ChatError("overloaded", "Away")

    shard._link.call = away
    with pytest.raises(ChatError):
        await shard._journal._write_entry()
    assert not shard._journal._whole


async def test_a_log_of_a_dead_replica_that_stands_nowhere_else_is_lost(stores, redis, windows):
    windows("redis.connection.STEADY", 0.0)
    _, other = stores
    start = b'{"type":"start","id":"r1","seq":0,"model":"m"}'
    await redis.hset(f"ws_chat:{{0}}:{redis_name(K1)}", mapping={"replica": "dead", "start": start, "request": b"{}"})
    log = await other.get(K1)
    assert log is None or log.terminal.error.code == "generation_lost"


async def test_a_journal_that_cannot_be_read_keeps_no_other_replica_unburied(stores, redis, windows):
    windows("redis.connection.STEADY", 0.0)
    _, other = stores
    prefix = "ws_chat:{0}:"
    for dead, entry in (
        ("bad", b"\xff"),
        ("worse", b"[]"),
        ("good", b'{"named/anonymous/good":[1,[{"content":"a"}]]}'),
    ):
        start = b'{"type":"start","id":"%s","seq":0,"model":"m"}' % dead.encode()
        key = f"named/anonymous/{dead}"
        await redis.hset(prefix + key, mapping={"replica": dead, "start": start, "request": b"{}"})
        await redis.sadd(f"{prefix}running:{dead}", key)
        await redis.xadd(f"{prefix}journal:{dead}", {"entry": entry})
        await redis.sadd(f"{prefix}replicas", dead)

    async def buried() -> bool:
        return not await redis.exists(f"{prefix}running:good")

    await until(buried, "the dead replica whose journal can be read to be buried")
    log = await other.get(named("good"))
    assert (list(log.after(0, 9)), log.terminal.error.code) == ([{"content": "a"}], "generation_lost")
