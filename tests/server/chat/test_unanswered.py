"""A socket with a frame that cannot be answered yet: the others are answered meanwhile, each id in its own order."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.service import HELLO, joined, running
from support.waiting import until

from ws_chat import Settings, create_app
from ws_chat.server import sockets
from ws_chat.server.chat import websocket
from ws_chat.stores.memory import MemoryStore
from ws_chat.testing import Reply, text

pytestmark = pytest.mark.anyio

AWAY = "away"
WAITING = {"messages": HELLO, "id": "r2", "previous_id": AWAY}


class Store(MemoryStore):
    """Finds what is under the id AWAY only when `here` is set, as if another replica had it."""

    def __init__(self) -> None:
        super().__init__()
        self.here = asyncio.Event()
        self.asked = 0

    async def get(self, key, after=0):
        if key.id == AWAY:
            self.asked += 1
            await self.here.wait()
        return await super().get(key, after)


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(sockets, "ORDER_TIMEOUT", 0.05)


@pytest.fixture
async def service(fake, store):
    fake.default = Reply(text("Hel", "lo"))
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="k", drain_timeout=0)
    async with running(create_app(settings, store=store), settings) as service:
        store.here.set()
        async with service.socket() as socket:
            await socket.chat(id=AWAY)
        store.here.clear()
        store.asked = 0
        yield service
        store.here.set()


async def test_other_frames_are_answered_meanwhile(service, store):
    async with service.socket() as socket:
        await socket.send(WAITING)
        assert (await socket.ask({"type": "ping"}))["type"] == "pong"
        assert joined(await socket.chat(id="r3")) == "Hello"
        assert (await socket.ask({"type": "resume", "id": "r9"}))["error"]["code"] == "not_found"
        assert (await socket.ask({"type": "shout", "id": "r9"}))["error"]["param"] == "type"
        store.here.set()
        frames = await socket.until_end("r2")

    assert [frame["type"] for frame in frames] == ["start", "token", "token", "done"]


async def test_frames_about_one_id_are_answered_in_their_order(service, store):
    async with service.socket() as socket:
        await socket.send(WAITING)
        await socket.send({"type": "cancel", "id": "r2"})
        await socket.send({"messages": HELLO, "id": "r4", "previous_id": "r2"})
        assert (await socket.ask({"type": "ping"}))["type"] == "pong"
        store.here.set()
        frames = [await socket.receive(), *await socket.until_end("r2"), *await socket.until_end("r4")]

    assert (frames[0]["type"], frames[0]["id"]) == ("start", "r2")
    assert "not_found" not in [frame.get("error", {}).get("code") for frame in frames]
    assert frames[-1]["type"] == "done"


async def test_a_ping_with_an_id_is_answered_after_the_frames_with_that_id(service, store):
    async with service.socket() as socket:
        await socket.send({"type": "cancel", "id": AWAY})
        await socket.send({"type": "ping", "id": AWAY})
        assert await socket.ask({"type": "ping"}) == {"type": "pong"}
        assert await socket.ask({"type": "ping", "id": "r9"}) == {"type": "pong", "id": "r9"}
        store.here.set()
        assert await socket.receive() == {"type": "pong", "id": AWAY}


async def test_frames_without_an_id_are_answered_in_their_order(service, store):
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "previous_id": AWAY, "temperature": 1})
        await socket.send({"type": "odd"})
        await socket.send({"messages": HELLO})
        assert (await socket.ask({"type": "ping"}))["type"] == "pong"
        store.here.set()
        first = await socket.receive()
        refused = await until_type(socket, "error")
        second = await until_type(socket, "start")

    assert first["type"] == "start"
    assert refused["error"]["param"] == "type"
    assert second["id"] != first["id"]


async def until_type(socket, kind: str):
    while (frame := await socket.receive())["type"] != kind:
        pass
    return frame


async def test_a_cancel_without_id_is_about_what_is_being_started(service, store):
    async with service.socket() as socket:
        await socket.send(WAITING)
        await socket.send({"type": "cancel"})
        assert (await socket.ask({"type": "ping"}))["type"] == "pong"
        store.here.set()
        frames = await socket.until_end()

    assert {frame["id"] for frame in frames} == {"r2"}


async def test_a_starting_generation_counts_towards_the_limit(fake, store):
    fake.default = Reply(text("Hel", "lo"))
    settings = Settings(openai_base_url=fake.base_url, drain_timeout=0, max_generations_per_connection=2)
    async with running(create_app(settings, store=store), settings) as service, service.socket() as socket:
        for n in range(3):
            await socket.send({**WAITING, "id": f"r{n}"})
        first = await socket.receive()
        store.here.set()
        others = [await socket.receive() for _ in range(2)]

    assert (first["id"], first["error"]["code"]) == ("r2", "too_many_generations")
    assert [(frame["id"], frame["error"]["code"]) for frame in others] == [("r0", "not_found"), ("r1", "not_found")]


async def test_it_is_overloaded_in_the_end(service, monkeypatch):
    monkeypatch.setattr(websocket, "ANSWER_TIMEOUT", 0.2)
    async with service.socket() as socket:
        refused = await socket.ask(WAITING)
        assert refused["id"] == "r2"
        assert refused["error"]["code"] == "overloaded"
        assert refused["error"]["retry_after"] == 1
        assert (await socket.ask({"type": "cancel"}))["error"]["param"] == "id", "nothing is left of it"


@pytest.mark.parametrize("limit", ["frames", "bytes"])
async def test_a_client_that_sends_on_is_read_no_further(limit, service, store, monkeypatch):
    if limit == "frames":
        monkeypatch.setattr(sockets, "MAX_UNANSWERED", 2)
    padding = "x" * (3 * 1024 * 1024 if limit == "bytes" else 1)
    read = []
    monkeypatch.setattr(websocket, "decode", lambda data, decode=websocket.decode: read.append(data) or decode(data))
    async with service.socket() as socket, service.socket() as other:
        await socket.send({**WAITING, "user": padding})
        await socket.send({**WAITING, "user": padding, "id": "r3"})
        await socket.send({"type": "ping"})
        await until(lambda: len(read) == 2, "both chats to be read")
        for _ in range(5):
            assert (await other.ask({"type": "ping"}))["type"] == "pong"
        assert len(read) == 2 + 5
        store.here.set()
        await until_type(socket, "pong")


async def test_a_named_chat_is_started_though_its_client_has_gone(service, store):
    async with service.socket() as socket:
        await socket.send(WAITING)
        await until(lambda: store.asked, "the chat to be received")
    store.here.set()
    async with service.socket() as socket:
        await until(lambda: service.connections.open == 1, "the first connection to be over")
        await socket.send({"type": "resume", "id": "r2"})
        frames = await socket.until_end()

    assert joined(frames) == "Hello"


async def test_an_unnamed_one_is_not_left_running(service, store, fake):
    requests = len(fake.requests)
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "previous_id": AWAY})
        await until(lambda: store.asked, "the chat to be received")
    store.here.set()
    await until(lambda: not service.connections.open, "the connection to be over")
    await until(lambda: not service.relay.running, "nothing to run")
    assert len(fake.requests) <= requests + 1


async def test_an_error_of_ours_closes_the_socket(service, store, monkeypatch, caplog):
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service.relay, "find", fail)
    async with service.socket() as socket:
        await socket.send({"type": "resume", "id": "r1"})
        with contextlib.suppress(Exception):
            await socket.receive()
        await socket.connection.wait_closed()

    assert socket.connection.close_code == 1011
    assert "ZeroDivisionError" in caplog.text
