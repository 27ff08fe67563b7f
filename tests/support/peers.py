"""Clients over raw sockets, which read only when the test reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from support.service import HELLO, Socket
from support.waiting import until
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.service import Service

CHAT = json.dumps({"messages": HELLO}).encode()
POST = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT)
UPGRADE = (
    b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
FRAME = b"\x81" + bytes([0x80 | len(CHAT)]) + bytes(4) + CHAT
"""A chat as a masked WebSocket frame (RFC 6455, section 5.2)."""
SMALL = 4096
"""Bytes of a buffer that is soon full."""
MODERATE = 1 << 16
"""Bytes of a buffer that holds many requests, and does not grow to megabytes, as the kernel would let it."""


async def connected(service: Service, *, buffer: int | None = None) -> socket.socket:
    """Return a socket that is connected to the server, with a receive buffer of `buffer` bytes."""
    peer = socket.socket()
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.setblocking(False)
    host, port = service.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(peer, (host, int(port)))
    return peer


async def upgrade(peer: socket.socket) -> None:
    """Do the opening handshake of a WebSocket on a connected socket."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, UPGRADE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await loop.sock_recv(peer, 4096)
    assert answer.startswith(b"HTTP/1.1 101 "), answer


async def raw(service: Service, transport: str, *, buffer: int | None = None) -> socket.socket:
    """Send a chat over a new socket, which is returned with the answer unread."""
    peer = await connected(service, buffer=buffer)
    if transport == "websocket":
        await upgrade(peer)
    await asyncio.get_running_loop().sock_sendall(peer, POST if transport == "sse" else FRAME)
    return peer


async def closed(peer: socket.socket) -> None:
    """Read from a socket until the server has closed it."""
    with contextlib.suppress(ConnectionResetError):
        while await asyncio.get_running_loop().sock_recv(peer, 1 << 16):
            continue
    peer.close()


@contextlib.asynccontextmanager
async def slow_socket(service: Service, **connecting: Any) -> AsyncIterator[Socket]:
    """Open a WebSocket with small kernel buffers on the way to the client: one that does not read soon fills them."""
    peer = await connected(service, buffer=SMALL)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MODERATE)
    options = {"max_size": None, "max_queue": 1, "open_timeout": None, "ping_interval": None, **connecting}
    async with connect(service.ws_url, sock=peer, **options) as connection:
        await narrow(service, peer)
        yield Socket(connection)


def roomy(client: Socket) -> None:
    """Make the client's receive buffer large again: with a small one, a long text takes thousands of reads."""
    ours = client.connection.transport.get_extra_info("socket")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


async def narrow(service: Service, peer: socket.socket) -> None:
    """Make the server's send buffer of the connection to `peer` small, and keep its receive buffer from growing."""

    def found() -> Any:
        protocols = service.server.server_state.connections
        return next((p for p in protocols if p.transport.get_extra_info("peername") == peer.getsockname()), None)

    protocol = await until(found, "the server to accept the connection")
    ours = protocol.transport.get_extra_info("socket")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MODERATE)


def accepts(service: Service) -> Callable[[], Any]:
    """Return the protocol factory of a running server, so that it can listen on one more address."""
    config, state = service.server.config, service.server.server_state
    return lambda: config.http_protocol_class(
        config=config, server_state=state, app_state=service.server.lifespan.state
    )


async def all_closed(service: Service) -> None:
    """Wait until every connection is closed."""
    await until(lambda: service.connections.open == 0, "the server to close every connection")


def unchunked(body: bytes) -> bytes:
    """Return a chunked body (RFC 9112, section 7.1) without its transfer coding."""
    whole = bytearray()
    at = 0
    while at < len(body):
        line = body.index(b"\r\n", at)
        size = int(body[at:line], 16)
        whole += body[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
    return bytes(whole)
