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
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ws_chat.frames import ServerFrame

logger = logging.getLogger("ws_chat.outlet")

HIGH_WATER: Final = 64 * 1024
MAX_REPLIES: Final = 64
"""How many replies wait for a full socket before its client is read no further."""
WIRE: Final = "ws_chat.wire"
"""The extension of an ASGI scope under which our own protocol classes offer a Wire."""

STOP: Final = "ws_chat.stop"
"""The key of the lifespan's state under which the application says how to end what runs before connections close."""


class Wire(Protocol):
    """A connection that can be written to synchronously.

    `on_change` is called when `takes_bytes` may have changed.
    """

    on_change: Callable[[], None] | None

    def takes_bytes(self) -> bool:
        """Whether `write_direct` is of use now."""

    def is_gone(self) -> bool:
        """Whether it will never take bytes again."""

    def write_direct(self, data: bytes) -> None:
        """Send one frame's bytes. On a connection that is gone they are lost, and that is no error."""


class Outlet(ABC):
    """An outlet that sends what `encode` makes of frames. `ended` is done when all is sent after `close`.

    `writable` (whether it takes a frame now) is kept, not computed: it is asked for at every token.
    """

    writable: bool

    def __init__(self, encode: Callable[[ServerFrame], bytes]) -> None:
        self._encode = encode
        self._waiting: dict[Callable[[], None], None] = {}
        self._replies: deque[ServerFrame] = deque()
        self._room = asyncio.Event()  # for another reply
        self._closed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def write_bytes(self, data: bytes) -> None:
        """Send what is no frame (a comment of an event stream). Only while `writable`."""

    @abstractmethod
    def close(self) -> None:
        """Take nothing more, and end when all that was written is sent."""

    @abstractmethod
    async def stop(self) -> None:
        """End at once."""

    def write(self, frame: ServerFrame) -> None:
        """Send a frame. Only while `writable`."""
        if data := self._encode(frame):
            self.write_bytes(data)

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

    def __init__(self, encode: Callable[[ServerFrame], bytes], wire: Wire) -> None:
        super().__init__(encode)
        self._wire = wire
        self._write = wire.write_direct
        self.writable = wire.takes_bytes()
        wire.on_change = self._on_change

    def write(self, frame: ServerFrame) -> None:  # noqa: D102
        if data := self._encode(frame):
            self._write(data)

    def write_bytes(self, data: bytes) -> None:  # noqa: D102
        self._write(data)

    def close(self) -> None:  # noqa: D102
        self._closed = True
        self.writable = False
        if not self.ended.done():
            self.ended.set_result(None)

    async def stop(self) -> None:  # noqa: D102
        self.close()
        self._wire.on_change = None

    def _on_change(self) -> None:
        self._closed = self._closed or self._wire.is_gone()
        self.writable = not self._closed and self._wire.takes_bytes()
        if self.writable or self._closed:
            self._call_waiting()


class AwaitedOutlet(Outlet):
    """Awaits `send` in a task of its own, several frames at a time.

    What is written waits until the task comes round, at most HIGH_WATER bytes and one frame.
    """

    def __init__(self, encode: Callable[[ServerFrame], bytes], send: Callable[[list[bytes]], Awaitable[None]]) -> None:
        super().__init__(encode)
        self._send = send
        self._pending: list[bytes] = []
        self._size = 0
        self.writable = True
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)

    def write_bytes(self, data: bytes) -> None:  # noqa: D102
        self._pending.append(data)
        self._size += len(data)
        self.writable = self._size < HIGH_WATER and not self._closed
        self._wake.set()

    def close(self) -> None:  # noqa: D102
        self._closed = True
        self.writable = False
        self._wake.set()

    async def stop(self) -> None:  # noqa: D102
        self._task.cancel()
        await asyncio.wait({self._task})

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
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, OSError):
            logger.error("A server's send failed", exc_info=error)
        if not self.ended.done():
            self.ended.set_result(None)


def outlet(
    encode: Callable[[ServerFrame], bytes], scope: Any, send: Callable[[list[bytes]], Awaitable[None]]
) -> Outlet:
    """Return the direct outlet where the server offers a wire, and else one that awaits `send`."""
    wire = scope.get("extensions", {}).get(WIRE)
    return DirectOutlet(encode, wire) if wire else AwaitedOutlet(encode, send)
