"""Replicas at bad moments: answers of Redis that are lost, ends and cancels that cross, starts that fail half-way."""

from __future__ import annotations

import asyncio

import pytest
from end_to_end.test_replicas import begin, begin_elsewhere, copies, over_http, slowly
from end_to_end.test_replicas_lost import expire, kill, replica
from support.service import HELLO, Socket, events, joined
from support.waiting import until
from websockets.asyncio.client import connect

from ws_chat import ChatError
from ws_chat.stores.redis.keys import CREATE
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

STOP = [{"role": "user", "content": "stop"}]


def fail_creates(service, monkeypatch, *, carried_out: bool) -> None:
    """Let the next create of a replica fail, after Redis has carried it out or before."""
    link = service.relay._store._link
    run = link.run

    async def failing(slot, script, *arguments):
        if script is CREATE:
            monkeypatch.setattr(link, "run", run)
            if carried_out:
                await run(slot, script, *arguments)
            raise ChatError("overloaded", "lost", retry_after=1)
        return await run(slot, script, *arguments)

    monkeypatch.setattr(link, "run", failing)


async def test_a_start_whose_answer_was_lost_can_be_sent_to_another_replica(shared, serve, fake, monkeypatch):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fail_creates(one, monkeypatch, carried_out=True)
    assert (await one.post({"messages": HELLO, "id": "r1"})).status_code == 503

    async def taken() -> bool:
        response = await other.post({"messages": HELLO, "id": "r1"})
        assert response.status_code in (200, 503)
        return response.status_code == 200

    await until(taken, "the other replica to take it")
    assert len(fake.requests) == 1


async def test_of_two_sends_whose_start_was_lost_one_is_started(shared, serve, fake, monkeypatch):
    one = await serve(redis_urls=shared.url)
    fail_creates(one, monkeypatch, carried_out=True)
    answers = await asyncio.gather(*(one.post({"messages": HELLO, "id": "r1"}) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 503]
    assert len(fake.requests) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_chat_that_cannot_be_created_interrupts_nothing(elsewhere, shared, serve, fake, monkeypatch):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    asked = other if elsewhere else one
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket:
        await begin(socket)
        fail_creates(asked, monkeypatch, carried_out=False)
        refused = await asked.post({"messages": STOP, "previous_id": "r1", "id": "r2"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        go.set()
        *tokens, done = await socket.until_end()
        assert (joined(tokens), done["status"]) == ("b", "completed")


async def test_a_chat_whose_previous_one_cannot_be_interrupted_leaves_nothing(shared, serve, fake, monkeypatch):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)

        async def away(_) -> None:
            await elsewhere.send({"type": "resume", "id": "r2"})  # which is created by then
            assert (await elsewhere.receive())["type"] == "start"
            raise ChatError("overloaded", "The shared log cannot be reached.", retry_after=1)

        monkeypatch.setattr(other.relay._store, "cancel", away)
        refused = await other.post({"messages": STOP, "previous_id": "r1", "id": "r2"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        refused = await elsewhere.receive()
        assert (refused["id"], refused["error"]["code"], "seq" in refused) == ("r2", "overloaded", False)
        for service in (other, one):

            async def gone(service=service) -> bool:
                return (await over_http("GET", service, "r2")).status_code == 404

            await until(gone, "the second one to be removed")
        go.set()
        assert joined(await socket.until_end()) == "b"
    assert len(fake.requests) == 1


@pytest.fixture
async def staying(shared, serve, windows):
    """A replica that takes one without a lease for dead soon."""
    windows("redis.store.STEADY", 0.0)
    return await serve(redis_urls=shared.url)


async def test_the_end_of_a_lost_generation_can_be_resumed_at(shared, redis, staying, fake):
    other = staying
    fake.default = Reply([*text("a")[:2], Hang()])
    async with replica(fake, shared) as (running, url), other.socket() as elsewhere:
        async with connect(url, open_timeout=None) as connection:
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


async def test_a_reader_that_has_seen_more_than_was_stored_gets_the_loss(shared, redis, staying, fake):
    """It resumes elsewhere before anybody knows that its replica is dead."""
    other = staying
    fake.default = Reply([*text("a")[:2], Hang()])
    async with replica(fake, shared) as (running, url), other.socket() as elsewhere:
        async with connect(url, open_timeout=None) as connection:
            await begin(Socket(connection))
            await begin_elsewhere(elsewhere)
            running.process.kill()
            await running.process.wait()
        async with other.socket() as another:
            await another.send({"type": "resume", "id": "r1", "after": 7})
            (copy,) = copies(other)
            await until(lambda: len(copy._watchers) == 2, "it to wait for what is missing")
            await expire(redis, other.relay._store.replica)
            start, failed = await another.until_end()
        assert (start["seq"], failed["seq"], failed["error"]["code"]) == (7, 2, "generation_lost")
        assert await elsewhere.receive() == failed


async def test_interrupting_elsewhere_waits_for_the_end_however_slow_redis_is(shared, serve, fake, monkeypatch):
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    fake.reply([*text("a")[:2], Hang()])
    follower = other.relay._store._follower
    cancel = follower.cancel

    async def slow(copy) -> None:
        looked = asyncio.Event()
        look = follower.look

        async def noted(**options) -> None:
            await look(**options)
            looked.set()

        monkeypatch.setattr(follower, "look", noted)
        for _ in range(4):  # after which a copy without a reader is left
            looked.clear()
            await looked.wait()
        await cancel(copy)

    monkeypatch.setattr(follower, "cancel", slow)
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        await elsewhere.send({"messages": HELLO, "previous_id": "r1", "id": "r2"})
        assert (await socket.receive())["status"] == "cancelled"
        assert (await elsewhere.receive())["type"] == "start"


async def test_nothing_is_kept_of_what_has_ended(shared, serve, fake, windows):
    windows("redis.writer.KEPT", 0.01)
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    for number in range(10):
        await asyncio.gather(one.frames(id=f"r{number}"), other.frames(id=f"r{number}"))
    writers = [service.relay._store._writer for service in (one, other)]
    await until(
        lambda: (
            not any(kept for writer in writers for kept in (writer._running, writer._ended, writer._undoing))
            and not any(copies(service) for service in (one, other))
        ),
        "nothing to be left",
    )
