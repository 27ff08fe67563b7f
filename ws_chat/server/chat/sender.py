"""Where the frames of one connection leave, in order.

Flow control: nothing is queued here for a reader. An outlet takes a frame or it does not; a reader that finds it full
waits with its position, is called when there is room, and finds more in the log by then. There are two: one writes
directly to a transport of ours, the other awaits the `send` of any ASGI server.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from starlette.middleware.cors import CORSMiddleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ws_chat.protocol.frames import ServerFrame, Token

    Send: TypeAlias = Callable[[list[bytes]], Awaitable[None]]

logger = logging.getLogger("ws_chat.outlet")

HIGH_WATER: Final = 64 * 1024
MAX_REPLIES: Final = 64
"""How many replies wait for a full socket before its client is read no further."""
WIRE: Final = "ws_chat.wire"
"""The extension of an ASGI scope under which our own protocol classes offer a Wire."""

DRAIN: Final = "ws_chat.drain"
"""The key of the lifespan's state under which the application says how to end what runs before connections close."""
WRITE_TIMEOUT: Final = "ws_chat.write_timeout"
"""The key of the lifespan's state with the seconds after which a peer that takes nothing is dropped."""


class Encoding(NamedTuple):
    """What makes bytes of frames; none of one that has nothing to say."""

    frame: Callable[[ServerFrame], bytes]
    token: Callable[[Token], bytes]


class Wire(Protocol):
    """A connection that can be written to synchronously.

    `on_change` is called when `takes_bytes` may have changed.
    """

    on_change: Callable[[], None] | None
    sent: int
    """Bytes of frames that were written, encoded."""
    dropped: bool
    """Whether the connection ended because its peer took nothing, or answered no ping."""

    def takes_bytes(self) -> bool:
        """Whether `write_direct` may be called now."""

    def is_gone(self) -> bool:
        """Whether it will never take bytes again."""

    def write_direct(self, encode: Callable[[Any], bytes], frame: Any) -> None:
        """Send a frame, encoded. On a connection that is gone it is lost, and that is no error."""


class Outlet(ABC):
    """An outlet. `ended` is done when all is sent after `close` (True), or will never be sent (False).

    `writable` is kept, not computed, and the writers are attributes: at every token, a call would cost more than what
    they do.
    """

    writable: bool
    """Whether it takes a frame now."""
    write: Callable[[ServerFrame], None]
    """Send a frame. Only while `writable`."""
    write_token: Callable[[Token], None]
    """Send a token frame. Only while `writable`."""
    dropped = False
    """Whether its peer was given up."""

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], None] = {}
        self._replies: deque[ServerFrame] = deque()
        self._room = asyncio.Event()  # for another reply
        self._closed = False
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def close(self) -> None:
        """Take nothing more, and end when all that was written is sent."""

    @abstractmethod
    async def stop(self) -> None:
        """End at once."""

    @property
    @abstractmethod
    def sent(self) -> int:
        """Return the bytes of the frames that were written."""

    def announce(self, frame: ServerFrame) -> None:
        """Send a frame that nobody asked for, before all that waits."""
        self._replies.append(frame)
        if self.writable:
            self._call_waiting()

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when it is writable again, after those that wait already."""
        self._waiting[callback] = None

    async def reply(self, frame: ServerFrame) -> None:
        """Send a frame that belongs to no log, before the readers that wait. Returns with nothing sent when closed.

        Whoever asks for more replies than it reads waits here, and is read no further; a few are kept, so that a
        cancel is not held up by the answer to a ping.
        """
        while len(self._replies) >= MAX_REPLIES and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            return
        self._replies.append(frame)
        if self.writable:
            self._call_waiting()

    def _call_waiting(self) -> None:
        while self._replies and self.writable:
            self.write(self._replies.popleft())
        if len(self._replies) < MAX_REPLIES or self._closed:
            self._room.set()
        waiting = deque(self._waiting)
        self._waiting.clear()
        while waiting and self.writable:
            waiting.popleft()()
        # Those that found no room this time are first the next time.
        self._waiting = dict.fromkeys([*waiting, *self._waiting])


class DirectOutlet(Outlet):
    """Writes to a wire in the same turn of the event loop, with no task in between."""

    def __init__(self, encoding: Encoding, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._sent_before = wire.sent  # a connection may serve one request after the other
        self.write = partial(wire.write_direct, encoding.frame)
        self.write_token = partial(wire.write_direct, encoding.token)
        self.writable = wire.takes_bytes()
        wire.on_change = self._on_change
        if wire.is_gone():  # it will not tell again
            self._end(sent=False)

    def close(self) -> None:
        self._end(sent=True)

    async def stop(self) -> None:
        self._end(sent=False)
        self._wire.on_change = None
        self.dropped = self._wire.dropped

    @property
    def sent(self) -> int:
        return self._wire.sent - self._sent_before

    def _on_change(self) -> None:
        if self._wire.is_gone():
            self._end(sent=False)
        self.writable = not self._closed and self._wire.takes_bytes()
        if self.writable or self._closed:
            self._call_waiting()

    def _end(self, *, sent: bool) -> None:
        self._closed = True
        self.writable = False
        if not self.ended.done():
            self.ended.set_result(sent)


class AwaitedOutlet(Outlet):
    """Awaits `send` in a task of its own, several frames at a time.

    What is written waits until the task comes round, at most HIGH_WATER bytes and one frame.
    """

    def __init__(self, encoding: Encoding, send: Send) -> None:
        super().__init__()
        self._send = send
        self._pending: list[bytes] = []
        self._size = 0
        self._sent = 0
        self.writable = True
        self.write = partial(self._write, encoding.frame)
        self.write_token = partial(self._write, encoding.token)
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)

    def _write(self, encode: Callable[[Any], bytes], frame: Any) -> None:
        if data := encode(frame):
            self._pending.append(data)
            self._size += len(data)
            self._sent += len(data)
            self.writable = self._size < HIGH_WATER and not self._closed
            self._wake.set()

    def close(self) -> None:
        self._closed = True
        self.writable = False
        self._wake.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    @property
    def sent(self) -> int:
        return self._sent

    async def _run(self) -> None:
        while self._pending or not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch, self._pending, self._size = self._pending, [], 0
                self.writable = not self._closed
                await self._send(batch)
                self._call_waiting()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._closed = True
        self.writable = False
        self._call_waiting()
        # An OSError: the connection is gone, which its door learns from `receive`.
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, OSError):
            logger.error("A server's send failed", exc_info=error)
        if not self.ended.done():  # a server that stops cancels whoever awaits it
            self.ended.set_result(not task.cancelled() and error is None)


def outlet(encoding: Encoding, scope: Any, send: Send) -> Outlet:
    """Return the direct outlet where the server offers a wire, and else one that awaits `send`."""
    hide_wire(scope, scope.get("app"))
    wire = scope.get("extensions", {}).get(WIRE)
    return DirectOutlet(encoding, wire) if wire else AwaitedOutlet(encoding, send)


def hide_wire(scope: Any, app: Any) -> None:
    """Let all go through `send` where an application has middleware: it may change what is sent, or hold back a head.

    That of CORS only adds headers.
    """
    if any(middleware.cls is not CORSMiddleware for middleware in getattr(app, "user_middleware", ())):
        scope.get("extensions", {}).pop(WIRE, None)
