"""A running server and its clients: the tests' own WebSocket client, SSE requests, an event stream reader."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from ws_chat.server.run import ServeOptions, Server, uvicorn_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

    from ws_chat import Settings
    from ws_chat.relay.relay import Relay
    from ws_chat.server.connections import Connections
    from ws_chat.stores.base import GenerationKey

HELLO = [{"role": "user", "content": "hi"}]


class Socket:
    """A WebSocket client that speaks frames."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, frame: Any) -> None:
        await self.connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        return json.loads(await self.connection.recv())

    async def until_end(self, generation_id: str | None = None) -> list[dict[str, Any]]:
        """Return the frames of one generation (or all) up to its terminal frame."""
        frames = []
        while True:
            frame = await self.receive()
            if generation_id in (None, frame.get("id")):
                frames.append(frame)
                if frame["type"] in ("done", "error"):
                    return frames

    async def chat(self, **request: Any) -> list[dict[str, Any]]:
        """Send a chat and return all of its frames."""
        await self.send({"messages": HELLO, **request})
        return await self.until_end()

    async def ask(self, frame: Any) -> dict[str, Any]:
        """Send a frame and return the next one."""
        await self.send(frame)
        return await self.receive()


@dataclass
class Service:
    """A running server."""

    url: str
    app: FastAPI
    server: Server

    @property
    def relay(self) -> Relay:
        return self.app.state.relay

    @property
    def connections(self) -> Connections:
        return self.app.state.connections

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws") + "/v1/chat/ws"

    @property
    def stream_url(self) -> str:
        return self.url + "/v1/chat/stream"

    @contextlib.asynccontextmanager
    async def socket(self, **connecting: Any) -> AsyncIterator[Socket]:
        async with connect(self.ws_url, max_size=None, open_timeout=None, **connecting) as connection:
            yield Socket(connection)

    async def post(self, body: Any = None, *, query: str = "", **headers: str) -> httpx.Response:
        """Send a chat over SSE and return the whole response."""
        content = body if isinstance(body, bytes) else json.dumps(body or {"messages": HELLO}).encode()
        async with httpx.AsyncClient(timeout=None) as client:
            return await client.post(self.stream_url + query, content=content, headers=headers)

    async def frames(self, **request: Any) -> list[dict[str, Any]]:
        """Send a chat over SSE in the frames format; return its frames, whose events must agree with them."""
        response = await self.post({"messages": HELLO, **request}, query="?format=frames")
        frames = []
        for event in events(response.content):
            frame = json.loads(event["data"])
            assert event["event"] == frame["type"]
            frames.append(frame)
            assert event["id"] == event_id(frames[0], frame)
        return frames


def event_id(start: dict[str, Any], frame: dict[str, Any]) -> str:
    """Return the event id of a frame of the generation that a start frame is of."""
    return f"{frame['seq']}-{start['epoch']}" if "epoch" in start else str(frame["seq"])


def events(body: bytes) -> list[dict[str, str]]:
    """Read an event stream as the WHATWG standard says, in a way of its own: line by line, as text."""
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    for line in body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if "data" in current:
                found.append(current)
            current = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            current[name] = f"{current[name]}\n{value}" if name == "data" and "data" in current else value
    return found


def joined(frames: list[dict[str, Any]], key: str = "content") -> str:
    return "".join(frame.get(key, "") for frame in frames if frame["type"] == "token")


@contextlib.asynccontextmanager
async def running(app: FastAPI, settings: Settings, *, port: int = 0, **config: Any) -> AsyncIterator[Service]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server may be started again on its port
    sock.bind(("127.0.0.1", port))
    sock.listen(8192)
    chosen = uvicorn_config(settings, ServeOptions(log_level="warning"))
    for name in ("host", "port"):
        chosen.pop(name)
    server_config = uvicorn.Config(app, **{**chosen, "log_config": None, "access_log": False, **config})
    server_config.load()
    server = Server(server_config)
    server.lifespan = server_config.lifespan_class(server_config)
    # As Server.serve does, without its signal handlers and without waiting for the ticks of its main loop.
    await server.startup(sockets=[sock])
    try:
        yield Service(f"http://127.0.0.1:{sock.getsockname()[1]}", app, server)
    finally:
        await server.shutdown(sockets=[sock])
        if hasattr(app, "state"):
            relay, connections = app.state.relay, app.state.connections
            left = (connections.open, relay.running, relay._runner._reading, len(server.server_state.tasks))
            assert left == (0, 0, 0, 0), f"connections, generations, readers and tasks that are left: {left}"


FALLBACK = {"http": "httptools", "ws": "websockets-sansio"}


both_paths = pytest.mark.parametrize("path", ["fast", "fallback"], indirect=True)


class Nothing:
    """RunningGenerations of a process that runs none."""

    def cancel(self, key: GenerationKey) -> bool:
        return False

    def add_remote_reader(self, key: GenerationKey) -> None:
        pass

    def remove_remote_reader(self, key: GenerationKey) -> None:
        pass
