"""A reader: a position in a log, and a sender for the frames after it. Pure: the log and the sender call it.

Flow control: a reader has no queue. When the log grows, or when the sender is writable again, `pump` sends everything
after the position while the sender is writable. A reader that keeps up sends one frame per delta; one that has fallen
behind finds many deltas after its position and sends them joined. So a slow connection delays no other one, and needs no
memory beyond the log.

The first read, live frames and replays all go through `pump`. Its first frame is sent at once; before each further one,
the log's `may_go_on` says whether there is time for it in this turn of the event loop. So a frame for a reader that keeps
up never waits, and a long replay delays nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ws_chat.protocol.deltas import MERGE_LIMIT, merge
from ws_chat.protocol.frames import Refused, Start, Token, token_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.stores.base import Log


class Sender(Protocol):
    """Sends the frames of one connection, in order."""

    @property
    def writable(self) -> bool:
        """Whether `write` may be called now."""

    def write(self, frame: Any) -> None:
        """Send a frame. Only while `writable`."""

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the sender is writable again, after earlier callbacks."""


class Reader:
    """Follows a log from after a seq: a start frame, token frames, the terminal frame, each once.

    If the log cannot be read on, the reader ends with that error, which is no terminal frame. Another protocol overrides
    `write_deltas`.
    """

    __slots__ = ("_after", "_closed", "_head", "_on_end", "_queued", "_started", "frames", "log", "sender", "seq")

    def __init__(self, log: Log, after: int, sender: Sender, on_end: Callable[[], None]) -> None:
        """Read `log` after the seq `after`; `on_end` is called once, after the last frame was written."""
        self.log = log
        self.seq = self._after = after
        self.sender = sender
        self._head = token_head(log.start.id)
        self._on_end = on_end
        self._started = False
        self._closed = False
        self._queued = False  # the log will call `_continue`
        self.frames = 0
        """Token frames sent."""

    @property
    def deltas(self) -> int:
        """Deltas sent in those frames."""
        return self.seq - self._after

    def open(self) -> None:
        self.log.watch(self._wake)
        self.pump()

    def close(self) -> None:
        """Stop reading; nothing is sent afterwards."""
        self._closed = True
        self._started = False
        self.log.unwatch(self._wake)

    def pump(self) -> None:
        """Send the frames after the position while the sender is writable and there is time."""
        log, sender = self.log, self.sender
        first = True
        while not self._closed:
            seq = self.seq
            if seq >= log.last and not log.terminal and not log.fault and self._started:
                return
            # Checked before deltas are joined: for a full sender that would be wasted work.
            if not sender.writable:
                sender.when_writable(self.pump)
                return
            if not self._started:
                self._started = True
                start = log.start
                sender.write(Start(start.id, seq, start.model, start.epoch))
            elif seq < log.last:
                if not (first or log.may_go_on(self._continue)):
                    self._queued = True
                    return
                self.write_deltas(log.after(seq, MERGE_LIMIT))
                first = False
            elif log.terminal:
                self.close()
                sender.write(log.terminal)
                self._on_end()
            elif log.fault:
                self.close()
                sender.write(Refused(id=log.start.id, error=log.fault))
                self._on_end()

    def _wake(self, last: int, deltas: Sequence[Delta]) -> None:
        # Called after each append. A single delta that is next in line (nearly every token) is sent directly.
        if self._started and len(deltas) == 1 and last == self.seq + 1 and self.sender.writable:
            self.write_deltas(deltas)
        elif not self._queued:
            self.pump()

    def _continue(self) -> None:
        self._queued = False
        self.pump()

    def write_deltas(self, deltas: Sequence[Delta]) -> None:
        """Send at least the first of the deltas, which come after `seq`, in one frame, and advance `seq`."""
        log, seq = self.log, self.seq
        token = log.shared
        if token is None or log.shared_after != seq:
            delta, count = (deltas[0], 1) if len(deltas) == 1 else merge(deltas)
            log.shared = token = Token(self._head, seq + count, delta)
            log.shared_after = seq
        self.seq = token.seq
        self.frames += 1
        self.sender.write(token)
