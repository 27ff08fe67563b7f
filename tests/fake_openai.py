"""A real OpenAI-compatible HTTP server that says, and breaks, exactly what a test tells it to.

A reply is a list of steps, carried out in order on the real connection: bytes are written in a write of their own (one
read at the other end, as far as TCP lets a test say so), the others pause, wait, hang, cut or reset. Every request is
recorded, with the moment at which its connection was closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import httptools

DONE = b"data: [DONE]\n\n"


class Cut:
    """Close the connection politely, in the middle of the response."""


class Reset:
    """Reset the connection (RST)."""


class Hang:
    """Say nothing more, and leave the connection open."""


class Garbage:
    """Break the transfer coding: what follows is no HTTP."""


@dataclass
class Pause:
    """Wait for some seconds."""

    seconds: float


@dataclass
class Wait:
    """Wait until the test sets the event."""

    event: asyncio.Event


@dataclass
class Reply:
    """A response: its status and headers, and the steps of its body. `head_after` delays the status line."""

    steps: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    head_after: list[Any] = field(default_factory=list)


@dataclass
class Recorded:
    """A request as it came in. `closed` is set when its connection was lost, at the loop time `closed_at`."""

    path: str
    headers: dict[str, str]
    body: Any
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    closed_at: float | None = None
    answered: bool = False


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chat completion chunk as OpenAI sends it."""
    choice: dict[str, Any] = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason, "logprobs": None}
    if "logprobs" in more:
        choice["logprobs"] = more.pop("logprobs")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
        **more,
    }


def usage_chunk(prompt: int = 5, completion: int = 3) -> dict[str, Any]:
    """Return the last chunk, which has usage and no choice."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**chunk(), "choices": [], "usage": usage}


def sse(*values: Any, eol: str = "\n") -> bytes:
    """Return events, one for each JSON value."""
    return "".join(f"data: {json.dumps(v, ensure_ascii=False)}{eol}{eol}" for v in values).encode()


def text(*contents: str, finish_reason: str | None = "stop", usage: bool = True, done: bool = True) -> list[bytes]:
    """Return the steps of a whole answer, one step (so one read, mostly) for each event."""
    steps = [sse(chunk({"role": "assistant", "content": ""}))]
    steps += [sse(chunk({"content": content})) for content in contents]
    if finish_reason:
        steps.append(sse(chunk({}, finish_reason)))
    if usage:
        steps.append(sse(usage_chunk(completion=len(contents))))
    return [*steps, DONE] if done else steps


def error_body(message: str, **more: Any) -> bytes:
    """Return an error body of OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **more}}).encode()


class FakeOpenAI:
    """The server. `replies` are given in order; when they run out, `default` is given."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.default = Reply(text("Hel", "lo"))
        self.requests: list[Recorded] = []
        self.connections: set[_Connection] = set()
        self.accepted = 0
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def reply(self, steps: list[Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Give this to the next request that has no reply yet."""
        reply = Reply(steps, status)
        if headers is not None:
            reply.headers = headers
        self.replies.append(reply)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """Answer the next request with an error."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.reply([error_body(message)], status, {"Content-Type": "application/json", **given})

    async def request(self, number: int = 1) -> Recorded:
        """Wait until so many requests have come, and return that one."""
        while len(self.requests) < number:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests[number - 1]

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=8192)

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        await self._server.wait_closed()

    def record(self, request: Recorded) -> Reply:
        self.requests.append(request)
        self._arrived.set()
        return self.replies.pop(0) if self.replies else self.default


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: FakeOpenAI) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._path = ""
        self._body = b""
        self._current: Recorded | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  (uvloop's transports are no asyncio.Transport)
        self._server.connections.add(self)
        self._server.accepted += 1
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
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
            case Wait(event):
                await event.wait()
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
