"""A network that breaks: a TCP proxy that resets a connection after so many bytes to the client, or falls silent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class DroppingProxy:
    """Forwards connections to ports of 127.0.0.1 in turn.

    `budget` returns after how many bytes to the client a new connection breaks; None: never.
    """

    def __init__(self, ports: int | Sequence[int], budget: Callable[[], int | None] = lambda: None) -> None:
        self.budget = budget
        self.drops = 0
        self.accepted = 0
        self.last_words: bytes | None = None
        """Bytes after which nothing more passes to a client until `go_on`."""
        self._ports = itertools.cycle([ports] if isinstance(ports, int) else ports)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        # Holds the port while nothing listens there, so that no other program gets it.
        self._place: socket.socket | None = None

    @property
    def port(self) -> int:
        assert self._place
        port: int = self._place.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._place = _bound(0)
        await self.plug()

    async def stop(self) -> None:
        """Break all connections, stop listening, and release the port."""
        await self.pull()
        if self._place:
            self._place.close()

    async def plug(self) -> None:
        """Listen again, on the same port."""
        self._server = await asyncio.start_server(self._serve, sock=_bound(self.port))

    async def pull(self) -> None:
        """Break all connections, and refuse new ones until it is plugged in again."""
        if self._server:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def lead_to(self, port: int) -> None:
        """Forward new connections to this port."""
        self._ports = itertools.repeat(port)

    def fall_silent(self) -> None:
        """Keep all connections, accept new ones, and forward nothing."""
        self._flowing.clear()

    def go_on(self) -> None:
        """Forward what was received during the silence, and everything after it."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.accepted += 1
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", next(self._ports))
        except (OSError, asyncio.CancelledError):
            writer.close()
            return
        up = asyncio.create_task(self._copy(reader, server_writer))
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the end of the proxy
                await self._down(server_reader, writer)
        finally:
            up.cancel()
            for broken in (writer, server_writer):
                with contextlib.suppress(OSError, AttributeError):  # uvloop's transports forget a socket that is gone
                    broken.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                broken.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.budget()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536 if left is None else min(left, 65536)):
                await self._flowing.wait()
                if self.last_words and self.last_words in data:
                    self.fall_silent()
                writer.write(data)
                await writer.drain()
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.drops += 1
                        return

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def dropping(
    target: int | str | Sequence[int], budget: Callable[[], int | None] = lambda: None
) -> AsyncIterator[DroppingProxy]:
    """Run a proxy before a port, several in turn, or the server of a URL, until the block ends."""
    proxy = DroppingProxy(port_of(target) if isinstance(target, str) else target, budget)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


def port_of(url: str) -> int:
    """Return the port of a URL that ends with it."""
    return int(url.rpartition(":")[2])


def _bound(port: int) -> socket.socket:
    """Return a socket on a port of 127.0.0.1, which any number may hold of which one listens (socket(7))."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    return found
