"""Senders: they send the frames of one connection, in order.

Flow control: nothing is queued here for a reader. A reader that finds its sender not writable waits with its position,
is called when there is room, and finds more in the log by then. There are two senders: one writes directly to a
connection of our own protocol classes, the other awaits the `send` of any ASGI server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from starlette.middleware.cors import CORSMiddleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    Encode: TypeAlias = Callable[[Any], bytes]
    """Encodes a frame of the protocol; returns no bytes for a frame that the format leaves out."""

logger = logging.getLogger("ws_chat.sender")

HIGH_WATER: Final = 64 * 1024
MAX_REPLIES: Final = 64
"""Replies that wait for a full socket before reading from its client is paused."""
DIRECT_WRITER: Final = "ws_chat.direct_writer"
"""The extension of an ASGI scope with the DirectWriter of our own protocol classes."""

DRAIN: Final = "ws_chat.drain"
"""A key of the lifespan's state: the coroutine function that ends running generations before connections close."""
WRITE_TIMEOUT: Final = "ws_chat.write_timeout"
"""A key of the lifespan's state: the seconds after which a peer that reads nothing is dropped."""
LIMIT: Final = "ws_chat.limit"
"""A key of the lifespan's state: the function that is called with the name of a limit that had an effect."""
UNPROTECTED: Final = "ws_chat.unprotected"
"""A key of the lifespan's state: whether a real upstream can be used without an API key."""


class DirectWriter(Protocol):
    """A connection that can be written to synchronously, around ASGI.

    `on_writable` is called when `is_writable` or `is_gone` may have changed.
    """

    on_writable: Callable[[], None] | None
    encode: Encode
    """Set before the first frame of each response."""
    sent: int
    """Bytes of the frames that were written."""
    dropped: bool
    """Whether the connection ended because its peer read nothing, or answered no ping."""

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are the callables that the server passed to the application for the current request."""

    def is_writable(self) -> bool:
        """Whether `write_direct` may be called now: the head was sent, the end was not, and the socket has room."""

    def is_gone(self) -> bool:
        """Whether it will never be writable again."""

    def write_direct(self, frame: Any) -> None:
        """Send a frame. Does nothing on a closed connection."""


def direct_writer(scope: Scope, receive: Receive, send: Send) -> DirectWriter | None:
    """Return the server's DirectWriter, unless anything wraps `send`.

    Middleware passes a `send` of its own to the application, to change, delay or count what is sent. So the writer is
    used only if `send` is the server's, except for wrappers that are known to touch nothing after the head.
    """
    writer: DirectWriter | None = scope.get("extensions", {}).get(DIRECT_WRITER)
    return writer if writer and writer.owns(receive, _unwrap(send)) else None


_TRANSPARENT: Final = {
    ("starlette.middleware.errors", "ServerErrorMiddleware.__call__.<locals>._send"),
    ("starlette._exception_handler", "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"),
}
"""Functions with which Starlette itself wraps `send`, to see the head. If it renames one, only speed is lost."""


def _unwrap(send: Any) -> Any:
    while True:
        if isinstance(send, functools.partial) and getattr(send.func, "__func__", None) is CORSMiddleware.send:
            send = send.keywords["send"]  # it adds headers
        elif (code := getattr(send, "__code__", None)) and "send" in code.co_freevars:
            # By its code: functools.wraps changes the name of a function.
            if (send.__globals__["__name__"], code.co_qualname) not in _TRANSPARENT:
                return send
            send = send.__closure__[code.co_freevars.index("send")].cell_contents
        else:
            return send


class ConnectionSender(ABC):
    """A sender. Writable from `open` on, which is called after the head of a response, or a handshake.

    `ended` is done when everything was sent after `close` (True), or never will be (False). `writable` and `write` are
    attributes, because at every token a call would cost more than what it does.
    """

    writable = False
    write: Callable[[Any], None]
    dropped = False

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], None] = {}
        self._replies: list[Any] = []  # few; an empty deque has 624 bytes
        self._room: asyncio.Event | None = None  # for another reply, once one has waited
        self._closed = False
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def open(self) -> None:
        """Accept frames from now on."""

    @abstractmethod
    def close(self) -> None:
        """Accept no more frames, and end when all written ones are sent."""

    @abstractmethod
    async def stop(self) -> None:
        """End at once."""

    @property
    @abstractmethod
    def sent(self) -> int:
        """Bytes of the encoded frames that were written."""

    def announce(self, frame: Any) -> None:
        """Send a frame of no generation, before those of waiting readers, without waiting for room."""
        self._replies.append(frame)
        if self.writable:
            self._call_waiting()

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._waiting[callback] = None

    async def reply(self, frame: Any) -> None:
        """Send a frame of no generation, before those of waiting readers. Does nothing when closed.

        Waits while MAX_REPLIES are unsent, so that a client that does not read its replies is not read either. Some are
        kept, so that the reply to a ping does not hold up a cancel.
        """
        while len(self._replies) >= MAX_REPLIES and not self._closed:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if not self._closed:
            self.announce(frame)

    def _call_waiting(self) -> None:
        while self._replies and self.writable:
            self.write(self._replies.pop(0))
        if self._room and (len(self._replies) < MAX_REPLIES or self._closed):
            self._room.set()
        if not self._waiting:
            return
        waiting = deque(self._waiting)
        self._waiting.clear()
        while waiting and self.writable:
            waiting.popleft()()
        # Readers that found no room are first the next time.
        self._waiting = dict.fromkeys([*waiting, *self._waiting])


class DirectSender(ConnectionSender):
    """Writes in the same turn of the event loop, without a task."""

    def __init__(self, encode: Encode, writer: DirectWriter) -> None:
        super().__init__()
        self._writer = writer
        self._sent_before = writer.sent  # by earlier requests of the connection
        self._opened = False
        writer.encode = encode
        self.write = writer.write_direct
        writer.on_writable = self._on_writable
        if writer.is_gone():  # it will not call `on_writable` again
            self._end(sent=False)

    def open(self) -> None:
        self._opened = True
        self._on_writable()

    def close(self) -> None:
        self._end(sent=True)

    async def stop(self) -> None:
        self._end(sent=False)
        self._writer.on_writable = None
        self.dropped = self._writer.dropped

    @property
    def sent(self) -> int:
        return self._writer.sent - self._sent_before

    def _on_writable(self) -> None:
        if self._writer.is_gone():
            self._end(sent=False)
        self.writable = self._opened and not self._closed and self._writer.is_writable()
        if self.writable or self._closed:
            self._call_waiting()

    def _end(self, *, sent: bool) -> None:
        self._closed = True
        self.writable = False
        if self._room:
            self._room.set()
        if not self.ended.done():
            self.ended.set_result(sent)


class AwaitedSender(ConnectionSender):
    """Awaits `send_batch` in a task of its own, with several frames at a time.

    At most HIGH_WATER bytes and one frame wait for that task.
    """

    def __init__(self, encode: Encode, send_batch: Callable[[list[bytes]], Awaitable[None]]) -> None:
        super().__init__()
        self._encode = encode
        self._send_batch = send_batch
        self._pending: list[bytes] = []
        self._size = 0
        self._sent = 0
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)

    def write(self, frame: Any) -> None:
        if data := self._encode(frame):
            self._pending.append(data)
            self._size += len(data)
            self._sent += len(data)
            self.writable = self._size < HIGH_WATER and not self._closed
            self._wake.set()

    def open(self) -> None:
        self.writable = not self._closed
        self._call_waiting()

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
                await self._send_batch(batch)
                self._call_waiting()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._closed = True
        self.writable = False
        self._call_waiting()
        # OSError means that the connection is lost, which `receive` reports too.
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, OSError):
            logger.error("The server's send failed", exc_info=error)
        if not self.ended.done():  # its waiter may have cancelled it
            self.ended.set_result(not task.cancelled() and error is None)
