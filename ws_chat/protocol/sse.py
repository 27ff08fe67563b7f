"""Server-sent events, both ways (WHATWG HTML, section "Server-sent events"): bytes to data, and data to bytes.

Lines end at CRLF, LF or CR and nowhere else: `str.splitlines` would also split at U+2028 and lose text. Knows nothing
of what the data means.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
PING: Final = b": ping\n\n"

_TEXT_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_FIELDS: Final = frozenset({b"data", b"event", b"id", b"retry", b""})  # the last: a comment, ": …"


class NotAnEventStreamError(ValueError):
    """The bytes are no event stream: they end without a field of one, or an event grows without end."""


class Splitter:
    """Cuts a byte stream into the data of its events, however the reads fall.

    Of an event only its data matters here; one without data is passed over. Multi-byte characters are never cut,
    because nothing is decoded before its event is whole.
    """

    __slots__ = ("_after_cr", "_alien", "_rest", "_size", "_started", "between")

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # what has come of an event that has no end yet
        self._size = 0  # of that, in bytes
        self._after_cr = False  # the last read ended in a CR: a LF that comes next belongs to it
        self._started = False  # a field has been seen
        self._alien = False  # something else has
        self.between = False  # an event has ended, and nothing has come of the next

    def feed(self, read: bytes) -> list[bytes]:
        """Take one read; return the data of each event that it completes.

        Raises NotAnEventStreamError when an event is larger than MAX_EVENT_BYTES.
        """
        self.between = False
        if self._after_cr:
            self._after_cr = not read
            read = read.removeprefix(b"\n")
        if b"\r" in read:
            self._after_cr = read.endswith(b"\r")
            read = read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # An event ends at a blank line, of which two reads may have one line end each.
        blank = b"\n\n" in read or (read.startswith(b"\n") and bool(self._rest) and self._rest[-1].endswith(b"\n"))
        if read:
            self._rest.append(read)
            self._size += len(read)
        if not blank:
            if self._size > MAX_EVENT_BYTES:
                raise NotAnEventStreamError("an event is too large")
            return []
        *blocks, rest = b"".join(self._rest).split(b"\n\n")
        self._rest = [rest] if rest else []
        self._size = len(rest)
        events = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])  # as nearly every one
            elif (data := self._data(block)) is not None:
                events.append(data)
        self._started = self._started or bool(events)
        self.between = self._started and not (rest or self._after_cr)
        return events

    def end(self) -> list[bytes]:
        """Take the end of the stream: servers leave out the blank line, or the line end, after their last event.

        Raises NotAnEventStreamError when there was something, and no field of an event stream in it.
        """
        events = self.feed(b"\n\n")
        if self._alien and not self._started:
            raise NotAnEventStreamError("there is no field of an event in it")
        return events

    def _data(self, block: bytes) -> bytes | None:
        """Return the data of a block of lines, None when it has none."""
        found = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if not self._started and line:
                field = field.removeprefix(b"\xef\xbb\xbf")
                self._started = field in _FIELDS
                self._alien = True
            if field == b"data":
                found.append(value.removeprefix(b" "))
        return b"\n".join(found) if found else None


def event(data: str, *, name: str | None = None) -> bytes:
    """Return one event. Line breaks in `data` (CRLF, LF, CR) become `data:` lines of one event; a reader sees LF."""
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_TEXT_LINE_END.split(data))
    return f"event: {name}\ndata: {data}\n\n".encode() if name else f"data: {data}\n\n".encode()
