"""Replicas that die, that are cut off and come back, and a Redis that goes away: nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from end_to_end.test_replicas import begin, begin_elsewhere, shard_of, until_read_elsewhere
from support.processes import program
from support.replicas import SHARD, lapse, setting
from support.service import HELLO, Socket, events, joined
from support.waiting import until
from websockets.asyncio.client import connect

from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def replica(fake, shared, **variables: str):
    """Run a replica in a process of its own, whose lease does not lapse by itself."""
    environment = {
        "OPENAI_BASE_URL": fake.base_url,
        "OPENAI_API_KEY": "sk-test",
        "WS_CHAT_REDIS_URL": shared.url,
        "WS_CHAT_DRAIN_TIMEOUT": "0",
        **setting({"redis.lease.LEASE": 600_000, "redis.connection.PATIENCE": 600, "redis.journal.END_PATIENCE": 600}),
    }
    async with program("ws-chat", "serve", "--port", "0", **environment, **variables) as running:
        yield running, f"ws://127.0.0.1:{await running.port()}/v1/chat/ws"


@pytest.fixture
async def other(shared, serve, windows):
    """The replica that stays, which takes one without a lease for dead at once."""
    windows("redis.connection.STEADY", 0.0)
    return await serve(redis_urls=shared.url)


async def kill(running, redis, other) -> None:
    """Kill a replica and let its lease lapse, as it does in time."""
    os.kill(running.process.pid, signal.SIGKILL)
    await running.process.wait()
    assert len(await lapse(redis, {other.relay._store.replica})) == 1


async def stop(running, redis, other) -> None:
    """Stop a replica for a while, in which its lease lapses."""
    os.kill(running.process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{running.process.pid}/stat")
    await until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "the replica to be stopped")
    assert len(await lapse(redis, {other.relay._store.replica})) == 1


def hold_renewals(service) -> asyncio.Event:
    """Let a replica renew its lease no more, until the event is set."""
    go, lease = asyncio.Event(), shard_of(service)._lease
    renew = lease.renew

    async def held() -> None:
        await go.wait()
        await renew()

    lease.renew = held
    return go


async def follow(service, generation_id: str = "r1") -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.get(f"{service.stream_url}/{generation_id}?format=frames")


async def ready(service) -> int:
    async with httpx.AsyncClient(timeout=None) as client:
        return (await client.get(f"{service.url}/readyz")).status_code


async def until_ready(service, status: int) -> None:
    async def reached() -> bool:
        return service.relay._store.available == (status == 200) and await ready(service) == status

    await until(reached, f"status {status} of /readyz of {service.url}")


async def until_there(redis, generation_id: str = "r1") -> None:
    """Wait until Redis has a generation (again)."""
    await until(lambda: redis.exists(f"{SHARD}named/anonymous/{generation_id}"), f"{generation_id} to be in Redis")


@pytest.mark.parametrize("followed", [True, False])
async def test_what_a_killed_replica_ran_is_lost_after_all_that_it_had_logged(followed, shared, redis, other, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with replica(fake, shared) as (running, url), other.socket() as elsewhere:
        async with connect(url) as connection:
            await begin(Socket(connection))
            if followed:
                await begin_elsewhere(elsewhere)
            (dead,) = {name.decode() for name in await redis.smembers(f"{SHARD}replicas")} - {
                other.relay._store.replica
            }
            await until(lambda: redis.exists(f"{SHARD}journal:{dead}"), "the delta to be in the journal")
            await kill(running, redis, other)
        if not followed:
            await begin_elsewhere(elsewhere)
        failed = await elsewhere.receive()
        assert (failed["error"]["code"], failed["error"]["retryable"], failed["seq"]) == ("generation_lost", True, 2)
        await elsewhere.send({"type": "resume", "id": "r1", "after": 3})
        assert (await elsewhere.until_end())[1:] == [failed], "shown, but not logged"
    frames = [json.loads(event["data"]) for event in events((await follow(other)).content)]
    assert (joined(frames), frames[-1]) == ("a", failed)

    name = other.relay._store.replica
    may_stay = {"replicas", f"lease:{name}", f"journal:{name}", f"inbox:{name}", "named/anonymous/r1"}

    async def forgotten() -> bool:
        left = {key.decode().removeprefix(SHARD) for key in await redis.keys()}
        return left <= may_stay and await redis.scard(f"{SHARD}replicas") == 1

    await until(forgotten, "all of the dead replica but what it had logged to be removed")
    assert await redis.pttl(f"{SHARD}named/anonymous/r1") > 0, "and that expires"


async def test_one_that_was_cut_off_and_comes_back_is_told_the_end(shared, redis, other, fake):
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.default = Reply([first, Wait(go), *rest])
    async with replica(fake, shared) as (running, url), connect(url) as connection, other.socket() as elsewhere:
        await begin(Socket(connection))
        await begin_elsewhere(elsewhere)
        await stop(running, redis, other)
        try:
            lost = await elsewhere.receive()
            assert lost["error"]["code"] == "generation_lost"
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        assert await Socket(connection).receive() == lost
        go.set()
        assert joined(await Socket(connection).chat(id="r2")) == "ab", "and it works on"
        assert joined([json.loads(event["data"]) for event in events((await follow(other, "r2")).content)]) == "ab"


async def test_without_redis_what_runs_runs_on_and_what_is_unnamed_works(shared, serve, fake):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    go = asyncio.Event()
    first, second, *rest = text("a", "b", "c")[1:]
    middle = asyncio.Event()
    fake.reply([first, Wait(middle), second, Wait(go), *rest])
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        assert await ready(one) == 200
        await shared.stop()
        await until_ready(one, 503)
        middle.set()
        assert (await socket.receive())["content"] == "b", "its own readers read on"
        assert joined(await other.frames()) == "Hello", "unnamed ones work"
        for request in (
            {"messages": HELLO, "id": "r2"},
            {"type": "resume", "id": "r9"},
            {"type": "cancel", "id": "r9"},
        ):
            refused = await elsewhere.ask(request)
            assert (refused["error"]["code"], refused["error"]["retryable"]) == ("overloaded", True)
        response = await one.post({"messages": HELLO, "id": "r2"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert [request.body["messages"] for request in fake.requests] == [HELLO] * 2
        await shared.start()
        await until_ready(one, 200)
        await until_ready(other, 200)
        go.set()
        tokens = await socket.until_end()
        assert (joined(tokens), tokens[-1]["status"], tokens[-1]["seq"]) == ("c", "completed", 4)
        tokens = await elsewhere.until_end()
        assert (joined(tokens), tokens[-1]["status"], tokens[-1]["seq"]) == ("bc", "completed", 4)
    for service in (one, other):
        frames = [json.loads(event["data"]) for event in events((await follow(service)).content)]
        assert (joined(frames), frames[-1]["status"]) == ("abc", "completed")
    assert joined(await one.frames(id="r3")) == "Hello"


async def test_a_redis_that_hangs_for_longer_than_a_lease_makes_nobody_dead(shared, redis, serve, fake, windows):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    for service in (one, other):
        shard_of(service)._link._since -= 1000  # Redis has been there for longer than STEADY
    go = asyncio.Event()
    first, *rest = text("a", "b", "c")[1:]
    fake.reply([first, Wait(go), *rest])
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        await until_read_elsewhere(one)
        windows("redis.connection.PATIENCE", 0.2)
        shared.pause()
        await until_ready(one, 503)
        await until_ready(other, 503)
        windows("redis.connection.PATIENCE", 600.0)
        renew = hold_renewals(other)
        shared.pause(over=True)
        await lapse(redis, set())
        # The first one finds Redis again, and the other without a lease, before the other finds it.
        await until_ready(one, 200)
        (log,) = shard_of(one)._journal.logs
        await until(lambda: not log.watchers, "a replica to see the other without a lease")
        renew.set()
        await until_ready(other, 200)
        await until_read_elsewhere(one)
        go.set()
        for reader in (socket, elsewhere):
            *tokens, done = await reader.until_end()
            assert (joined(tokens), done["type"], done.get("status")) == ("bc", "done", "completed")


async def test_an_end_waits_for_redis_and_is_told_once_it_is_logged(shared, serve, fake):
    one = await serve(redis_urls=shared.url)
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.reply([first, Wait(go), *rest])
    async with one.socket() as socket:
        await begin(socket)
        (log,) = shard_of(one)._journal.logs
        await shared.stop()
        await until_ready(one, 503)
        go.set()
        assert (await socket.receive())["content"] == "b"
        await until(lambda: log.ending, "the generation to end")
        assert (await socket.ask({"type": "ping"}))["type"] == "pong", "no end yet"
        await shared.start()
        assert (await socket.receive())["status"] == "completed"


async def test_an_end_that_cannot_be_logged_is_a_loss(shared, serve, fake, windows):
    windows("redis.journal.END_PATIENCE", 0.05)
    one = await serve(redis_urls=shared.url)
    async with one.socket() as socket:
        go = asyncio.Event()
        first, *rest = text("a", "b")[1:]
        fake.reply([first, Wait(go), *rest])
        await begin(socket)
        await shared.stop()
        go.set()
        *_, failed = await socket.until_end()
        assert (failed["error"]["code"], failed["seq"]) == ("generation_lost", 3)
        await shared.start()
        await until(lambda: not shard_of(one)._journal.logs, "the loss to be logged")
        frames = [json.loads(event["data"]) for event in events((await follow(one)).content)]
        assert frames[-1] == failed


async def test_who_reads_elsewhere_is_told_that_redis_stays_away_and_finds_it_all_later(
    serve, shared, redis, fake, windows
):
    windows("redis.shard.AWAY", 0.05)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.reply([first, Wait(go), *rest])
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        await shared.stop()
        failed = await elsewhere.receive()
        assert (failed["error"]["code"], failed["error"]["retryable"], failed["seq"]) == ("overloaded", True, 2)
        windows("redis.shard.AWAY", 600.0)
        await shared.start()
        await until_ready(other, 200)
        await until_ready(one, 200)
        await until_there(redis)
        await elsewhere.send({"messages": HELLO, "id": "r1"})
        go.set()
        for reader, said in ((socket, "b"), (elsewhere, "ab")):
            *tokens, done = await reader.until_end()
            assert (joined(tokens), done.get("status")) == (said, "completed"), done
    assert len(fake.requests) == 1


async def test_who_is_told_so_is_counted_out_as_a_reader(shared, redis, serve, fake, windows):
    windows("redis.shard.AWAY", 0.05)
    one, other = await serve(redis_urls=shared.url, resume_window=0.05), await serve(redis_urls=shared.url)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with other.socket() as elsewhere:
        async with one.socket() as socket:
            await begin(socket)
            await begin_elsewhere(elsewhere)
            await until_read_elsewhere(one)
        await redis.config_set("maxmemory", "1")  # all is kept, leases too, and nothing is taken
        assert (await elsewhere.receive())["error"]["code"] == "overloaded"
        await redis.config_set("maxmemory", "0")
        await (await fake.request()).closed.wait()


async def test_a_replica_starts_without_redis_and_is_ready_when_it_comes(shared, serve, fake):
    await shared.stop()
    one = await serve(redis_urls=shared.url)
    assert await ready(one) == 503
    assert joined(await one.frames()) == "Hello"
    await shared.start()
    await until_ready(one, 200)
    assert joined(await one.frames(id="r1")) == "Hello"


async def test_requests_are_counted_by_all_replicas_together(shared, serve, fake, monkeypatch):
    monkeypatch.setattr("limits.aio.storage.memory.time", SimpleNamespace(time=lambda: 0.0))  # one minute and no other
    settings = {"redis_urls": shared.url, "requests_per_minute": 3}
    one, other = await serve(**settings), await serve(**settings)
    statuses = [(await service.post()).status_code for service in (one, other, one, other)]
    assert statuses == [200, 200, 200, 429]
    await shared.stop()
    assert [(await one.post()).status_code for _ in range(4)] == [200, 200, 200, 429], "without Redis, each alone"
