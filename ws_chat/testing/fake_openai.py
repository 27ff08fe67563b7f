"""An OpenAI-compatible HTTP server that answers, and breaks, exactly as a test scripts it.

Every request is recorded, with the time at which its connection was closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import httptools

from ws_chat.testing.replies import Cut, Garbage, Hang, Pause, Reply, Reset, Wait, error_body, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ws_chat.testing.replies import Step

POLL_INTERVAL: Final = 0.01
"""Seconds between two checks of an event of another thread."""


@dataclass
class Recorded:
    """A request: its path, its headers (names in lower case), its body as JSON.

    `closed` is set when its connection is lost, at the loop time `closed_at`. `answered`: the whole reply was sent.
    """

    path: str
    headers: dict[str, str]
    body: Any
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    closed_at: float | None = None
    answered: bool = False


class FakeOpenAI:
    """The server, from `start` to `stop` or in an `async with` block, on a free port of 127.0.0.1.

    `replies` are sent in order, then `default` for every further request: an answer of two deltas, `Hel` and `lo`.
    `requests` are those received, without those for `models`, which the server lists. Everything may be used from other threads, except what is awaited.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.default = Reply(text("Hel", "lo"))
        self.models = ["gpt-4o-mini", "gpt-4o"]
        self.requests: list[Recorded] = []
        self.connections: set[_UpstreamConnection] = set()
        self.accepted = 0
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self._running.sockets[0].getsockname()[1]}/v1"

    @property
    def _running(self) -> asyncio.Server:
        if self._server is None:
            raise RuntimeError("The fake upstream was not started: use `async with`, or await start().")
        return self._server

    def reply(self, steps: Sequence[Step], status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Script the reply to the next request that has none yet."""
        reply = Reply(steps, status)
        if headers is not None:
            reply.headers = headers
        self.replies.append(reply)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """Script an error for the next request that has no reply yet; `Retry_After="7"` is a header."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.reply([error_body(message)], status, {"Content-Type": "application/json", **given})

    async def request(self, number: int = 1) -> Recorded:
        """Wait for the request of this number, counted from 1, and return it."""
        while len(self.requests) < number:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests[number - 1]

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _UpstreamConnection(self), "127.0.0.1", 0, backlog=8192)

    async def stop(self) -> None:
        """Abort all connections and stop listening."""
        self._running.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        await self._running.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def record(self, request: Recorded) -> Reply:
        """Record a request and return its reply."""
        if request.path.endswith("/models"):
            body = {"object": "list", "data": [{"id": model, "object": "model"} for model in self.models]}
            return Reply([json.dumps(body).encode()], headers={"Content-Type": "application/json"})
        self.requests.append(request)
        self._arrived.set()
        return self.replies.pop(0) if self.replies else self.default


class _UpstreamConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: FakeOpenAI) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._path = ""
        self._body = b""
        self._current: Recorded | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP transport
        self.transport = transport
        self._server.connections.add(self)
        self._server.accepted += 1
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._current:
            self._current.closed_at = asyncio.get_running_loop().time()
            self._current.closed.set()
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # httptools calls these.

    def on_url(self, url: bytes) -> None:
        self._path, self._headers, self._body = url.decode(), {}, b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._current = Recorded(self._path, self._headers, json.loads(self._body or b"null"))
        reply = self._server.record(self._current)
        self._task = asyncio.get_running_loop().create_task(self._answer(reply, self._current))

    async def _answer(self, reply: Reply, request: Recorded) -> None:
        for step in reply.head_after:
            if not await self._step(step):
                return
        head = f"HTTP/1.1 {reply.status} Reply\r\nTransfer-Encoding: chunked\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        self.transport.write(head.encode() + b"\r\n")
        for step in reply.steps:
            if not await self._step(step):
                return
        request.answered = True
        self.transport.write(b"0\r\n\r\n")

    async def _step(self, step: Any) -> bool:
        match step:
            case bytes():
                self.transport.write(b"%x\r\n%s\r\n" % (len(step), step))
                await asyncio.sleep(0)  # a turn of the loop, so that the next write is another read
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Wait(asyncio.Event() as event):
                await event.wait()
            case Wait(event):
                while not event.is_set():  # noqa: ASYNC110  (one of another thread)
                    await asyncio.sleep(POLL_INTERVAL)
            case Hang():
                await asyncio.Event().wait()
            case Garbage():
                self.transport.write(b"no chunk size\r\n\r\n")
            case Cut():
                self.transport.close()
                return False
            case Reset():
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
                return False
        return True
