"""uvicorn's HTTP protocol, with a direct writer, and bounds in time and size for whoever is slow to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ws_chat.server.chat.sender import DIRECT_WRITER
from ws_chat.server.uvicorn_protocols.bounds import bound

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import Receive, Send

    from ws_chat.protocol.frames import Frame
    from ws_chat.server.chat.sender import Encode

HEAD_TIMEOUT: Final = 10.0
"""Seconds in which a request's head must come, of a WebSocket's handshake too."""
BODY_TIMEOUT: Final = 60.0
"""Seconds in which its body must come."""
MAX_HEAD: Final = 64 * 1024
"""Bytes that a request's head has at most, and all that may come between two pieces of a body, or after the last."""


class DirectHTTPProtocol(HttpToolsProtocol):
    """An HTTP connection to which the chunks of a response can be written directly."""

    on_writable: Callable[[], None] | None = None
    sent = 0
    dropped = False
    _deaf = False
    _upgraded = False
    _head = 0  # bytes that came of a head, or since the last piece of a body: trailers, the sizes of chunks
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection, and give its first request a time to come."""
        super().connection_made(transport)
        bound(transport, self.app_state)
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
            self._head = 0
            self._await_within(BODY_TIMEOUT)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        self._head = 0
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        if not self._deaf:
            self._head = 0
            self._await_within(None)
            super().on_message_complete()
            # A large body may have paused reading, and a client that goes away would not be seen.
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take a read."""
        if self._deaf:
            return
        self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD:
            self.logger.warning("A request's head is too long.")
            self.transport.abort()
        elif self._slow is None and (self.cycle is None or self.cycle.response_complete) and not self._upgraded:
            self._await_within(HEAD_TIMEOUT)  # a line break is not a request yet, and stops uvicorn's own timer

    def on_message_begin(self) -> None:
        """Offer the direct writer to the application."""
        self._head = 0
        if self._slow is None:
            self._await_within(HEAD_TIMEOUT)
        super().on_message_begin()
        extensions: dict[str, Any] = {DIRECT_WRITER: self}
        self.scope["extensions"] = extensions

    def pause_writing(self) -> None:
        """Tell that the transport takes no more bytes."""
        super().pause_writing()
        if self.on_writable:
            self.on_writable()

    def resume_writing(self) -> None:
        """Tell that the transport takes bytes again."""
        super().resume_writing()
        if self.on_writable:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, and tell whoever writes."""
        super().connection_lost(exc)
        self._await_within(None)
        self.dropped = isinstance(exc, TimeoutError)
        if self.on_writable:
            self.on_writable()

    def _await_within(self, seconds: float | None) -> None:
        """Give up the connection after so many seconds; None: it may take its time."""
        if self._slow:
            self._slow.cancel()
        self._slow = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def handle_websocket_upgrade(self) -> None:
        """Upgrade, unless an answer is under way."""
        if not self._deaf:
            self._upgraded = True
            self._await_within(None)
            super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Close, after the answer that is under way; a request that has not come yet is not waited for."""
        if self._slow:
            self.transport.abort()
        else:
            super().shutdown()

    # A chunk is written around ASGI only after `http.response.start` went out through uvicorn, and before the end did:
    # no chunk stands in front of a status line, and none is in another response.

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are uvicorn's own callables for the request that is being answered."""
        return receive == self.cycle.receive and send == self.cycle.send

    def is_writable(self) -> bool:
        """Whether a chunk may be written now."""
        cycle = self.cycle
        return (
            cycle.response_started
            and not cycle.response_complete
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def is_gone(self) -> bool:
        """Whether no chunk will ever be written again."""
        return self.transport.is_closing()

    def write_direct(self, encode: Encode, frame: Frame) -> None:
        """Write a chunk (RFC 9112, section 7.1) of a response whose head is out, unless the connection is gone."""
        data = encode(frame)
        self.sent += len(data)
        if data and not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
