"""The transport that the SDK gets for direct connections: a pool of HTTP/1.1 connections, with and without TLS.

It connects, keeps idle connections, and raises httpx2's errors. Redirects, headers, retries and proxies are handled by
httpx2 and the SDK.

Invariants, each with its tests in tests/upstreams/http/test_transport.py:

- A connection is either idle in the pool or serves one request. The pool has no limit: the relay limits how many
  requests run. No operation costs more when more are idle (test_the_loss_of_many_idle_connections_takes_linear_time).
- An idle connection is closed after KEEPALIVE_TIMEOUT (test_a_connection_that_was_idle_for_long_is_not_used_again).
- A request is sent again only if the server closed an idle connection without an answer, once, and on a new connection
  (test_a_connection_that_was_given_up_is_replaced_at_once,
  test_a_request_is_sent_again_once_and_not_on_every_idle_connection).
- A read timeout is not retried by the SDK (test_silence_is_waited_for_once in tests/upstreams/test_errors.py).
- Certificates are checked (test_tls).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import httpx2
import openai

from ws_chat.upstreams.http.connection import Connection, StaleConnectionError, Turns

KEEPALIVE_TIMEOUT: Final = 15.0
"""Seconds after which an idle connection is closed: a NAT or firewall on its way may have dropped it silently."""
PUSHED: Final = "pushed_body"
"""The response extension that holds the Body, to be pushed."""

Origin = tuple[bool, str, int]


class PushTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport that pushes bodies."""

    def __init__(self) -> None:
        self._ssl = httpx2.create_ssl_context()
        self._ssl.set_alpn_protocols(["http/1.1"])
        self._idle: dict[Origin, dict[Connection, None]] = {}  # longest idle first
        self._open: set[Connection] = set()
        self._turns = Turns()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response, whose body is still to come. Raises httpx2's errors."""
        url = request.url
        secure = url.scheme == "https"
        origin = (secure, url.host, url.port or (443 if secure else 80))
        timeouts = request.extensions.get("timeout", {})
        connect, read = timeouts.get("connect"), timeouts.get("read")
        message = _encode(request, await request.aread())
        connection = self._take_idle(origin) or await self._connect(origin, connect)
        try:
            try:
                head, body = await connection.exchange(message, read)
            except StaleConnectionError:
                connection = await self._connect(origin, connect)
                head, body = await connection.exchange(message, read)
        except httpx2.ReadTimeout:
            # The SDK would retry httpx2's error twice, three times the wait for the caller; it does not retry its own.
            raise openai.APITimeoutError(request=request) from None
        extensions = {"http_version": b"HTTP/1.1", PUSHED: body}
        return httpx2.Response(head.status, headers=head.headers, stream=body, extensions=extensions)

    async def aclose(self) -> None:
        if self._sweep:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        return idle.popitem()[0] if idle else None  # the server is least likely to have closed the last one

    def _close_idle(self) -> None:
        """Close connections that have been idle for too long, and schedule the next call while any are idle."""
        loop = asyncio.get_running_loop()
        waits = [0.0]
        for idle in self._idle.values():
            for connection in list(idle):
                wait = connection.idle_since + KEEPALIVE_TIMEOUT - loop.time()
                if wait <= 0:
                    del idle[connection]
                    connection.close()
                waits.append(wait)
        self._sweep = loop.call_later(max(waits), self._close_idle) if max(waits) > 0 else None

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:
        secure, host, port = origin
        loop = asyncio.get_running_loop()

        def on_idle(connection: Connection) -> None:
            self._idle.setdefault(origin, {})[connection] = None
            if self._sweep is None:
                self._sweep = loop.call_later(KEEPALIVE_TIMEOUT, self._close_idle)

        def on_lost(connection: Connection) -> None:
            self._open.discard(connection)
            self._idle.get(origin, {}).pop(connection, None)

        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(on_idle, on_lost, self._turns),
                    host,
                    port,
                    ssl=self._ssl if secure else None,
                    server_hostname=host if secure else None,
                )
        except TimeoutError:
            raise httpx2.ConnectTimeout("The server could not be reached in time.", request=None) from None
        except (OSError, ssl.SSLError) as error:
            raise httpx2.ConnectError(str(error)) from error
        if not connection.closing:  # else `on_lost` was called already, and nothing would discard it
            self._open.add(connection)
        return connection


def _encode(request: httpx2.Request, body: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", body])
