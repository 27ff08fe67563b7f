"""Where the frames of one connection leave, under any ASGI server: one task that awaits the server's `send`.

What is written waits here until the task comes round, at most HIGH_WATER bytes and one frame; a server whose socket is
full keeps `send` waiting, and then readers wait with their position and find more in the log later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ws_chat.frames import ServerFrame

HIGH_WATER: Final = 64 * 1024


class AwaitedOutlet:
    """An outlet over an awaitable `send`, which takes what `encode` made of frames, in order, several at a time."""

    def __init__(self, encode: Callable[[ServerFrame], bytes], send: Callable[[list[bytes]], Awaitable[None]]) -> None:
        self._encode = encode
        self._send = send
        self._pending: list[bytes] = []
        self._size = 0
        self._waiting: dict[Callable[[], None], None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def writable(self) -> bool:
        """Whether it takes a frame now."""
        return self._size < HIGH_WATER and not self._closed

    def write(self, frame: ServerFrame) -> None:
        """Send a frame. Only while `writable`."""
        self.write_bytes(self._encode(frame))

    def write_bytes(self, data: bytes) -> None:
        """Send what is no frame (a comment of an event stream). Only while `writable`."""
        if data:
            self._pending.append(data)
            self._size += len(data)
            self._wake.set()

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when it is writable again, after those that wait already."""
        self._waiting[callback] = None

    async def reply(self, frame: ServerFrame) -> None:
        """Send a frame as soon as it is writable: whoever asks for more than it reads waits here.

        Returns with nothing sent when the outlet has closed.
        """
        while not self.writable:
            if self._closed:
                return
            turn = asyncio.Event()
            self.when_writable(turn.set)
            await turn.wait()
        self.write(frame)

    def close(self) -> None:
        """Let `run` return once all that was written is sent."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Send what is written, until closed. Raises what `send` raises when the connection is gone."""
        try:
            while self._pending or not self._closed:
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    batch, self._pending, self._size = self._pending, [], 0
                    await self._send(batch)
                    self._call_waiting()
        finally:
            self._closed = True
            self._call_waiting()

    def _call_waiting(self) -> None:
        waiting = deque(self._waiting)
        self._waiting.clear()
        while waiting and (self.writable or self._closed):
            waiting.popleft()()
        # Those that found no room this time are first the next time.
        self._waiting = dict.fromkeys([*waiting, *self._waiting])
