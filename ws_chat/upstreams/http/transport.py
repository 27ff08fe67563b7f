"""The transport that the SDK gets for direct connections: a pool of HTTP/1.1 connections, with and without TLS.

It connects, keeps idle connections, and raises httpx2's errors. Headers, retries, redirects and proxies are handled by
httpx2 and the SDK.

For a short answer the SDK spends most of the CPU time on a head that is always the same. So its head becomes a template,
and `post` sends later requests without the SDK. A failed one is given to the SDK as the result of its own first attempt
(`replay`): its retries and errors stay the same, and no request is sent twice.

Invariants, each with its tests in tests/upstreams/http/test_transport.py:

- A connection is either idle in the pool or serves one request. The pool has no limit: the relay limits how many
  requests run. No operation costs more when more are idle (test_the_loss_of_many_idle_connections_takes_linear_time).
- An idle connection is closed after KEEPALIVE_TIMEOUT (test_a_connection_that_was_idle_for_long_is_not_used_again).
- A request is sent again only if the server closed an idle connection without an answer, once, and on a new connection
  (test_a_connection_that_was_given_up_is_replaced_at_once,
  test_a_request_is_sent_again_once_and_not_on_every_idle_connection).
- A head becomes the template when two first attempts of the SDK in a row had it, except for the Content-Length
  (test_a_head_that_changes_is_no_template in tests/upstreams/test_template.py).
- A read timeout is not retried by the SDK (test_silence_is_waited_for_once in tests/upstreams/test_errors.py).
- Certificates are checked (test_tls).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx2
import openai

from ws_chat.upstreams.http.body import Body, Head
from ws_chat.upstreams.http.connection import Connection, StaleConnectionError, Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEEPALIVE_TIMEOUT: Final = 60.0
"""Seconds after which an idle connection is closed: a NAT or firewall on its way may have dropped it silently."""
PROBE_INTERVAL: Final = 15
"""Seconds of silence after which the kernel probes a connection, so that none of those drops it, or it is closed."""
PUSHED: Final = "pushed_body"
"""The response extension that holds the Body, to be pushed."""

RESERVED_FILES: Final = 32
"""File descriptors that are reserved for health checks; upstreams may use half of them."""

Origin = tuple[bool, str, int]


def files_left(number: int) -> float:
    """Return how many more files the process can open, from the number of a new one: the lowest that is free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit - 1 - number


class Template(NamedTuple):
    """What the SDK's requests have in common."""

    origin: Origin
    head: bytes
    """Up to the value of the Content-Length."""
    connect: float | None
    read: float | None


_replay: ContextVar[list[tuple[Head, Body] | Exception]] = ContextVar("replay")


class PushTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport that pushes bodies."""

    def __init__(self) -> None:
        self._ssl = httpx2.create_ssl_context()
        self._ssl.set_alpn_protocols(["http/1.1"])
        self._idle: dict[Origin, dict[Connection, None]] = {}  # longest idle first
        self._open: set[Connection] = set()
        self._turns = Turns()
        self._sweep: asyncio.TimerHandle | None = None
        self._seen: Template | None = None
        self.template: Template | None = None
        """The template for `post`, as soon as there is one."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response after the head. Raises httpx2's errors."""
        url = request.url
        secure = url.scheme == "https"
        origin = (secure, url.host, url.port or (443 if secure else 80))
        timeouts = request.extensions.get("timeout", {})
        content = await request.aread()
        template = Template(origin, _encode(request), timeouts.get("connect"), timeouts.get("read"))
        try:
            if first := _replay.get(None):
                result = first.pop()
                if isinstance(result, Exception):
                    raise result
                head, body = result
            else:
                self._learn(template, request)
                body = Body()
                head = await self.post(template, content, body)
        except httpx2.ReadTimeout:
            # The SDK would retry httpx2's error twice, so that the caller waits three times as long, but not its own.
            raise openai.APITimeoutError(request=request) from None
        extensions = {"http_version": b"HTTP/1.1", PUSHED: body}
        return httpx2.Response(head.status, headers=head.headers, stream=body, extensions=extensions)

    async def post(self, template: Template, content: bytes, body: Body) -> Head:
        """Send a request; see `Connection.exchange`. Raises httpx2's errors."""
        message = b"%s%d\r\n\r\n%s" % (template.head, len(content), content)
        connection = self._take_idle(template.origin) or await self._connect(template.origin, template.connect)
        try:
            return await connection.exchange(message, template.read, body)
        except StaleConnectionError:
            connection = await self._connect(template.origin, template.connect)
            return await connection.exchange(message, template.read, body)

    def forget(self) -> None:
        """Forget the template: the SDK would make another head now."""
        self.template = self._seen = None

    def _learn(self, template: Template, request: httpx2.Request) -> None:
        if request.headers.get("x-stainless-retry-count") == "0":
            self.template = template if template == self._seen else None
            self._seen = template

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
                transport, connection = await loop.create_connection(
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
        sock: socket.socket = transport.get_extra_info("socket")
        if files_left(sock.fileno()) < RESERVED_FILES // 2:
            connection.close()
            raise httpx2.ConnectError("nearly all file descriptors of this process are in use")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if option := getattr(socket, name, None):
                sock.setsockopt(socket.IPPROTO_TCP, option, PROBE_INTERVAL)
        if not connection.closing:  # else `on_lost` was called already, and nothing would discard it
            self._open.add(connection)
        return connection


@contextlib.asynccontextmanager
async def replay(result: tuple[Head, Body] | Exception) -> AsyncIterator[None]:
    """Give the first request of the block, in any PushTransport, this result, instead of sending it."""
    results = [result]
    token = _replay.set(results)
    try:
        yield
    finally:
        _replay.reset(token)
        for left in results:
            if not isinstance(left, Exception):
                await left[1].aclose()


def _encode(request: httpx2.Request) -> bytes:
    """Return the head of a request up to the value of its Content-Length, which comes last."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw if header[0].lower() != b"content-length"]
    return b"\r\n".join([*lines, b"Content-Length: "])
