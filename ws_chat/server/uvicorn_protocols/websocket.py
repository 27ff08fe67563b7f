"""uvicorn's WebSocket protocol, with a direct writer, and frames parsed in slices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.server.chat.sender import DIRECT_WRITER
from ws_chat.server.http_errors import error_response
from ws_chat.server.uvicorn_protocols.bounds import is_bounded, pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Send
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.http11 import Request

    from ws_chat.protocol.frames import Frame
    from ws_chat.server.chat.sender import Encode

SLICE: Final = 512
"""Bytes of a client's frames that are parsed at a time."""
TURN: Final = 0.002
"""Seconds after which others have their turn."""

_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
_ERROR = error_response(ErrorInfo.of("invalid_request", "This is no WebSocket handshake.")).body
_BAD_HANDSHAKE: Final = _HEAD % (len(_ERROR), _ERROR)

# Unmasked, unfragmented text frames (RFC 6455, section 5.2) of up to 125 bytes: their two bytes of header.
_SHORT_HEADERS = [bytes((0x81, length)) for length in range(126)]


class DirectWebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose text frames can be written directly. Only without compression."""

    on_writable: Callable[[], None] | None = None
    sent = 0
    dropped = False
    _full = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.debug = False  # it would log the handshake, and the keys in it
        self._unread = bytearray()

    def handle_connect(self, event: Request) -> None:
        """Offer the direct writer to the application."""
        super().handle_connect(event)
        if not self.close_sent and not self.config.ws_per_message_deflate:
            cast("dict[str, Any]", self.scope["extensions"])[DIRECT_WRITER] = self

    async def send(self, message: ASGISendEvent) -> None:
        """Take a message of the application."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # refused: else it would be logged as an application that did nothing
        elif message["type"] == "websocket.close":
            self._tell()

    def send_receive_event_to_app(self) -> None:
        """Give a message to the application; close on one that is not UTF-8, which is the client's fault."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.conn.send_close(CloseCode.INVALID_DATA)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer a ping, but not one of a peer that reads no answers: they would pile up without a bound."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def pause_writing(self) -> None:
        """Tell that the transport takes no more bytes."""
        self._full = True
        super().pause_writing()
        self._tell()

    def resume_writing(self) -> None:
        """Tell that the transport takes bytes again."""
        self._full = False
        super().resume_writing()
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, and tell whoever writes."""
        super().connection_lost(exc)
        self.dropped = self.dropped or isinstance(exc, TimeoutError)
        self._tell()

    def data_received(self, data: bytes) -> None:
        """Take a read; when it ended the connection, tell whoever writes."""
        # It may hold tens of thousands of tiny frames, which would keep everybody else waiting.
        self._unread += data
        if len(self._unread) > SLICE:
            self.transport.pause_reading()
        self._feed()

    def _feed(self) -> None:
        """Parse until there is a message for the application, or others have waited long enough."""
        enough = self.loop.time() + TURN
        # After our close frame nobody takes messages any more, and the peer's own is waited for.
        while self._unread and (self.close_sent or self.queue.empty()) and not self.transport.is_closing():
            if self.loop.time() > enough:
                self.loop.call_soon(self._feed)
                return
            part = self._unread[:SLICE]
            del self._unread[:SLICE]
            super().data_received(bytes(part))
        if self.conn.handshake_exc and not self.handshake_initiated:
            self._refuse_handshake()
        if not (self._unread or self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()
        if self.is_gone():
            self._tell()

    def _refuse_handshake(self) -> None:
        """Answer what is no handshake: uvicorn would leave it open for ever, and fail at its own end."""
        self.handshake_complete = self.close_sent = True
        self.transport.write(_BAD_HANDSHAKE)
        self.transport.close()

    async def receive(self) -> ASGIReceiveEvent:
        """Give the application a message, and read on when there is none left."""
        while self._unread and self.queue.empty() and not self.is_gone():
            await asyncio.sleep(0)
            self._feed()
        if self.read_paused and self.queue.empty() and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
        return await self.queue.get()

    def keepalive_timeout(self) -> None:
        """Give up a peer that answers no pings, and tell whoever writes."""
        if self.ping_timeout and is_bounded(self.transport) and pending(self.transport):
            # The ping waits behind them. Whether the peer goes on taking bytes is the write timeout's business.
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        if pending(self.transport):
            self.transport.abort()  # it would wait for ever to write them
        self.dropped = True
        self._tell()

    # A frame is written around ASGI only after `websocket.accept` went out through uvicorn, and before a close frame did.

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are uvicorn's own callables for this connection."""
        return receive == self.receive and send == self.send

    def is_writable(self) -> bool:
        """Whether a frame may be written now: the socket has room, and no close frame has come or gone."""
        return self.handshake_complete and not (self._full or self.close_sent or self.transport.is_closing())

    def is_gone(self) -> bool:
        """Whether no frame will ever be written again."""
        return self.close_sent or self.transport.is_closing()

    def _tell(self) -> None:
        if self.on_writable:
            self.on_writable()

    def write_direct(self, encode: Encode, frame: Frame) -> None:
        """Write a text frame, unless the connection is gone."""
        data = encode(frame)
        length = len(data)
        self.sent += length
        if length < 126:
            header = _SHORT_HEADERS[length]
        elif length < 65536:
            header = b"\x81\x7e" + length.to_bytes(2, "big")
        else:
            header = b"\x81\x7f" + length.to_bytes(8, "big")
        if not self.transport.is_closing():
            self.transport.write(header + data)
