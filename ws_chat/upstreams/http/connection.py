"""One HTTP/1.1 connection to an upstream (RFC 9112): a request out, a response pushed in as it arrives.

Reading through awaits costs a wake-up of a task for every token. Here the bytes of a body go from the event loop
through the parser into a function, in the same turn. It serves one request at a time; TLS is the transport's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httptools
import httpx2

from ws_chat.upstreams.http.body import Body

if TYPE_CHECKING:
    from collections.abc import Callable

    from ws_chat.upstreams.http.body import Sink

DRAIN_TIMEOUT: Final = 0.05
"""Seconds that a body may take to end after its last needed byte, so that the connection can serve another request."""


class StaleConnectionError(Exception):
    """A connection that had served before was closed before it answered: the server had given it up."""


class Head(NamedTuple):
    """A response's status line and headers."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Connection(asyncio.Protocol):
    """A connection. `on_idle` is called when it can serve another request, `on_lost` when it never can."""

    deliver: Sink
    _transport: asyncio.Transport
    _parser: Any = None

    def __init__(self, on_idle: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._served = 0
        self._last = 0.0  # loop time of the last read
        self._timeout = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._head: asyncio.Future[Head] | None = None
        self._body: Body | None = None
        self._paused = False
        self.idle_since = 0.0

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()

    async def exchange(self, request: bytes, timeout: float | None) -> tuple[Head, Body]:
        """Send a request and wait for the head of its response; `timeout` (seconds) is for that and for each read.

        Being cancelled closes the connection. Raises httpx2's errors, and StaleConnectionError.
        """
        if self.closing:
            # Nothing would ever answer: its loss may have been told before anything was asked.
            raise StaleConnectionError if self._served else httpx2.RemoteProtocolError("Server disconnected at once.")
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._heard = self._complete = self._keep_alive = self._ends_with_connection = False
        self._head = self._loop.create_future()
        self._body = body = Body(self)
        self._last = self._loop.time()
        if timeout is not None:
            self._timeout = timeout
            self._timer = self._loop.call_later(timeout, self._check_silence)
        self._transport.write(request)
        try:
            return await self._head, body
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self._stop_timer()
        self._transport.abort()

    def give_up(self, *, linger: bool) -> None:
        """Stop caring about the response. With `linger` its rest is read past, for a moment, to keep the connection."""
        if not linger:
            self.close()
            return
        self._stop_timer()
        self._timer = self._loop.call_later(DRAIN_TIMEOUT, self.close)

    def pause(self) -> None:
        """Read no further."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._last = self._loop.time()
        if self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
        self._paused = False

    # The event loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self.close()  # nothing was asked
            return
        self._last = self._loop.time()
        self._heard = True
        fault: Exception | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            fault = httpx2.RemoteProtocolError(str(error))
        if self._parts:
            read = self._parts.pop() if len(self._parts) == 1 else self._join_parts()
            try:
                if self.deliver(read):
                    self._body.enough()
            except Exception as error:  # noqa: BLE001  (the sink's: it belongs to whoever awaits the body)
                self._fail(error)
                return
        # What came before a fault was said: what it means does not depend on where the reads fall.
        if self._complete:
            self._keep_alive = self._keep_alive and fault is None
            self._release()
        elif fault:
            self._fail(fault)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        self._parser = None  # it holds this object: without this, only the collector would free the two
        if self._head and not self._head.done():
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

    # The parser calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._head and not self._head.done():
            names = {name.lower() for name, _ in self._headers}
            self._ends_with_connection = not names & {b"content-length", b"transfer-encoding"}
            self._head.set_result(Head(status, self._headers))
        self._headers = []  # what comes next belongs to the final response, or is a trailer

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._head is not None and self._head.done()
        self._keep_alive = self._parser.should_keep_alive()  # only here does the parser know

    def _join_parts(self) -> bytes:
        read = b"".join(self._parts)
        self._parts.clear()
        return read

    def _release(self) -> None:
        """Take the end of a response: its connection may serve another, and nothing of it can hit that one."""
        self._stop_timer()
        body, self._body, self._head = self._body, None, None
        self._served += 1
        if body:
            body.end()
        if self._keep_alive and not self._transport.is_closing():
            self.resume()
            self.idle_since = self._loop.time()
            self._on_idle(self)
        else:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        self.close()
        body, head = self._body, self._head
        self._body = self._head = None
        if head and not head.done():
            head.set_exception(error)
        if body:
            body.end(error)

    def _check_silence(self) -> None:
        remaining = self._last + self._timeout - self._loop.time()
        if remaining <= 0:
            self._fail(httpx2.ReadTimeout("The server was silent for too long."))
        else:
            self._timer = self._loop.call_later(remaining, self._check_silence)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
