"""The transport given to the SDK for direct connections: HTTP/1.1, with and without TLS, bodies pushed as they arrive.

It connects, keeps idle connections, and speaks httpx2's errors. Everything else about HTTP (redirects, headers,
retries, proxies) is left to httpx2 and the SDK.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import httpx2
import openai

from ws_chat.upstreams.http.connection import Connection, StaleConnectionError

KEEPALIVE: Final = 15.0
"""Seconds after which an idle connection is not used again: something on its way may have forgotten it silently."""
ERROR_LIMIT: Final = 64 * 1024
"""Bytes of an error's body that are read."""
PUSHED: Final = "pushed_body"
"""The response extension that holds the Body, for whoever wants it pushed."""

Origin = tuple[bool, str, int]


class PushTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport with a pool that costs the same however many connections are open."""

    def __init__(self) -> None:
        self._ssl = httpx2.create_ssl_context()
        self._ssl.set_alpn_protocols(["http/1.1"])
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request and return its response, body to come. Raises httpx2's errors."""
        url = request.url
        secure = url.scheme == "https"
        origin = (secure, url.host, url.port or (443 if secure else 80))
        timeouts = request.extensions.get("timeout", {})
        message = _message(request, await request.aread())
        connect = timeouts.get("connect")
        connection = self._take_idle(origin) or await self._connect(origin, connect)
        try:
            try:
                head, body = await connection.exchange(message, timeouts.get("read"))
            except StaleConnectionError:
                # It was given up while idle, most likely. Once more, on a new one; what is lost there is lost.
                connection = await self._connect(origin, connect)
                head, body = await connection.exchange(message, timeouts.get("read"))
        except httpx2.ReadTimeout:
            # The SDK would try again, twice, and the caller would wait three times as long. Its own errors it lets
            # through.
            raise openai.APITimeoutError(request=request) from None
        if head.status >= 400:
            body.limit = ERROR_LIMIT
        return httpx2.Response(
            head.status,
            headers=head.headers,
            stream=body,
            extensions={"http_version": b"HTTP/1.1", PUSHED: body},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        if self._sweep:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        return idle.pop() if idle else None  # the last one in is the least likely to have been given up

    def _close_idle(self) -> None:
        """Close what has been idle for too long, and look again as long as there is something."""
        now = asyncio.get_running_loop().time()
        waits = [0.0]
        for idle in self._idle.values():
            for connection in list(idle):
                wait = connection.idle_since + KEEPALIVE - now
                if wait <= 0:
                    idle.remove(connection)
                    connection.close()
                waits.append(wait)
        self._sweep = asyncio.get_running_loop().call_later(max(waits), self._close_idle) if max(waits) > 0 else None

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:
        secure, host, port = origin

        def on_idle(connection: Connection) -> None:
            self._idle.setdefault(origin, []).append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(KEEPALIVE, self._close_idle)

        def on_lost(connection: Connection) -> None:
            self._open.discard(connection)
            idle = self._idle.get(origin, [])
            if connection in idle:
                idle.remove(connection)

        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(on_idle, on_lost),
                    host,
                    port,
                    ssl=self._ssl if secure else None,
                    server_hostname=host if secure else None,
                )
        except TimeoutError:
            raise httpx2.ConnectTimeout("The server could not be reached in time.", request=None) from None
        except (OSError, ssl.SSLError) as error:
            raise httpx2.ConnectError(str(error)) from error
        if not connection.closing:  # one that was lost already will not be discarded again
            self._open.add(connection)
        return connection


def _message(request: httpx2.Request, body: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", body])
