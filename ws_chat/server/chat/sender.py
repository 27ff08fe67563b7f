"""Where the frames of one connection leave, in order.

Flow control: nothing is queued here for a reader. A sender is writable or it is not; a reader that finds it full waits
with its position, is called when there is room, and finds more in the log by then. There are two: one writes directly
to a connection of our own protocol classes, the other awaits the `send` of any ASGI server.
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

    from ws_chat.protocol.frames import Frame

    Encode: TypeAlias = Callable[[Frame], bytes]
    """Makes bytes of a frame; none of one that has nothing to say."""

logger = logging.getLogger("ws_chat.sender")

HIGH_WATER: Final = 64 * 1024
MAX_REPLIES: Final = 64
"""How many replies wait for a full socket before its client is read no further."""
DIRECT_WRITER: Final = "ws_chat.direct_writer"
"""The extension of an ASGI scope under which our own protocol classes offer a DirectWriter."""

DRAIN: Final = "ws_chat.drain"
"""The key of the lifespan's state under which the application says how to end what runs before connections close."""
WRITE_TIMEOUT: Final = "ws_chat.write_timeout"
"""The key of the lifespan's state with the seconds after which a peer that takes nothing is dropped."""
UNPROTECTED: Final = "ws_chat.unprotected"
"""The key of the lifespan's state with whether anybody may use a real upstream: without keys, and not the demo."""


class DirectWriter(Protocol):
    """A connection that can be written to synchronously, around ASGI.

    `on_writable` is called when `is_writable` or `is_gone` may have changed.
    """

    on_writable: Callable[[], None] | None
    sent: int
    """Bytes of frames that were written, encoded."""
    dropped: bool
    """Whether the connection ended because its peer took nothing, or answered no ping."""

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are the callables that the server gave to the application for what it serves now."""

    def is_writable(self) -> bool:
        """Whether `write_direct` may be called now: the head is out, the end is not, and the peer takes bytes."""

    def is_gone(self) -> bool:
        """Whether it will never be writable again."""

    def write_direct(self, encode: Encode, frame: Frame) -> None:
        """Send a frame. On a connection that is gone it is lost, and that is no error."""


def direct_writer(scope: Scope, receive: Receive, send: Send) -> DirectWriter | None:
    """Return the writer that the server offers, unless anything else wants to see what is sent.

    Middleware, and any wrapper around an application, sees it by a `send` of its own, which may change it, delay it or
    count it. So the writer is used only where `send` is the server's, but for wrappers that are known to pass on
    everything that comes after the head.
    """
    writer: DirectWriter | None = scope.get("extensions", {}).get(DIRECT_WRITER)
    return writer if writer and writer.owns(receive, _unwrap(send)) else None


_TRANSPARENT: Final = {
    ("starlette.middleware.errors", "ServerErrorMiddleware.__call__.<locals>._send"),
    ("starlette._exception_handler", "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"),
}
"""The functions by which Starlette itself wraps `send`, to see the head. A new name of one costs speed, nothing else."""


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
    """A sender. It is writable from `open` on, which follows the head of a response, or a handshake.

    `ended` is done when all is sent after `close` (True), or will never be sent (False). `writable` is kept, not
    computed, and `write` is an attribute: at every token, a call would cost more than what they do.
    """

    writable = False
    """Whether it takes a frame now."""
    write: Callable[[Frame], None]
    """Send a frame. Only while `writable`."""
    dropped = False
    """Whether its peer was given up."""

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], None] = {}
        self._replies: deque[Frame] = deque()
        self._room = asyncio.Event()  # for another reply
        self._closed = False
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def open(self) -> None:
        """Start to take frames."""

    @abstractmethod
    def close(self) -> None:
        """Take no more frames, and end when all that was written is sent."""

    @abstractmethod
    async def stop(self) -> None:
        """End at once."""

    @property
    @abstractmethod
    def sent(self) -> int:
        """Return the bytes of the frames that were written."""

    def announce(self, frame: Frame) -> None:
        """Send a frame that answers nothing, before the readers that wait."""
        self._replies.append(frame)
        if self.writable:
            self._call_waiting()

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when it is writable again, after those that wait already."""
        self._waiting[callback] = None

    async def reply(self, frame: Frame) -> None:
        """Send a frame that belongs to no log, before the readers that wait. Returns with nothing sent when closed.

        A client that asks for more replies than it reads waits here, and is read no further; a few are kept, so that a
        cancel is not held up by the answer to a ping.
        """
        while len(self._replies) >= MAX_REPLIES and not self._closed:
            self._room.clear()
            await self._room.wait()
        if not self._closed:
            self.announce(frame)

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


class DirectSender(ConnectionSender):
    """Writes in the same turn of the event loop, with no task in between."""

    def __init__(self, encode: Encode, writer: DirectWriter) -> None:
        super().__init__()
        self._writer = writer
        self._sent_before = writer.sent  # a connection may serve one request after the other
        self._opened = False
        self.write = functools.partial(writer.write_direct, encode)
        writer.on_writable = self._on_writable
        if writer.is_gone():  # it will not call again
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
        self._room.set()
        if not self.ended.done():
            self.ended.set_result(sent)


class AwaitedSender(ConnectionSender):
    """Awaits `send_batch` in a task of its own, with several frames at a time.

    What is written waits for that task: at most HIGH_WATER bytes and one frame.
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

    def write(self, frame: Frame) -> None:
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
        # An OSError: the connection is gone, which its transport learns from `receive`.
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, OSError):
            logger.error("The server's send failed", exc_info=error)
        if not self.ended.done():  # it may have been cancelled by what awaits it
            self.ended.set_result(not task.cancelled() and error is None)
