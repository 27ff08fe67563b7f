"""An HTTP server that sends given bytes, whatever they mean to a client."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Raw:
    """The server, in an `async with` block, on a free port of 127.0.0.1.

    Each request is answered with the next of `scripts`, or else with a new `default`: with pieces of bytes, of which b"" closes
    the connection and b"wait" waits for `go`. Requests are recorded with their bodies.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.scripts: list[Iterable[bytes]] = []
        self.default: Callable[[], Iterable[bytes]] = tuple
        self.connections = 0
        self.requests: list[bytes] = []
        self.go = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._tls = tls

    @property
    def origin(self) -> str:
        return f"http{'s' * bool(self._tls)}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"{self.origin}/x?y=1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
                self.requests.append(head + await reader.readexactly(int(length[1]) if length else 0))
                for part in self.scripts.pop(0) if self.scripts else self.default():
                    if part == b"wait":
                        await self.go.wait()
                        continue
                    if not part:
                        return
                    writer.write(part)
                    await writer.drain()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.stop()
        await self._server.wait_closed()
