"""Server-sent events, both ways (WHATWG HTML, section "Server-sent events"): bytes to data, and data to bytes.

Lines end at CRLF, LF or CR and nowhere else: `str.splitlines` would also split at U+2028 and lose text. Knows nothing
of what the data means.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
PING: Final = b": ping\n\n"

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_TEXT_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_FIELDS: Final = frozenset({b"data", b"event", b"id", b"retry", b""})  # the last: a comment, ": …"


class NotAnEventStreamError(ValueError):
    """The bytes are no event stream: they end without a field of one, or an event grows without end."""


class Splitter:
    """Cuts a byte stream into the data of its events, however the reads fall.

    Of an event only its data matters here; one without data is passed over. Multi-byte characters are never cut,
    because nothing is decoded before its event is whole.
    """

    __slots__ = ("_after_cr", "_alien", "_data", "_line", "_size", "_started")

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the pieces of a line that has no end yet
        self._data: list[bytes] = []  # the data lines of an event that has no end yet
        self._size = 0  # of both, in bytes
        self._after_cr = False  # the last read ended in a CR: a LF that comes next belongs to it
        self._started = False  # a field has been seen
        self._alien = False  # something else has

    def feed(self, read: bytes) -> list[bytes]:
        """Take one read; return the data of each event that it completes.

        Raises NotAnEventStreamError when an event is larger than MAX_EVENT_BYTES.
        """
        if self._started and not (self._line or self._data or self._after_cr) and b"\r" not in read:
            # Nearly every read: whole events of one data line each, ended by LF.
            *whole, rest = read.split(b"\n\n")
            if all(part.startswith(b"data: ") and b"\n" not in part for part in whole):
                if rest:
                    self._take(rest)
                return [part[6:] for part in whole]
        return self._take(read)

    def end(self) -> list[bytes]:
        """Take the end of the stream: servers leave out the blank line, or the line end, after their last event.

        Raises NotAnEventStreamError when there was something, and no field of an event stream in it.
        """
        events = self._take(b"\n\n")
        if self._alien and not self._started:
            raise NotAnEventStreamError("there is no field of an event in it")
        return events

    def _take(self, read: bytes) -> list[bytes]:
        if self._after_cr and read.startswith(b"\n"):
            read = read[1:]
            self._after_cr = False
        if not read:
            return []
        self._after_cr = read.endswith(b"\r")
        lines = _LINE_END.split(read)
        self._size += len(read)
        if len(lines) > 1:
            lines[0] = b"".join([*self._line, lines[0]])
            self._line = []
        if rest := lines.pop():
            self._line.append(rest)
        events = self._events(lines)
        if self._size > MAX_EVENT_BYTES:
            raise NotAnEventStreamError("an event is too large")
        return events

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if not line:
                self._size = 0
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
                continue
            field, _, value = line.partition(b":")
            if not self._started:
                field = field.removeprefix(b"\xef\xbb\xbf")
                self._started = field in _FIELDS
                self._alien = True
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
        return events


def event(data: str, *, name: str | None = None, event_id: int | None = None) -> bytes:
    """Return one event. Line breaks in `data` (CRLF, LF, CR) become `data:` lines of one event; a reader sees LF."""
    head = f"event: {name}\n" if name else ""
    if event_id is not None:
        head += f"id: {event_id}\n"
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_TEXT_LINE_END.split(data))
    return f"{head}data: {data}\n\n".encode()
