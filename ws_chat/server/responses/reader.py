"""A reader of the events of a response. Pure: the log and the sender call it.

It is the reader of the relay, with another view of the deltas: each one is folded as it was logged, and only the pieces of
text that are sent together are joined.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from ws_chat.protocol.deltas import decode_delta, leading
from ws_chat.protocol.frames import Failed, Refused, Start
from ws_chat.relay.reader import Reader
from ws_chat.server.responses.events import Fold, join
from ws_chat.server.responses.types import ErrorEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Terminal
    from ws_chat.relay.reader import Sender
    from ws_chat.server.responses.types import Echo, Event
    from ws_chat.stores.base import Log

_encode: Final = msgspec.json.Encoder().encode


class ResponseReader(Reader):
    """Follows the log of a response: its events after a sequence_number, then `last`, each once, as JSON."""

    __slots__ = ("_events",)

    def __init__(
        self,
        log: Log,
        echo: Echo,
        sender: Sender,
        on_end: Callable[[], None],
        *,
        after: int = -1,
        stream_id: str | None = None,
        last: bytes = b"",
        errors: bool = False,
    ) -> None:
        """With `errors`, a failure before the first delta is an error event, not `response.failed`."""
        self._events = _EventSender(sender, Fold(log.start, echo), on_end, after, stream_id, last, errors=errors)
        super().__init__(log, 0, self._events, self._events.finish)

    def close(self) -> None:
        super().close()
        self._events.clear()

    def write_deltas(self, deltas: Sequence[Delta]) -> None:
        deltas = leading(deltas)
        self.seq += len(deltas)
        self.frames += 1
        self._events.write_deltas(deltas)


class _EventSender:
    """The sender of a ResponseReader: turns frames and deltas into events.

    A terminal frame makes several events with the whole text. They wait here for room, not in the connection's buffer.
    """

    def __init__(
        self,
        sender: Sender,
        fold: Fold,
        on_end: Callable[[], None],
        after: int,
        stream_id: str | None,
        last: bytes,
        *,
        errors: bool,
    ) -> None:
        self._sender = sender
        self._fold = fold
        self._on_end = on_end
        self._after = after
        # No lane's name contains a character that JSON escapes.
        self._lane = f',"stream_id":"{stream_id}"}}'.encode() if stream_id else b""
        self._last = last
        self._errors = errors
        self._waiting: deque[Event | bytes] = deque()
        self._finished = False

    @property
    def writable(self) -> bool:
        return self._sender.writable and not self._waiting

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._sender.when_writable(callback)

    def write(self, frame: Start | Terminal | Refused) -> None:
        """Send the events of a start frame, a terminal frame, or a fault: the log cannot be read on here."""
        if isinstance(frame, Start):
            self._send(self._fold.start())
        elif isinstance(frame, Failed) and self._errors and not self._fold.began:
            self._send_one(_encode(ErrorEvent.of(frame.error, number=self._fold.number + 1)))
        elif isinstance(frame, Refused):
            self._last = b""  # this is not the end of the response
            self._send_one(_encode(ErrorEvent.of(frame.error)))
        else:
            self._send(self._fold.end(frame))

    def write_deltas(self, deltas: Sequence[Delta]) -> None:
        if len(deltas) == 1 and self._fold.number >= self._after and (event := self._fold.plain(deltas[0])):
            self._send_one(event)
        else:
            self._send(event for delta in deltas for event in self._fold.feed(decode_delta(delta)))

    def finish(self) -> None:
        """Send `last`, and call `on_end` when everything is sent."""
        self._finished = True
        if self._last:
            self._waiting.append(self._last)
        self._flush()

    def clear(self) -> None:
        self._waiting.clear()

    def _send(self, events: Iterable[Event]) -> None:
        self._waiting.extend(join(event for event in events if event.sequence_number > self._after))
        self._flush()

    def _send_one(self, event: bytes) -> None:
        self._sender.write(event[:-1] + self._lane if self._lane else event)

    def _flush(self) -> None:
        while self._waiting and self._sender.writable:
            event = self._waiting.popleft()
            if isinstance(event, bytes):
                self._sender.write(event)
            else:
                self._send_one(_encode(event))
        if self._waiting:
            self._sender.when_writable(self._flush)
        elif self._finished:
            self._finished = False
            self._on_end()
