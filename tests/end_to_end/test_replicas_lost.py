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
from end_to_end.test_replicas import begin, begin_elsewhere, copies, own_logs, slowly, until_read_elsewhere
from support.processes import program
from support.replicas import setting
from support.service import HELLO, Socket, events, joined
from support.waiting import until
from websockets.asyncio.client import connect

from ws_chat.client import connect as connect_client
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def replica(fake, shared, **variables: str):
    """Run a replica in a process of its own, whose lease does not expire by itself."""
    held = {"redis.store.LEASE": 600_000, "redis.connection.TIMEOUT": 600, "redis.log.END_TIMEOUT": 600}
    environment = {
        "OPENAI_BASE_URL": fake.base_url,
        "OPENAI_API_KEY": "sk-test",
        "WS_CHAT_REDIS_URL": shared.url,
        "WS_CHAT_DRAIN_TIMEOUT": "0",
        **setting({**held, "redis.connection.HOLD_TTL": 1}),
    }
    async with program("ws-chat", "serve", "--port", "0", **environment, **variables) as running:
        yield running, f"ws://127.0.0.1:{await running.port()}/v1/chat/ws"


@pytest.fixture
async def other(shared, serve, windows):
    """The replica that stays, which takes one without a lease for dead soon."""
    windows("redis.store.STEADY", 0.0)
    return await serve(redis_urls=shared.url)


async def expire(redis, living: str) -> None:
    """Let the leases of all other replicas expire, as they do in time."""
    (name,) = [name for name in await redis.keys("*:lease") if living.encode() not in name]
    await redis.delete(name)


async def kill(running, redis, other) -> None:
    """Kill a replica and let its lease expire."""
    os.kill(running.process.pid, signal.SIGKILL)
    await running.process.wait()
    await expire(redis, other.relay._store.replica)


async def stop(running, redis, other) -> None:
    """Stop a replica for a while, in which its lease expires."""
    os.kill(running.process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{running.process.pid}/stat")
    await until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "the replica to be stopped")
    await expire(redis, other.relay._store.replica)


async def follow(service, generation_id: str = "r1") -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.get(f"{service.stream_url}/{generation_id}?format=frames")


async def until_available(service, *, expected: bool = True) -> None:
    """Wait until a replica has found Redis, or missed it. It is ready all the while."""
    store = service.relay._store
    await until(lambda: store.available == expected, f"{service.url} to have found Redis: {expected}")
    async with httpx.AsyncClient(timeout=None) as client:
        assert (await client.get(f"{service.url}/readyz")).status_code == 200


async def until_measured(service, *, expected: bool) -> None:
    async with httpx.AsyncClient(timeout=None) as client:

        async def measured() -> bool:
            metrics = (await client.get(f"{service.url}/metrics")).text
            return f"ws_chat_store_available {float(expected)}" in metrics

        await until(measured, "the metric to say so")


@pytest.mark.parametrize("followed", [True, False])
async def test_what_a_killed_replica_ran_is_lost_after_all_that_it_had_logged(followed, shared, redis, other, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with replica(fake, shared) as (running, url), other.socket() as elsewhere:
        async with connect(url, open_timeout=None) as connection:
            await begin(Socket(connection))
            if followed:
                await begin_elsewhere(elsewhere)
            (log,) = await redis.keys("*:log/*")

            async def stored() -> bool:
                return await redis.xrange(log, "1-1")

            await until(stored, "the delta to be in Redis")
            await kill(running, redis, other)
        if not followed:
            await begin_elsewhere(elsewhere)
        failed = await elsewhere.receive()
        assert (failed["error"]["code"], failed["error"]["retryable"], failed["seq"]) == ("generation_lost", True, 2)
        await elsewhere.send({"type": "resume", "id": "r1", "after": 3})
        assert (await elsewhere.until_end())[1:] == [failed], "shown, but not logged"
    frames = [json.loads(event["data"]) for event in events((await follow(other)).content)]
    assert (joined(frames), frames[-1]) == ("a", failed)


async def test_a_replica_that_was_stopped_and_continues_learns_the_end(shared, redis, other, fake):
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.default = Reply([first, Wait(go), *rest])
    async with (
        replica(fake, shared) as (running, url),
        connect(url, open_timeout=None) as connection,
        other.socket() as elsewhere,
    ):
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


async def test_without_redis_running_and_unnamed_generations_work(shared, serve, fake):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    go = asyncio.Event()
    first, second, *rest = text("a", "b", "c")[1:]
    middle = asyncio.Event()
    fake.reply([first, Wait(middle), second, Wait(go), *rest])
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        await until_measured(one, expected=True)
        await shared.stop()
        await until_available(one, expected=False)
        await until_measured(one, expected=False)
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
        await until_available(one)
        await until_available(other)
        go.set()
        tokens = await socket.until_end()
        assert (joined(tokens), tokens[-1]["status"], tokens[-1]["seq"]) == ("c", "completed", 4)
        tokens = await elsewhere.until_end()
        assert (joined(tokens), tokens[-1]["status"], tokens[-1]["seq"]) == ("bc", "completed", 4)
    for service in (one, other):
        frames = [json.loads(event["data"]) for event in events((await follow(service)).content)]
        assert (joined(frames), frames[-1]["status"]) == ("abc", "completed")
    assert joined(await one.frames(id="r3")) == "Hello"


async def test_no_replica_counts_as_gone_while_redis_hangs(shared, redis, serve, fake, windows):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b", "c")
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        await until_read_elsewhere(one)
        shared.pause()
        windows("redis.connection.TIMEOUT", 0.1)
        for service in (one, other):
            await service.relay._store._renew()  # those that have begun wait longer
            await until_available(service, expected=False)
        go.set()
        assert joined([await socket.receive(), await socket.receive()]) == "bc"
        windows("redis.connection.TIMEOUT", 600.0)
        shared.pause(over=True)
        await redis.delete(*(await redis.keys("*:lease")))
        assert (await socket.receive()).get("status") == "completed"
        *tokens, end = await elsewhere.until_end()
        assert (joined(tokens), end.get("status")) == ("bc", "completed")


async def test_an_end_waits_for_redis_and_is_shown_once_it_is_stored(shared, serve, fake):
    one = await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket:
        await begin(socket)
        log = own_logs(one)["r1"]
        await shared.stop()
        await until_available(one, expected=False)
        go.set()
        assert (await socket.receive())["content"] == "b"
        await until(lambda: log.ending, "the generation to end")
        assert (await socket.ask({"type": "ping"}))["type"] == "pong", "no end yet"
        await shared.start()
        assert (await socket.receive())["status"] == "completed"


@pytest.mark.parametrize("form", ["text", "frames"])
async def test_without_redis_for_long_readers_get_an_error_and_all_the_same_end(form, shared, serve, fake, windows):
    """At the replica that has the end, and at another one, over both transports."""
    windows("redis.log.END_TIMEOUT", 0.1)
    windows("redis.store.AWAY", 0.1)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await begin_elsewhere(elsewhere)
        async with httpx.AsyncClient(timeout=None) as client:
            url = f"{other.stream_url}/r1?format={form}"
            streams = [asyncio.create_task(client.get(url)) for _ in range(2)]
            await until(lambda: sum(map(len, (log._watchers for log in copies(other)))) == 3, "all to read")
            await shared.stop()
            go.set()
            assert (await socket.receive())["content"] == "b"
            for reader in (socket, elsewhere):
                refused = await reader.receive()
                assert (refused["id"], refused["error"]["code"], "seq" in refused) == ("r1", "overloaded", False)
            for stream in streams:
                *_, last = events((await stream).content)
                assert (last["event"], json.loads(last["data"])["error"]["code"]) == ("error", "overloaded")
                assert "id" not in last
        assert (await socket.ask({"type": "resume", "id": "r1"}))["error"]["code"] == "overloaded"
        await shared.start()
        await until_available(one)
        await until_available(other)
        for reader in (socket, elsewhere):

            async def resumed(reader=reader) -> bool:
                return (await reader.ask({"type": "resume", "id": "r1"}))["type"] == "start"

            await until(resumed, "Redis to have it again")
            *tokens, done = await reader.until_end()
            assert (joined(tokens), done.get("status")) == ("ab", "completed")
    assert len(fake.requests) == 1


async def test_a_client_reads_on_when_redis_is_back(shared, serve, fake, windows):
    windows("redis.store.AWAY", 0.1)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket, connect_client(other.url, patience=600) as client:
        await begin(socket)
        reply = client.resume("r1")
        await until(lambda: reply.text == "a", "the client to read")
        await shared.stop()
        await until(lambda: not copies(other), "the copy to be dropped")
        go.set()
        await shared.start()
        assert (await reply.end()).text == "ab"


async def test_a_replica_starts_without_redis_and_is_ready_when_it_comes(shared, serve, fake):
    await shared.stop()
    one = await serve(redis_urls=shared.url)
    await until_available(one, expected=False)
    assert joined(await one.frames()) == "Hello"
    await shared.start()
    await until_available(one)
    assert joined(await one.frames(id="r1")) == "Hello"


async def test_requests_are_counted_by_all_replicas_together(shared, serve, fake, monkeypatch):
    monkeypatch.setattr("limits.aio.storage.memory.time", SimpleNamespace(time=lambda: 0.0))  # one minute and no other
    settings = {"redis_urls": shared.url, "requests_per_minute": 3}
    one, other = await serve(**settings), await serve(**settings)
    statuses = [(await service.post()).status_code for service in (one, other, one, other)]
    assert statuses == [200, 200, 200, 429]
    await shared.stop()
    assert [(await one.post()).status_code for _ in range(4)] == [200, 200, 200, 429], "without Redis, each alone"
