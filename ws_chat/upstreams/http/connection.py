"""One HTTP/1.1 connection to an upstream (RFC 9112), which pushes the body of a response (body.py) as it arrives.

Reading through awaits would wake a task for every token. Here the bytes of a body go from the event loop through the
parser into a function, in the same turn. The pool and TLS are the transport's.

Invariants, each with its tests in tests/upstreams/http/test_transport.py:

- One request at a time. A connection is free again only when the parser has seen the whole response, the server keeps
  it open, and nothing came after the end (test_a_connection_is_used_again_after_a_whole_body_only).
- The bytes before a fault are delivered before the fault is raised, however the stream is split into reads
  (test_what_came_before_a_fault_in_the_same_read_is_delivered).
- Whatever ends the connection ends the wait for the head, or for the body; a body that is cut off is never complete
  (test_failures_are_errors_of_httpx2, test_a_connection_that_is_lost_before_it_is_used_is_an_error_at_once).
- Silence for the timeout, counted from the request or the last read, fails the request (test_silence_in_a_body_ends_it).
- Interim responses (1xx) and trailers are skipped (test_a_body_arrives_whole_pushed_or_pulled); a 101 is a fault.
- Bytes outside of the body are bounded: at most OVERHEAD_LIMIT of heads, trailers and chunk extensions in a row
  (test_bytes_that_are_no_body_are_bounded).
- A large read is parsed in slices, and all connections together get TURN_TIME for it in a turn of the event loop: a flood
  of tiny events delays nothing else (test_a_flood_leaves_the_event_loop_to_others). Reading is paused meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools
import httpx2

from ws_chat.upstreams.http.body import Head

if TYPE_CHECKING:
    from collections.abc import Callable

    from ws_chat.upstreams.http.body import Body

OVERHEAD_LIMIT: Final = 64 * 1024
"""Bytes in a row outside of the body, above which a response is malformed."""
DIRECT: Final = 4 * 1024
"""Bytes of a read that are parsed at once. A longer one waits for its turn."""
SLICE: Final = 32 * 1024
"""Bytes that are parsed at once: in the worst case, tiny events, they take a few milliseconds."""
TURN_TIME: Final = 0.005
"""Seconds of a turn of the event loop in which waiting reads are parsed."""


_NOTHING: Final = memoryview(b"")


class StaleConnectionError(Exception):
    """A reused connection was closed before it answered: the server had closed it as idle."""


class Turns:
    """The connections whose last read waits to be parsed: a slice of each in turn, for TURN_TIME of an event loop's turn."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()

    def add(self, connection: Connection) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append(connection)

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN_TIME
        try:
            while self._waiting:
                connection = self._waiting.popleft()
                if connection.parse_slice():
                    self._waiting.append(connection)
                if loop.time() >= end:
                    break
        finally:
            if self._waiting:
                loop.call_soon(self._run)


class Connection(asyncio.Protocol):
    """A connection. `on_idle` is called when it can serve another request, `on_lost` when it never can.

    All connections of a transport share `turns`.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_complete",
        "_drain",
        "_ends_with_connection",
        "_head",
        "_headers",
        "_heard",
        "_held",
        "_keep_alive",
        "_last",
        "_loop",
        "_now",
        "_on_idle",
        "_on_lost",
        "_overhead",
        "_parser",
        "_parts",
        "_paused",
        "_rest",
        "_served",
        "_surplus",
        "_timeout",
        "_timer",
        "_transport",
        "_turns",
        "_whole",
        "idle_since",
        "on_body",
    )

    _transport: asyncio.Transport
    _parser: Any

    def __init__(
        self, on_idle: Callable[[Connection], None], on_lost: Callable[[Connection], None], turns: Turns
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._parser = None
        self._parts: list[bytes] = []  # pieces of the body in the read that is parsed
        self.on_body = self._parts.append  # called by the parser; a method of ours would cost a call for every token
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._turns = turns
        self._served = 0
        self._last = 0.0  # loop time of the request or the last read
        self._timeout: float | None = None
        self._timer: asyncio.TimerHandle | None = None  # of the silence timeout; kept for the next request
        self._drain: asyncio.TimerHandle | None = None
        self._head: Head | None = None
        self._answered: asyncio.Future[None] | None = None  # the head was received, or the body was pushed to its end
        self._body: Body | None = None
        self._rest = _NOTHING  # of a large read, waiting in `turns`
        self._held = False  # the body's buffer is full
        self._paused = False
        self.idle_since = 0.0

    @property
    def closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    async def exchange(self, request: bytes, timeout: float | None, body: Body) -> Head:
        """Send a request and wait for the head of its response. `timeout`: seconds of silence, here and in the body.

        A body with a sink is pushed into it, if the response is a plain success, and then this waits for its end too.
        Being cancelled closes the connection. Raises httpx2's errors (none after the head: those are the body's), and
        StaleConnectionError.
        """
        if self.closing:
            # `connection_lost`, which would end the wait, may have been called already.
            raise StaleConnectionError if self._served else httpx2.RemoteProtocolError("Server disconnected at once.")
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts.clear()
        self._whole = 0  # the pieces of this response, when it is complete: what came after them is another one's
        self._overhead = 0  # bytes since the last piece of a body
        self._heard = self._complete = self._surplus = self._keep_alive = self._ends_with_connection = False
        self._head = None
        self._answered = self._loop.create_future()
        self._body = body
        body.connection = self
        self._last = self._loop.time()
        if timeout != self._timeout:
            self._stop_timer()
            self._timeout = timeout
        if timeout is not None and self._timer is None:
            self._timer = self._loop.call_later(timeout, self._check_silence)
        self._transport.write(request)
        try:
            await self._answered
        except BaseException:
            self.close()
            raise
        return body.head  # this connection may serve another request already

    def close(self) -> None:
        """Close at once."""
        self._stop_timer()
        self._rest = _NOTHING
        self._transport.abort()

    def close_unless_ended(self, within: float) -> None:
        """Close, unless the response ends `within` seconds."""
        self._drain = self._loop.call_later(within, self.close)

    def pause(self) -> None:
        self._held = True
        self._update_reading()

    def resume(self) -> None:
        self._last = self._loop.time()
        self._held = False
        self._update_reading()

    def parse_slice(self) -> bool:
        """Parse a slice of the read that waits; return whether more of it waits. Called by `turns`."""
        read, self._rest = self._rest[:SLICE], self._rest[SLICE:]
        if read and self._body:
            self._parse(read)
            self._update_reading()
        return bool(self._rest)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self.close()  # a response without a request
            return
        self._last = self._now()
        self._heard = True
        if self._rest:
            self._rest = memoryview(bytes(self._rest) + data)
        elif len(data) <= DIRECT:
            self._parse(data)
            return
        else:
            self._rest = memoryview(data)
            self._turns.add(self)
        self._update_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        body = self._body
        assert body  # noqa: S101  (for the type checker)
        parts = self._parts
        fault: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            switched = self._parser.get_status_code() == 101
            fault = httpx2.RemoteProtocolError("The server switched protocols (101)." if switched else str(error))
        if self._complete:
            del parts[self._whole :]
        if parts:
            self._overhead = 0
            if len(parts) == 1:
                read = parts.pop()
            else:
                read = b"".join(parts)
                parts.clear()
            try:
                if body.deliver(read):
                    body.stop()
            except Exception as error:  # noqa: BLE001  (the sink's: `push` raises it)
                self._fail(error)
                return
        else:
            self._overhead += len(data)
            if self._overhead > OVERHEAD_LIMIT and not self._complete:
                fault = httpx2.RemoteProtocolError(f"The server sent more than {OVERHEAD_LIMIT} bytes without a body.")
        if self._complete:
            self._keep_alive = self._keep_alive and not (fault or self._surplus or self._rest)
            self._release()
        elif fault:
            self._fail(fault)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        self._stop_timer()
        while self._rest:
            self.parse_slice()
        self._parser = None  # it refers to this object: a cycle (as in uvicorn #1604)
        if self._body and not self._head:
            if not self._heard and self._served:
                self._fail(StaleConnectionError())
            elif exc:
                self._fail(httpx2.ReadError(str(exc)))
            else:
                self._fail(httpx2.RemoteProtocolError("Server disconnected without sending a response."))
        elif self._body:
            if exc:
                self._fail(httpx2.ReadError(str(exc)))
            elif self._ends_with_connection:
                self._release()
            else:
                self._fail(httpx2.RemoteProtocolError("peer closed connection in the middle of a response"))

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._surplus = self._complete  # not after an interim response: the final one starts

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._head is None and self._answered and self._body:
            names = {name.lower() for name, _ in self._headers}
            self._ends_with_connection = not names & {b"content-length", b"transfer-encoding"}
            self._head = Head(status, self._headers, 200 <= status < 300 and b"content-encoding" not in names)
            self._body.start(self._head, self._answered)
        self._headers = []  # for the final response after an interim one, or for trailers

    def on_message_complete(self) -> None:
        if self._complete:
            return
        self._complete = self._head is not None
        self._whole = len(self._parts)
        self._keep_alive = self._parser.should_keep_alive()  # after this call the parser has forgotten it (llhttp #147)

    def _release(self) -> None:
        """End the body, and offer the connection for another request, or close it."""
        if self._drain:
            self._drain.cancel()
            self._drain = None
        self._rest = _NOTHING
        body, self._body = self._body, None
        self._served += 1
        if body:
            body.end()
        if self._keep_alive and not self._transport.is_closing():
            self.resume()
            self.idle_since = self._loop.time()
            self._on_idle(self)
        else:
            self.close()

    def _fail(self, error: Exception) -> None:
        self.close()
        body, self._body = self._body, None
        if self._head is None and self._answered and not self._answered.done():
            self._answered.set_exception(error)
        elif body:
            body.end(error)

    def _check_silence(self) -> None:
        self._timer = None
        if self._timeout is None or self._body is None:
            return
        remaining = self._last + self._timeout - self._loop.time()
        if remaining <= 0:
            self._fail(httpx2.ReadTimeout("The server was silent for too long."))
        else:
            self._timer = self._loop.call_later(remaining, self._check_silence)

    def _update_reading(self) -> None:
        pause = self._held or len(self._rest) > SLICE
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _stop_timer(self) -> None:
        for timer in (self._timer, self._drain):
            if timer:
                timer.cancel()
        self._timer = self._drain = None
