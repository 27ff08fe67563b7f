"""A reader: a position in a log, and an outlet to send what comes after it.

Flow control, on one page. A reader has no queue. When the log grows, or when the outlet takes bytes again, it is
pumped: it sends everything after its position for as long as the outlet takes it. A reader that keeps up sends one
frame per delta; one that has fallen behind finds many deltas after its position and sends them joined. So the pace of
one connection costs nobody else anything, and no memory but the log's.

First read, live and replay are the same pump. It knows no event loop: whoever writes or drains calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ws_chat.protocol.deltas import merge
from ws_chat.protocol.frames import Start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import ServerFrame, Token
    from ws_chat.stores.base import Log

MERGE_LIMIT: Final = 512
"""How many deltas go into one frame at most, so that a long replay does not become one frame of any size."""


class Outlet(Protocol):
    """Where the frames of one connection leave, in order."""

    writable: bool
    """Whether it takes a frame now."""

    write: Callable[[ServerFrame], None]
    """Send a frame. Only while `writable`."""
    write_token: Callable[[Token], None]
    """Send a token frame. Only while `writable`."""

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when `writable` is true again; those that wait are called in turn."""


class Reader:
    """Follows a log from after a seq: a start frame, token frames, the terminal frame, each once."""

    __slots__ = ("_after", "_closed", "_id", "_on_end", "_outlet", "_seq", "_started", "frames", "log")

    def __init__(self, log: Log, after: int, outlet: Outlet, on_end: Callable[[], None]) -> None:
        """Read `log` after the seq `after`; `on_end` is called once, when the terminal frame is out."""
        self.log = log
        self._id = log.start.id
        self._seq = self._after = after
        self._outlet = outlet
        self._on_end = on_end
        self._started = False
        self._closed = False
        self.frames = 0
        """How many token frames it has sent."""

    @property
    def deltas(self) -> int:
        """How many deltas were in them."""
        return self._seq - self._after

    def open(self) -> None:
        """Start reading."""
        self.log.watch(self._wake)
        self.pump()

    def close(self) -> None:
        """Stop reading. Nothing is sent after this."""
        self._closed = True
        self._started = False
        self.log.unwatch(self._wake)

    def pump(self) -> None:
        """Send all that comes after the position, as far as the outlet takes it."""
        log, outlet = self.log, self._outlet
        while not self._closed:
            seq = self._seq
            if seq >= log.last and not log.terminal and self._started:
                return
            # Before deltas are joined: for an outlet that is full that would be work for nothing.
            if not outlet.writable:
                outlet.when_writable(self.pump)
                return
            if not self._started:
                self._started = True
                outlet.write(Start(self._id, seq, log.start.model))
            elif seq < log.last:
                deltas = log.after(seq, MERGE_LIMIT)
                delta, count = merge(deltas) if len(deltas) > 1 else (deltas[0], 1)
                self._seq = seq = seq + count
                self.frames += 1
                outlet.write_token({"type": "token", "id": self._id, "seq": seq, **delta})
            elif log.terminal:
                self.close()
                outlet.write(log.terminal)
                self._on_end()

    def _wake(self, last: int, deltas: Sequence[Delta]) -> None:
        """Take word of a write: one delta that is next goes out at once, which is the way of nearly every token."""
        if self._started and len(deltas) == 1 and last == self._seq + 1 and self._outlet.writable:
            self._seq = last
            self.frames += 1
            self._outlet.write_token({"type": "token", "id": self._id, "seq": last, **deltas[0]})
        else:
            self.pump()
