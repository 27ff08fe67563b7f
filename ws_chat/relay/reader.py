"""A reader: a position in a log, and a sender for the frames after it. Pure: the log and the sender call it.

Flow control, on one page. A reader has no queue. When the log grows, or when the sender is writable again, it is pumped:
it sends everything after its position while the sender is writable. A reader that keeps up sends one frame per delta;
one that has fallen behind finds many deltas after its position and sends them joined. So a slow connection delays no
other one, and needs no memory beyond the log.

The first read, live frames and a replay are the same pump.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ws_chat.protocol.deltas import MERGE_LIMIT, merge
from ws_chat.protocol.frames import Refused, Start, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Frame
    from ws_chat.stores.base import Log


class Sender(Protocol):
    """Sends the frames of one connection, in order."""

    writable: bool
    """Whether `write` may be called now."""

    def write(self, frame: Frame) -> None:
        """Send a frame. Only while `writable`."""

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the sender is writable again, after the callbacks that wait already."""


class Reader:
    """Follows a log from after a seq: a start frame, token frames, the terminal frame, each once.

    If the log cannot be read on, the reader ends with that error, which is no terminal frame.
    """

    __slots__ = ("_after", "_closed", "_id", "_on_end", "_sender", "_seq", "_started", "frames", "log")

    def __init__(self, log: Log, after: int, sender: Sender, on_end: Callable[[], None]) -> None:
        """Read `log` after the seq `after`; `on_end` is called once, when the last frame is out."""
        self.log = log
        self._id = log.start.id
        self._seq = self._after = after
        self._sender = sender
        self._on_end = on_end
        self._started = False
        self._closed = False
        self.frames = 0
        """Token frames sent."""

    @property
    def deltas(self) -> int:
        """Deltas sent in those frames."""
        return self._seq - self._after

    def open(self) -> None:
        self.log.watch(self._wake)
        self.pump()

    def close(self) -> None:
        """Stop reading; nothing is sent afterwards."""
        self._closed = True
        self._started = False
        self.log.unwatch(self._wake)

    def pump(self) -> None:
        """Send the frames after the position while the sender is writable."""
        log, sender = self.log, self._sender
        while not self._closed:
            seq = self._seq
            if seq >= log.last and not log.terminal and not log.fault and self._started:
                return
            # Checked before deltas are joined: for a full sender that would be wasted work.
            if not sender.writable:
                sender.when_writable(self.pump)
                return
            if not self._started:
                self._started = True
                sender.write(Start(self._id, seq, log.start.model, log.start.epoch))
            elif seq < log.last:
                self._write_deltas(log.after(seq, MERGE_LIMIT))
            elif log.terminal:
                self.close()
                sender.write(log.terminal)
                self._on_end()
            elif log.fault:
                self.close()
                sender.write(Refused(id=self._id, error=log.fault))
                self._on_end()

    def _wake(self, last: int, deltas: Sequence[Delta]) -> None:
        # Called after each append. A single delta that is next in line (nearly every token) is sent directly.
        if self._started and len(deltas) == 1 and last == self._seq + 1 and self._sender.writable:
            self._write_deltas(deltas)
        else:
            self.pump()

    def _write_deltas(self, deltas: Sequence[Delta]) -> None:
        """Send the leading ones of the deltas after the position as one frame."""
        delta, count = merge(deltas)
        self._seq += count
        self.frames += 1
        self._sender.write(Token.of(self._id, self._seq, delta))
