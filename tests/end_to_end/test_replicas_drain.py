"""A replica that drains: its readers go on at another one, and no answer is cut that another one could have shown."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from support.service import HELLO, Service, both_paths, events, joined
from support.waiting import until

from ws_chat.server.chat.sender import DRAIN
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio


@pytest.fixture
async def replicas(shared, serve) -> tuple[Service, Service]:
    settings = {"redis_urls": (shared.url,), "drain_timeout": 600}
    return await serve(**settings), await serve(**settings)


def slowly() -> tuple[Reply, asyncio.Event]:
    go = asyncio.Event()
    first, *others = text("a", "b", "c")[1:]
    return Reply([first, Wait(go), *others]), go


def drain(service: Service) -> asyncio.Task[None]:
    return asyncio.create_task(service.server.lifespan.state[DRAIN]())


@contextlib.asynccontextmanager
async def stream(service: Service, query: str = "", **headers: str):
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("GET", f"{service.stream_url}/r1{query}", headers=headers) as response,
    ):
        yield response


async def test_a_socket_may_move_at_once_while_the_answer_is_produced(replicas, fake):
    one, other = replicas
    fake.default, go = slowly()
    async with one.socket() as socket, other.socket() as elsewhere:
        start = await socket.ask({"messages": HELLO, "id": "r1"})
        await socket.receive()
        draining = drain(one)
        assert await socket.receive() == {"type": "goaway", "deadline_ms": 600_000, "move": True}
        await elsewhere.ask({"type": "resume", "id": "r1", "after": 1, "epoch": start["epoch"]})
        assert not draining.done()
        go.set()
        *tokens, done = await elsewhere.until_end()
        await draining
    assert joined(tokens) == "bc"
    assert (done["status"], done["seq"]) == ("completed", 4)
    assert len(fake.requests) == 1


@both_paths
@pytest.mark.parametrize("query", ["", "?format=frames"])
async def test_a_stream_of_another_replica_ends_in_order_and_is_resumed_there(query, replicas, fake):
    one, other = replicas
    fake.default, go = slowly()
    async with other.socket() as socket:
        await socket.ask({"messages": HELLO, "id": "r1"})
        async with stream(one, query) as response:
            parts = response.aiter_raw()
            before = await anext(parts)
            await drain(one)
            before += b"".join([part async for part in parts])  # httpx raises if it is cut off
        assert before.endswith(b"\n\nretry: 500\n\n")
        last = events(before)[-1]["id"]
        async with stream(other, query, **{"Last-Event-ID": last}) as rest:
            go.set()
            after = await rest.aread()
    names = [event.get("event") for event in events(before)]
    assert not {"done", "error"} & set(names), "no terminal event"
    assert last.partition("-")[0] == "1"
    assert events(after)[-1]["event"] == "done"
    assert len(fake.requests) == 1


@both_paths
async def test_a_stream_that_has_not_started_is_sent_elsewhere(replicas, fake):
    one, other = replicas
    fake.default = Reply(head_after=[Hang()])
    async with other.socket() as socket:
        await socket.ask({"messages": HELLO, "id": "r1"})
        async with httpx.AsyncClient(timeout=None) as client:
            waiting = asyncio.create_task(client.get(f"{one.stream_url}/r1"))
            await until(lambda: one.relay._runner._reading, "the reader")
            await drain(one)
            response = await waiting
        await socket.ask({"type": "cancel"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "draining"


async def test_a_socket_that_stays_does_not_hold_the_drain_up(replicas, fake):
    one, other = replicas
    fake.default, go = slowly()
    async with one.socket() as socket, other.socket() as elsewhere:
        await elsewhere.ask({"messages": HELLO, "id": "r1"})
        await socket.ask({"type": "resume", "id": "r1"})
        await drain(one)
        go.set()
        *_, done = await elsewhere.until_end()
    assert done["status"] == "completed"


async def test_an_unnamed_answer_is_waited_for_to_its_last_reader(replicas, fake):
    one, _ = replicas
    fake.default, go = slowly()
    async with one.socket() as socket:
        await socket.ask({"messages": HELLO})
        draining = drain(one)
        frames = []
        while not frames or frames[-1]["type"] != "goaway":
            frames.append(await socket.receive())
        assert not draining.done()
        go.set()
        frames += await socket.until_end()
        await draining
    assert joined(frames) == "abc"
