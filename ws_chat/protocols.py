"""uvicorn's WebSocket and HTTP protocols with a direct way out for the frames of a stream.

An ASGI `send` per token costs a wake-up of a task and a walk through several layers. These classes offer the door a
wire, as an extension of the scope: a synchronous write to the transport, and word of when it takes bytes again. All
else stays uvicorn's: handshake, closing, pings, limits. Under any other server the extension is not there, and the door
awaits `send`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from ws_chat.doors.outlet import WIRE, WRITE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.http11 import Request

# Unmasked, unfragmented text frames (RFC 6455, section 5.2) of up to 125 bytes: their two bytes of header.
_SHORT_HEADERS = [bytes((0x81, length)) for length in range(126)]


HEAD_TIMEOUT: Final = 10.0
"""Seconds in which a request's head must come, of a WebSocket's handshake too."""
BODY_TIMEOUT: Final = 60.0
"""Seconds in which its body must come."""
MAX_HEAD: Final = 64 * 1024
"""Bytes that a request's head has at most."""
SLICE: Final = 512
"""Bytes of a client's frames that are parsed at a time."""
TURN: Final = 0.002
"""Seconds after which others have their turn."""
SEND_BUFFER: Final = 128 * 1024
"""Bytes that the kernel keeps for a peer that is slow (twice that, by its own counting)."""


def _bound(transport: asyncio.BaseTransport, app_state: dict[str, Any]) -> None:
    """Let the kernel drop a peer that takes nothing for the write timeout, and keep no more than SEND_BUFFER for it.

    The user timeout (RFC 5482) is the time that sent data may stay unacknowledged, or a window closed.
    """
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family != socket.AF_UNIX:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        seconds = app_state.get(WRITE_TIMEOUT)
        if seconds and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


class DirectWebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose text frames can be written directly. Only without compression."""

    on_change: Callable[[], None] | None = None
    sent = 0
    dropped = False
    _full = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.debug = False  # it would log the handshake, and the keys in it
        self._unread = bytearray()

    def handle_connect(self, event: Request) -> None:
        """Offer the wire to the application."""
        super().handle_connect(event)
        if not self.close_sent and not self.config.ws_per_message_deflate:
            cast("dict[str, Any]", self.scope["extensions"])[WIRE] = self

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
        if not (self._unread or self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()
        if self.is_gone():
            self._tell()

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
        super().keepalive_timeout()
        self.dropped = True
        self._tell()

    def takes_bytes(self) -> bool:
        """Whether a frame may be written now: the socket has room, and no close frame has come or gone."""
        return not (self._full or self.close_sent or self.transport.is_closing())

    def is_gone(self) -> bool:
        """Whether no frame will ever be written again."""
        return self.close_sent or self.transport.is_closing()

    def _tell(self) -> None:
        if self.on_change:
            self.on_change()

    def write_direct(self, encode: Callable[[Any], bytes], frame: Any) -> None:
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


class DirectHTTPProtocol(HttpToolsProtocol):
    """An HTTP connection to which the chunks of a response can be written directly."""

    on_change: Callable[[], None] | None = None
    sent = 0
    dropped = False
    _deaf = False
    _head = 0  # bytes that came of a request's head; -1 after it
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection, and give its first request a time to come."""
        super().connection_made(transport)
        _bound(transport, self.app_state)
        self._await_within(HEAD_TIMEOUT)

    # uvicorn reads no further when a request comes before the last one is answered, and then it does not see the client
    # go away. That may be an answer of minutes: here such a request is not answered but read past, and the connection
    # closes after the first response, for which a client must be prepared (RFC 9112, section 9.3.2).

    def on_headers_complete(self) -> None:
        """Take a request, or pass it over."""
        if self.cycle and not self.cycle.response_complete:
            self._deaf = True
            self.cycle.keep_alive = False
        else:
            self._head = -1
            self._await_within(BODY_TIMEOUT)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        if not self._deaf:
            self._await_within(None)
            super().on_message_complete()
            # A large body may have paused reading, and a client that goes away would not be seen.
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take a read."""
        if self._deaf:
            return
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD:
            self.logger.warning("A request's head is too long.")
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Offer the wire to the application."""
        self._head = 0
        if self._slow is None:
            self._await_within(HEAD_TIMEOUT)
        super().on_message_begin()
        extensions: dict[str, Any] = {WIRE: self}
        self.scope["extensions"] = extensions

    def pause_writing(self) -> None:
        """Tell that the transport takes no more bytes."""
        super().pause_writing()
        if self.on_change:
            self.on_change()

    def resume_writing(self) -> None:
        """Tell that the transport takes bytes again."""
        super().resume_writing()
        if self.on_change:
            self.on_change()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, and tell whoever writes."""
        super().connection_lost(exc)
        self._await_within(None)
        self.dropped = isinstance(exc, TimeoutError)
        if self.on_change:
            self.on_change()

    def _await_within(self, seconds: float | None) -> None:
        """Give up the connection after so many seconds; None: it may take its time."""
        if self._slow:
            self._slow.cancel()
        self._slow = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def handle_websocket_upgrade(self) -> None:
        """Upgrade, unless an answer is under way."""
        if not self._deaf:
            self._await_within(None)
            super().handle_websocket_upgrade()

    def takes_bytes(self) -> bool:
        """Whether a chunk may be written now."""
        return not self.flow.write_paused and not self.transport.is_closing()

    def is_gone(self) -> bool:
        """Whether no chunk will ever be written again."""
        return self.transport.is_closing()

    def write_direct(self, encode: Callable[[Any], bytes], frame: Any) -> None:
        """Write a chunk (RFC 9112, section 7.1) of a response whose head is out, unless the connection is gone."""
        data = encode(frame)
        self.sent += len(data)
        if data and not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
