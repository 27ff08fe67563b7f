"""The two formats of an event stream: plain text for people at a terminal, and the frames of the WebSocket.

In both, a pong is encoded as a comment line, which keeps proxies from closing a silent connection, and goaway as the
milliseconds after which an EventSource reconnects.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from ws_chat.protocol.deltas import decode_delta
from ws_chat.protocol.errors import ErrorBody
from ws_chat.protocol.frames import Done, Failed, GoAway, Pong, Refused, Start, Token, encode
from ws_chat.protocol.sse import PING, RETRY, event
from ws_chat.server.exchange import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Frame, ServerFrame


_OPENING: Final = b'{"content":"'


class ChatFormat(Format):
    """The event id of a named generation is `<seq>-<epoch>`, of an unnamed one `<seq>`."""

    def __init__(self, epoch: str | None = None) -> None:
        super().__init__()
        self._suffix = f"-{epoch}".encode() if epoch else b""


class FramesFormat(ChatFormat):
    """An event for each frame: its type, its position as the event id, and the same JSON as on the WebSocket."""

    def encode(self, frame: Frame) -> bytes:
        self.last = time.monotonic()
        if isinstance(frame, Token):
            if frame.event is None:
                frame.event = b"event: token\nid: %d%b\ndata: %b\n\n" % (frame.seq, self._suffix, frame.json)
            return frame.event
        if isinstance(frame, Start | Done | Failed):
            name = str(frame.__struct_config__.tag).encode()
            return b"event: %b\nid: %d%b\ndata: %b\n\n" % (name, frame.seq, self._suffix, encode(frame))
        if isinstance(frame, Refused):  # without an event id: the position stays where it was
            return b"event: error\ndata: %b\n\n" % encode(frame)
        return RETRY if isinstance(frame, GoAway) else PING


class TextFormat(ChatFormat):
    """The answer's text, then `[DONE]`; with event ids for named generations, which can be resumed."""

    def __init__(self, epoch: str | None = None, *, event_ids: bool = False, after_cr: bool = False) -> None:
        super().__init__(epoch)
        self._event_ids = event_ids
        self._after_cr = after_cr

    def encode(self, frame: Frame) -> bytes:
        if not isinstance(frame, Token):
            return self._other(frame)
        plain = frame.text
        if plain is None:
            plain = frame.text = self._plain(frame)
        if plain:
            self._after_cr = False
            self.last = time.monotonic()
            return plain
        text = decode_delta(frame.delta).get("content")
        if not isinstance(text, str):
            return b""
        # A CRLF may be split between two frames; CR and LF would become two line breaks.
        if self._after_cr and text.startswith("\n"):
            text = text[1:]
            self._after_cr = False
        if not text:
            return b""
        self._after_cr = text.endswith("\r")
        self.last = time.monotonic()
        return self._with_id(event(text), frame.seq)

    def _plain(self, token: Token) -> bytes:
        """Return the event of a delta that needs no decoding, for all readers; no bytes for any other.

        It is nothing but a text (four quotes) without escapes, and so without a line break.
        """
        delta = token.delta
        if delta.startswith(_OPENING) and b"\\" not in delta and delta.count(b'"') == 4:
            return self._with_id(b"data: " + delta[len(_OPENING) : -2] + b"\n\n", token.seq)
        return b""

    def _other(self, frame: ServerFrame) -> bytes:
        self.last = time.monotonic()
        match frame:
            case Done(status=status):
                data, name = f"[{'DONE' if status == 'completed' else 'CANCELLED'}]", "done"
            case Failed(error=error):
                data, name = msgspec.json.encode(ErrorBody(error)).decode(), "error"
            case Refused(error=error):
                return event(msgspec.json.encode(ErrorBody(error)).decode(), name="error")
            case Pong():
                return PING
            case GoAway():
                return RETRY
            case _:
                return b""
        return self._with_id(event(data, name=name), frame.seq)

    def _with_id(self, data: bytes, seq: int) -> bytes:
        return b"id: %d%b\n%b" % (seq, self._suffix, data) if self._event_ids else data


FORMATS: Final = frozenset({"text", "frames"})


def format_named(name: str, start: Start, *, named: bool, before: Sequence[Delta] = ()) -> ChatFormat:
    """Return a new format for a generation; the frames format has event ids always. `before`: the reader's last delta."""
    epoch = start.epoch or None
    if name == "frames":
        return FramesFormat(epoch)
    text = decode_delta(before[-1]).get("content") if before else None
    return TextFormat(epoch, event_ids=named, after_cr=isinstance(text, str) and text.endswith("\r"))
