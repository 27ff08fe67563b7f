"""A network that breaks: a TCP proxy that resets a connection after so many bytes to the client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class DroppingProxy:
    """Stands before the ports of 127.0.0.1 in turn. `budget` says after how many bytes a new connection breaks.

    None: it holds.
    """

    def __init__(self, ports: int | Sequence[int], budget: Callable[[], int | None]) -> None:
        self._ports = itertools.cycle([ports] if isinstance(ports, int) else ports)
        self._budget = budget
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.drops = 0

    @property
    def url(self) -> str:
        assert self._server
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", next(self._ports))
        except OSError:
            writer.close()
            return
        up = asyncio.create_task(_copy(reader, server_writer))
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
        left = self._budget()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536 if left is None else min(left, 65536)):
                writer.write(data)
                await writer.drain()
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.drops += 1
                        return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
