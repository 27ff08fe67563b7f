"""uvicorn's WebSocket protocol (sans-I/O), with a direct writer, and frames parsed in slices.

Invariants, with their tests:

- A text frame is written around ASGI only after `websocket.accept` went out through uvicorn and before a close frame
  was sent or received, only without compression, and only where the application was given uvicorn's own `send`. uvicorn
  writes each of its frames whole and unfragmented, so another one is legal between any two (RFC 6455, section 5.4)
  (tests/server/chat/test_direct_writing.py; tests/server/uvicorn_protocols/test_conformance.py runs Autobahn's cases).
- Backpressure is the transport's, for both ways of writing (uvicorn has it since #3048). Pongs are subject to it too
  (tests/server/chat/test_websocket.py: test_pings_of_a_client_that_does_not_read_pile_up_nowhere).
- Frames are parsed SLICE_BYTES at a time. All connections with more bytes than that share TURN_TIME in one turn of the
  event loop: reads of thousands of tiny frames delay no other connection
  (tests/server/uvicorn_protocols/test_holding.py: test_a_client_that_floods_affects_no_other,
  test_clients_that_flood_are_served_in_turn).
- Fragments are joined as they arrive (tests/server/uvicorn_protocols/test_closing.py:
  test_fragments_take_no_more_memory_than_their_bytes).
- After a close frame for a fault of the peer, its further bytes are read and discarded for LINGER_TIMEOUT: closing a
  connection with unread bytes resets it, and the peer may not get the close frame (RFC 6455, section 7.1.1;
  tests/server/uvicorn_protocols/test_closing.py).
- Reading is paused while a message waits for the application, or slices for the parser; the application always has a
  task in `receive`, so pongs and close frames are read
  (tests/server/chat/test_websocket.py: test_a_client_that_asks_without_reading_is_slowed_down_and_loses_nothing).
- A peer that answers no ping is dropped, and its socket freed. While bytes wait for it, only the write timeout counts, if
  there is one: the ping waits behind them (tests/server/uvicorn_protocols/test_holding.py: test_a_socket_that_answers_no_pings_is_dropped,
  test_a_slow_reader_whose_pongs_come_late_is_not_dropped, test_pings_drop_a_stalled_peer_where_no_write_timeout_does).
- An invalid handshake is answered with 400 and closed (tests/server/uvicorn_protocols/test_holding.py:
  test_what_is_no_handshake_is_answered_and_closed).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Close, CloseCode, Frame, Opcode

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Token
from ws_chat.server.chat.sender import DIRECT_WRITER, LIMIT
from ws_chat.server.http_errors import error_response
from ws_chat.server.uvicorn_protocols.bounds import is_bounded, pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Send
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.http11 import Request

    from ws_chat.protocol.frames import Frame as ChatFrame
    from ws_chat.server.chat.sender import Encode

SLICE_BYTES: Final = 512
"""Bytes of a client's frames that are parsed at a time."""
PARSE_TIMEOUT: Final = 0.001
"""Seconds for which one connection is parsed before the next one."""
TURN_TIME: Final = 0.004
"""Seconds of parsing in one turn of the event loop, besides reads of up to SLICE_BYTES."""
LINGER_TIMEOUT: Final = 2.0

_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
_ERROR = error_response(ErrorInfo.of("invalid_request", "The request is not a WebSocket handshake.")).body
_BAD_HANDSHAKE: Final = _HEAD % (len(_ERROR), _ERROR)

# The headers of text frames of up to 125 bytes.
_SHORT_HEADERS = [bytes((0x81, length)) for length in range(126)]


def _message(data: bytes) -> bytes:
    """Return an unmasked, unfragmented text frame (RFC 6455, section 5.2)."""
    length = len(data)
    if length < 126:
        return _SHORT_HEADERS[length] + data
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + data
    return b"\x81\x7f" + length.to_bytes(8, "big") + data


class _Turns:
    """The connections with unparsed bytes, which are parsed in turn."""

    def __init__(self) -> None:
        self._waiting: deque[DirectWebSocketProtocol] = deque()

    def add(self, connection: DirectWebSocketProtocol) -> None:
        if not connection.waits:
            connection.waits = True
            if not self._waiting:
                connection.loop.call_soon(self._run, connection.loop)
            self._waiting.append(connection)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        end = loop.time() + TURN_TIME
        again = []
        try:
            while self._waiting and loop.time() < end:
                connection = self._waiting.popleft()
                connection.waits = False
                try:
                    if connection.parse():
                        again.append(connection)
                except BaseException:  # asyncio closes a connection for this only in its own callbacks
                    connection.transport.abort()
                    raise
        finally:  # also if one raises: the others are still parsed
            if self._waiting:
                loop.call_soon(self._run, loop)
            for connection in again:
                self.add(connection)


class _Inbox:
    """The events that the application has not received yet. In its place uvicorn has a Queue, of 3 KB for an idle socket."""

    __slots__ = ("_events", "_waiters")

    def __init__(self) -> None:
        self._events: list[ASGIReceiveEvent] = []  # few: only while there is none, another frame is parsed
        self._waiters: list[asyncio.Future[None]] = []

    def empty(self) -> bool:
        return not self._events

    def put_nowait(self, event: ASGIReceiveEvent) -> None:
        self._events.append(event)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def get(self) -> ASGIReceiveEvent:
        while not self._events:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        return self._events.pop(0)


class DirectWebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket to which text frames can be written directly."""

    on_writable: Callable[[], None] | None = None
    encode: Encode
    sent = 0
    dropped = False
    _full = False
    waits = False
    """Whether it is in the queue of `_Turns`."""
    _discarding = False  # our close frame was sent: what the peer still sends is ignored

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.debug = False  # else it logs the handshake, which contains keys
        self.queue = cast("asyncio.Queue[ASGIReceiveEvent]", _Inbox())
        self._unread = bytearray()
        self._turns: _Turns = self.app_state.setdefault("ws_chat.turns", _Turns())

    def handle_connect(self, event: Request) -> None:
        """Start the application, with the direct writer in its scope."""
        super().handle_connect(event)
        if not self.close_sent and not self.config.ws_per_message_deflate:
            cast("dict[str, Any]", self.scope["extensions"])[DIRECT_WRITER] = self

    async def send(self, message: ASGISendEvent) -> None:
        if not (message["type"] == "websocket.http.response.body" and self.conn.eof_sent):  # answered by a shutdown
            await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # else uvicorn logs a refusal as an error of the application (uvicorn #3138)
        elif message["type"] == "websocket.close":
            self._call_on_writable()

    def send_receive_event_to_app(self) -> None:
        # uvicorn would log text that is not UTF-8 as an error of the application, with a traceback.
        self.frames = [b"".join(self.frames)]
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                self.frames[0].decode()
            except UnicodeDecodeError:
                self._close_for_fault(CloseCode.INVALID_DATA)
                return
        super().send_receive_event_to_app()

    def handle_cont(self, event: Frame) -> None:
        # Join in one buffer: a list of one-byte fragments would need fifty times their size.
        if self.frames and not isinstance(self.frames[0], bytearray):
            self.frames[0] = bytearray(self.frames[0])  # type: ignore[call-overload]
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        assert self.conn.close_sent is not None  # noqa: S101  (as in uvicorn)
        self._close_for_fault(self.conn.close_sent.code, self.conn.close_sent.reason)

    def _close_for_fault(self, code: int, reason: str = "") -> None:
        """Send a close frame, and close the connection when the peer has, or after LINGER_TIMEOUT."""
        if self.close_sent:
            return
        if code == CloseCode.MESSAGE_TOO_BIG and (count := self.app_state.get(LIMIT)):
            count("max_frame_bytes")
        self.conn.data_to_send()  # it may hold the answer to a close frame that came in the same read
        self.transport.write(Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False))
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_sent = self._discarding = True
        self._unread.clear()
        self.stop_keepalive()
        self.close_timer = self.loop.call_later(LINGER_TIMEOUT, self.transport.close)
        if self.transport.can_write_eof():  # not with TLS
            self.transport.write_eof()
        self.transport.resume_reading()
        self._call_on_writable()

    def handle_ping(self) -> None:
        # No pongs for a peer that does not read: they would fill the memory.
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def pause_writing(self) -> None:
        self._full = True
        super().pause_writing()
        self._call_on_writable()

    def resume_writing(self) -> None:
        self._full = False
        super().resume_writing()
        self._call_on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.dropped = self.dropped or isinstance(exc, TimeoutError)
        self._call_on_writable()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unread += data
        if len(self._unread) > SLICE_BYTES:
            self.transport.pause_reading()
            self._turns.add(self)
        else:
            self.parse()

    def parse(self) -> bool:
        """Parse until there is a message for the application, or for PARSE_TIMEOUT; return whether it needs more turns."""
        end = self.loop.time() + PARSE_TIMEOUT
        # After our close frame the application receives no more messages: parse until the peer's close frame.
        while self._unread and (self.close_sent or self.queue.empty()) and not self.transport.is_closing():
            part = self._unread[:SLICE_BYTES]
            del self._unread[:SLICE_BYTES]
            super().data_received(bytes(part))
            # Checked after a slice: a read of a single one is not queued, and must be parsed now.
            if self._unread and self.loop.time() > end:
                return True
        if self.conn.handshake_exc and not self.handshake_initiated:
            self._refuse_handshake()
        if not (self._unread or self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()
        if self.is_gone():
            self._call_on_writable()
        return False

    def _refuse_handshake(self) -> None:
        # uvicorn leaves such a connection open for ever, and fails when it is shut down.
        self.handshake_complete = self.close_sent = True
        self.transport.write(_BAD_HANDSHAKE)
        self.transport.close()

    async def receive(self) -> ASGIReceiveEvent:
        if self.queue.empty() and not self.transport.is_closing():
            if self.read_paused:
                self.read_paused = False
                if not self._unread:
                    self.transport.resume_reading()
            if self._unread:
                self._turns.add(self)
        return await self.queue.get()

    def keepalive_timeout(self) -> None:
        if self.ping_timeout and is_bounded(self.transport) and pending(self.transport):
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        if pending(self.transport):
            self.transport.abort()  # uvicorn's `close` (since #2888) waits until they are written, perhaps for ever
        self.dropped = True
        self._call_on_writable()

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are uvicorn's own callables for this connection."""
        return receive == self.receive and send == self.send

    def is_writable(self) -> bool:
        """Whether a frame may be written now: the socket has room, and no close frame was sent or received."""
        return self.handshake_complete and not (self._full or self.close_sent or self.transport.is_closing())

    def is_gone(self) -> bool:
        """Whether no frame will ever be written again."""
        return self.close_sent or self.transport.is_closing()

    def write_direct(self, frame: ChatFrame) -> None:
        """Write a text frame. On a connection that is closing it is lost."""
        if type(frame) is Token:
            message = frame.message
            if message is None:  # made once for all sockets
                data = frame.head + b"%d," % frame.seq + frame.delta[1:]
                length = len(data)
                frame.message = message = _SHORT_HEADERS[length] + data if length < 126 else _message(data)
        else:
            message = _message(self.encode(frame))
        self.sent += len(message)
        transport = self.transport
        if not transport.is_closing():
            transport.write(message)

    def _call_on_writable(self) -> None:
        if self.on_writable:
            self.on_writable()
