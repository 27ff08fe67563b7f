"""A response's body, from the connection that reads it to whoever wants it: pushed, or read piece by piece."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Sink: TypeAlias = Callable[[bytes], bool]
    """Takes a read; returns whether that was enough."""

BUFFER_LIMIT: Final = 256 * 1024
"""Bytes that wait for whoever reads a body piece by piece, before the connection is read no further."""


class Source(Protocol):
    """What a body asks of its connection, and where it says how it wants what arrives."""

    deliver: Sink
    """Takes every read, straight from the connection: a call between them would be one for every token."""

    def pause(self) -> None:
        """Read no further."""

    def resume(self) -> None:
        """Read on."""

    def give_up(self, *, linger: bool) -> None:
        """Stop caring about the response; with `linger`, keep the connection if the end is near."""


class Body(httpx2.AsyncByteStream):
    """A response's body: pushed into a function, or read piece by piece as any httpx2 stream."""

    def __init__(self, source: Source) -> None:
        self.limit = sys.maxsize
        self._source = source
        source.deliver = self._keep
        self._read = 0
        self._reads: list[bytes] = []
        self._size = 0
        self._enough = False
        self._ended = False
        self._error: Exception | None = None
        self._changed: asyncio.Future[None] | None = None

    async def push(self, sink: Sink) -> None:
        """Give every read to `sink` as it arrives; return at the end, or when it says True: it has enough.

        Raises what `sink` raises, and httpx2's errors.
        """
        for read in self._take():
            self._enough = self._enough or sink(read)
        if not (self._enough or self._ended):
            self._source.deliver = sink
        while not (self._enough or self._ended):
            await self._change()
        if self._error and not self._enough:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what arrives, read by read, until there are `limit` bytes. Raises httpx2's errors."""
        while True:
            for read in self._take():
                yield read
                self._read += len(read)
                if self._read > self.limit:
                    return
            if self._reads:
                continue
            if self._error:
                raise self._error
            if self._ended:
                return
            await self._change()

    async def aclose(self) -> None:
        """Let go of the response. One that is not at its end takes its connection with it."""
        if not self._ended:
            self._source.give_up(linger=self._enough)

    def enough(self) -> None:
        """Take note, from the connection, that a sink has enough: nothing more is delivered."""
        self._enough = True
        self._source.deliver = _discard
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Take the end, or what ended it, from the connection."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._source.deliver = _discard
            self._wake()

    def _keep(self, read: bytes) -> bool:
        """Keep a read for whoever comes for it."""
        self._reads.append(read)
        self._size += len(read)
        if self._size > BUFFER_LIMIT:
            self._source.pause()
        self._wake()
        return False

    def _take(self) -> list[bytes]:
        reads, self._reads = self._reads, []
        if self._size > BUFFER_LIMIT and not self._ended:
            self._source.resume()
        self._size = 0
        return reads

    async def _change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    def _wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)


def _discard(_: bytes) -> bool:
    return False
