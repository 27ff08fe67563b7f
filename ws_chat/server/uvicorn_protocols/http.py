"""uvicorn's HTTP protocol, with a direct writer, and with limits in time and size for slow clients.

Invariants, with their tests:

- A chunk is written around ASGI only between `http.response.start` and the end of a response, both of which go through
  uvicorn, and only where the application was given uvicorn's own `send`. The response is chunked, and uvicorn writes
  each of its chunks whole, so another chunk is legal between any two (RFC 9112, section 7.1). None comes before a status
  line or into another response (tests/server/chat/test_direct_writing.py).
- The head of a response is written together with its first chunks, and a terminal frame with the end of the response. At
  most HELD bytes are held, and what is held is written before anything that follows it
  (tests/server/chat/test_direct_writing.py: test_a_short_answer_is_sent_in_two_writes).
- Backpressure is the transport's, for both ways of writing: `is_writable` is false while it is full.
- A head comes within HEAD_TIMEOUT and MAX_HEAD, a body within BODY_TIMEOUT. uvicorn has no such limits (uvicorn #157),
  nor one for a connection that sends no request (uvicorn #160, #1192). An answer may take any time
  (tests/server/uvicorn_protocols/test_holding.py: test_a_slow_request_is_closed, test_a_head_has_a_size, test_trailers_have_a_size,
  test_a_line_break_keeps_no_connection_open, test_an_answer_may_take_longer_than_a_request).
- While an answer is sent, the connection is read, so that a client that disconnects is noticed
  (tests/server/chat/test_sse.py: test_a_pipelined_request_hides_no_client_that_goes_away,
  test_a_large_request_hides_no_client_that_goes_away).
- One request at a time: a pipelined request is not answered
  (tests/server/chat/test_sse.py: test_a_pipelined_request_is_not_answered_and_the_connection_closes,
  test_a_pipelined_upgrade_does_not_break_the_answer).
- A shutdown waits for the answer that is being sent, but for no request that is still incomplete
  (tests/server/test_drain.py: test_an_incomplete_request_does_not_delay_the_end).
- Every `Upgrade` but that of a WebSocket handshake is ignored, and the body of such a request is read as a body
  (RFC 9110, section 7.8; tests/server/uvicorn_protocols/test_upgrade.py). uvicorn and httptools end the request with its
  head, and parse its body as another request (uvicorn #2722, httptools #124).
- Frames in the same read as a WebSocket handshake are parsed (tests/server/uvicorn_protocols/test_closing.py:
  test_frames_sent_with_the_handshake_are_answered). uvicorn drops them.
- Bytes after a complete request that are not HTTP are not answered, like a pipelined request: nothing is written before, or
  into, the answer to the request (tests/server/uvicorn_protocols/test_closing.py: test_garbage_behind_a_request_does_not_break_its_answer).
- A response to HTTP/1.0 is not chunked: it ends with the connection (RFC 9112, section 6.1;
  tests/server/uvicorn_protocols/test_closing.py: test_an_answer_to_http_1_0_is_not_chunked).
- A few file descriptors stay free for health checks: a connection with one of the last ones serves nothing else
  (tests/server/uvicorn_protocols/test_files.py).
- Trailers do not become headers (RFC 9110, section 6.5.1), as they do in uvicorn: a client must not send X-Forwarded-Proto
  past a proxy (tests/server/uvicorn_protocols/test_upgrade.py: test_trailers_do_not_become_headers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed
from ws_chat.server.chat.sender import DIRECT_WRITER, LIMIT
from ws_chat.server.http_errors import error_response
from ws_chat.server.uvicorn_protocols.bounds import LastFiles, bound

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import Receive, Send
    from uvicorn._types import ASGISendEvent

    from ws_chat.protocol.frames import Frame
    from ws_chat.server.chat.sender import Encode

HEAD_TIMEOUT: Final = 10.0
"""Seconds for the head of a request or WebSocket handshake."""
BODY_TIMEOUT: Final = 60.0
"""Seconds for its body."""
MAX_HEAD: Final = 64 * 1024
"""Bytes of a request's head, of the chunk sizes between two pieces of a body, and of trailers."""
HELD: Final = 16 * 1024
"""Bytes of a response that are held at most, to be sent in one write with what follows."""
_TERMINAL: Final = frozenset({Done, Failed})
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})


_ERROR: Final = error_response(
    ErrorInfo.of("overloaded", "This server's limit of open files is reached.", retry_after=1)
).body
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_ERROR), bytes(_ERROR))
)
# The lines before chunks of up to 511 bytes (RFC 9112, section 7.1): nearly all events.
_CHUNK_SIZES = [b"%x\r\n" % length for length in range(512)]


class _UnchunkedCycle(RequestResponseCycle):
    """An HTTP/1.0 request. uvicorn would answer it with chunks, unless the length of the response is known."""

    _unbounded = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self._unbounded = b"content-length" not in {name.lower() for name, _ in message.get("headers", ())}
            if self._unbounded:
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and self._unbounded:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _Held:
    """Stands in for the transport of a response, and holds what is written: each write is a call of the kernel."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._data = b""

    def write(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > HELD:
            self.flush()

    def flush(self) -> None:
        data, self._data = self._data, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class DirectHTTPProtocol(HttpToolsProtocol):
    """An HTTP connection to which the chunks of a response can be written directly."""

    on_writable: Callable[[], None] | None = None
    encode: Encode
    sent = 0
    dropped = False
    _discarding = False  # a pipelined request was received: nothing more is parsed
    _upgraded = False
    _ignoring = False  # the head is complete and its Upgrade is ignored: it is parsed again without it
    _head = 0  # bytes received of a head, or since the last piece of a body: chunk sizes, trailers
    _is_last = False  # it has one of the last file descriptors
    _limit: float | None = None  # seconds for what is being received of a request
    _deadline: asyncio.TimerHandle | None = None  # its timer
    _parsing = False  # the timer is set afterwards: nearly every request comes in one read, and needs none
    _limit_changed = False
    _held: _Held | None = None  # the end of a response, or its beginning, that is not written yet

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._apps = (self.app.app, self.app) if isinstance(self.app, ProxyHeadersMiddleware) else (self.app, self.app)
        bound(transport, self.app_state)
        self._close_after(HEAD_TIMEOUT)
        self._last_files: LastFiles = self.app_state.setdefault("ws_chat.last_files", LastFiles())
        if self._last_files.has(transport, self.loop.time()):
            self._is_last = True
            self._count("open_files")

    # At a pipelined request uvicorn pauses reading until the answer before it has ended, which may take minutes: it
    # would not notice that the client disconnects. Such a request is not answered, and the connection closes after the
    # current answer, for which a client must be prepared (RFC 9112, section 9.3.2).

    def on_headers_complete(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            self._discarding = True
            self.cycle.keep_alive = False
            return
        self._head = 0
        if self._is_last and not self.url.partition(b"?")[0].endswith(b"/healthz"):
            self._discarding = True
            self.transport.write(_FULL)
            self.transport.close()
            return
        if self.parser.should_upgrade() and not self._should_upgrade():
            self._ignoring = True
            return
        self._close_after(BODY_TIMEOUT)
        # Without these headers uvicorn's middleware changes nothing, but costs as much as three others.
        self.app = self._apps[any(name in _FORWARDED for name, _ in self.headers)]
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = _UnchunkedCycle
        self.headers = list(self.headers)  # uvicorn appends trailers to this list; the other one is the application's

    def on_body(self, body: bytes) -> None:
        self._head = 0
        if not self._discarding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not (self._discarding or self._ignoring):
            self._head = 0
            self._close_after(None)
            super().on_message_complete()
            # At a large body uvicorn pauses reading until the answer ends.
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._head += len(data)
        self._unset_keepalive_if_required()
        self._parsing = True
        self._parse(data)
        self._parsing = False
        if self._limit_changed:
            self._start_timer()
        if self._head > MAX_HEAD:
            self.logger.warning("Closing a connection: its request's head has more than %d bytes.", MAX_HEAD)
            self._count("head_bytes")
            self.transport.abort()
        elif self._limit is None and (self.cycle is None or self.cycle.response_complete) and not self._upgraded:
            # Any byte stops uvicorn's own keep-alive timer, and a line break starts no request.
            self._close_after(HEAD_TIMEOUT)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            if self.cycle and not (self.cycle.more_body or self.cycle.response_complete):
                self._discarding = True
                self.cycle.keep_alive = False
            else:
                self._refuse()
        except httptools.HttpParserUpgrade as upgrade:  # after a head; `data` may contain more
            if self._ignoring:
                self._ignore_upgrade(data[upgrade.args[0] :])
            elif not self._discarding:
                self.handle_websocket_upgrade()
                # uvicorn drops the rest of the read: the rest of a frame would then be parsed as a new frame.
                if rest := data[upgrade.args[0] :]:
                    cast("asyncio.Protocol", self.transport.get_protocol()).data_received(rest)

    def _should_upgrade(self) -> bool:
        """Whether the request is a WebSocket handshake: a GET of HTTP/1.1 (RFC 6455, section 4.1)."""
        handshake = self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"
        return handshake and super()._should_upgrade()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the head again without its `Upgrade`, in a new parser, and then the bytes after it.

        The parser has ended the request with its head, and httptools cannot undo that.
        """
        self._ignoring = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # an upgrade even without a header, and without a path
            self._refuse()
            return
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(fields))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(head + rest)

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    def on_message_begin(self) -> None:
        """Start a request, with the direct writer in its scope."""
        self._head = 0
        if self._limit is None:
            self._close_after(HEAD_TIMEOUT)
        super().on_message_begin()
        extensions: dict[str, Any] = {DIRECT_WRITER: self}
        self.scope["extensions"] = extensions

    def pause_writing(self) -> None:
        super().pause_writing()
        self._call_on_writable()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._call_on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._close_after(None)
        self._last_files.discard(self.transport)
        self.dropped = isinstance(exc, TimeoutError)
        self._call_on_writable()

    def handle_websocket_upgrade(self) -> None:
        if not self._discarding:
            self._upgraded = True
            self._close_after(None)
            # In the absolute form (RFC 9112, section 3.2.2) uvicorn would use all of it as the path.
            if not self.url.startswith(b"/"):
                url = httptools.parse_url(self.url)
                self.url = (url.path or b"/") + (b"?" + url.query if url.query else b"")
            super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        if self._limit:
            self.transport.abort()
        else:
            super().shutdown()

    def owns(self, receive: Receive, send: Send) -> bool:
        """Whether these are uvicorn's own callables for the current request."""
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

    def write_direct(self, frame: Frame) -> None:
        """Write a frame as a chunk. On a connection that is closing it is lost."""
        data = self.encode(frame)
        self.sent += len(data)
        if data and not self.transport.is_closing():
            if self.cycle.chunked_encoding:
                length = len(data)
                size = _CHUNK_SIZES[length] if length < len(_CHUNK_SIZES) else b"%x\r\n" % length
                data = size + data + b"\r\n"
            if type(frame) in _TERMINAL:
                self.hold()
            self.cycle.transport.write(data)

    def hold(self) -> None:
        """Hold what is written of the response until `release`."""
        if not self.flow.write_paused and self._held is None:
            self._held = _Held(self.transport)
            self.cycle.transport = cast("asyncio.Transport", self._held)

    def release(self) -> None:
        """Write what is held."""
        if self._held:
            self._held.flush()
            self._held = None
            self.cycle.transport = self.transport

    def _call_on_writable(self) -> None:
        if self.on_writable:
            self.on_writable()

    def _close_after(self, seconds: float | None) -> None:
        """Close the connection after `seconds`, unless called again; None: never."""
        self._limit = seconds
        self._limit_changed = True
        if not self._parsing:
            self._start_timer()

    def _start_timer(self) -> None:
        self._limit_changed = False
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._limit, self._expire) if self._limit else None

    def _expire(self) -> None:
        self._count("request_seconds")
        self.transport.abort()

    def _count(self, limit: str) -> None:
        if count := self.app_state.get(LIMIT):
            count(limit)
