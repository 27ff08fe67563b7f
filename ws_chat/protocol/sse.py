"""Server-sent events, decoded and encoded (WHATWG HTML, section "Server-sent events").

Lines end at CRLF, LF or CR and nowhere else: `str.splitlines` would also split at U+2028 and lose text.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024  # an event may hold an image
MAX_EVENT_LINES: Final = 1000
PING: Final = b": ping\n\n"
RETRY: Final = b"retry: 500\n\n"

_TEXT_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_FIELDS: Final = frozenset({b"data", b"event", b"id", b"retry", b""})  # the last: a comment, ": …"


class NotAnEventStreamError(ValueError):
    """The bytes are not an event stream: they end without any of its fields, or an event exceeds a limit."""


class SSEDecoder:
    """Decodes a byte stream, split into any reads, into the data of its events. Events without data are skipped."""

    __slots__ = ("_after_cr", "_any_line", "_pending", "_size", "_started", "between")

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # the reads of an incomplete event
        self._size = 0  # their bytes
        self._after_cr = False  # the last read ended in CR: an LF at the start of the next one belongs to it
        self._started = False  # a line with a field of an event stream was received
        self._any_line = False
        self.between = False
        """Whether the last read ended with an event."""

    def feed(self, read: bytes) -> list[bytes]:
        """Return the data of each event that `read` completes. Raises NotAnEventStreamError."""
        self.between = False
        if self._after_cr:
            self._after_cr = not read
            read = read.removeprefix(b"\n")
        if b"\r" in read:
            self._after_cr = read.endswith(b"\r")
            read = read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # An event ends at a blank line, whose two line ends may be in two reads.
        blank = b"\n\n" in read or (
            read.startswith(b"\n") and bool(self._pending) and self._pending[-1].endswith(b"\n")
        )
        if read:
            self._pending.append(read)
            self._size += len(read)
        if not blank:
            if self._size > MAX_EVENT_BYTES:
                raise NotAnEventStreamError(f"an event has more than {MAX_EVENT_BYTES} bytes")
            return []
        whole, _, rest = b"".join(self._pending).rpartition(b"\n\n")
        self._pending = [rest] if rest else []
        self._size = len(rest)
        if whole.startswith(b"data: ") and whole.count(b"\n") == 2 * whole.count(b"\n\ndata: "):
            blocks = []
            events = whole[6:].split(b"\n\ndata: ")  # nearly always: one data line in each event
        else:
            blocks = whole.split(b"\n\n")
            events = []
        for block in blocks:
            if block and (data := self._data(block)) is not None:
                events.append(data)
        self._started = self._started or bool(events)
        self.between = self._started and not (rest or self._after_cr)
        return events

    def end(self) -> list[bytes]:
        """End the stream: return the data of a last event whose blank line is missing.

        Raises NotAnEventStreamError if there were lines, but none with a field of an event stream.
        """
        events = self.feed(b"\n\n")
        if self._any_line and not self._started:
            raise NotAnEventStreamError("no line has a field of an event stream")
        return events

    def _data(self, block: bytes) -> bytes | None:
        """Return the data of a block of lines, None when it has none."""
        found = []
        if block.count(b"\n") >= MAX_EVENT_LINES:
            raise NotAnEventStreamError(f"an event has more than {MAX_EVENT_LINES} lines")
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if not self._started and line:
                field = field.removeprefix(b"\xef\xbb\xbf")
                self._started = field in _FIELDS
                self._any_line = True
            if field == b"data":
                found.append(value.removeprefix(b" "))
        return b"\n".join(found) if found else None


def event(data: str, *, name: str | None = None) -> bytes:
    """Encode one event. A line break in `data` (CRLF, LF, CR) starts another `data:` line, which is decoded as LF."""
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_TEXT_LINE_END.split(data))
    return f"event: {name}\ndata: {data}\n\n".encode() if name else f"data: {data}\n\n".encode()
