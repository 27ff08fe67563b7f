"""The head of a response, and its body: pushed into a function, or read piece by piece. The connection calls both.

Invariants, each with its tests in tests/upstreams/http/test_transport.py:

- A body is detached from its connection at the end of the response: closing it late, or twice, does not affect the next request
  (test_a_late_close_hits_no_request_that_came_after). Closing it earlier closes the connection, unless its reader needs
  nothing more and the end comes within DRAIN_TIMEOUT (test_a_reader_that_has_enough_keeps_the_connection_if_the_end_is_near,
  test_a_reader_that_has_enough_does_not_wait_for_an_end_that_is_far).
- A pushed body pauses reading from the socket only while more than a slice of it is unparsed. One that is read piece by
  piece pauses it at BUFFER_LIMIT; emptying the buffer resumes it, and so does the end of the response
  (test_a_body_without_a_reader_is_not_read_into_memory,
  test_a_connection_whose_body_came_at_once_is_read_on_for_the_next).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ws_chat.upstreams.http.connection import Connection

    Sink: TypeAlias = Callable[[bytes], bool]
    """Receives a read; returns True when it needs no more."""

BUFFER_LIMIT: Final = 256 * 1024
"""Bytes of a body that are buffered before reading from the socket is paused."""
DRAIN_TIMEOUT: Final = 0.05
"""Seconds after the last needed byte in which a response must end, or its connection is closed."""


class Head(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    is_plain_success: bool
    """Whether the status is 2xx, and the body is not compressed."""


class Body(httpx2.AsyncByteStream):
    """A response's body: pushed into a function, or read piece by piece like any httpx2 stream.

    `sink`: the function, if it is known before the request is sent; only a plain success is pushed into that.
    """

    connection: Connection
    head: Head

    def __init__(self, sink: Sink | None = None) -> None:
        self.pushed = False
        """Whether the body is pushed into the sink given to the constructor."""
        self._sink = sink
        self.deliver: Sink = self._keep
        """Called with each read. An attribute, because a method that passes it on would cost a call for every token."""
        self._reads: list[bytes] = []
        self._size = 0
        self._stopped = False  # the sink needs no more
        self._ended = False  # the response has ended, and the connection may serve another one
        self._error: Exception | None = None
        self._changed: asyncio.Future[None] | None = None

    def start(self, head: Head, answered: asyncio.Future[None]) -> None:
        """Start with the head. Sets `answered` now, or at the end of a body that is pushed. Called by the connection."""
        self.head = head
        if self._sink and head.is_plain_success:
            self.pushed = True
            self.deliver = self._sink
            self._changed = answered
        else:
            answered.set_result(None)

    def check(self) -> None:
        """Raise the error that broke the body, unless the sink needed nothing more."""
        if self._error and not self._stopped:
            raise self._error

    async def push(self, sink: Sink) -> None:
        """Pass every read to `sink` as it arrives; return at the end, or when `sink` returns True: it needs no more.

        Raises what `sink` raises, and httpx2's errors.
        """
        while reads := self._take():
            for read in reads:
                if not self._stopped and sink(read):
                    self.stop()
                if len(reads) > 1:
                    await asyncio.sleep(0)  # a flood: each read may take milliseconds
        if not (self._stopped or self._ended):
            self.deliver = sink
        while not (self._stopped or self._ended):
            await self._change()
        self.check()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield each read. Raises httpx2's errors."""
        while True:
            for read in self._take():
                yield read
            if self._reads:
                continue
            if self._error:
                raise self._error
            if self._ended:
                return
            await self._change()

    async def aclose(self) -> None:
        """Release the connection; close it if the response does not end within DRAIN_TIMEOUT of the last needed byte."""
        if self._ended:
            return
        if self._stopped:
            self.connection.close_unless_ended(DRAIN_TIMEOUT)
        else:
            self.connection.close()

    def stop(self) -> None:
        """Deliver nothing more: the sink needs no more."""
        self._stopped = True
        self.deliver = _discard
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """End with the response, or with the error that broke it. Called by the connection."""
        if not self._ended:
            self._ended = True
            self._error = error
            self.deliver = _discard
            self._wake()

    def _keep(self, read: bytes) -> bool:
        self._reads.append(read)
        self._size += len(read)
        if self._size > BUFFER_LIMIT:
            self.connection.pause()
        self._wake()
        return False

    def _take(self) -> list[bytes]:
        reads, self._reads = self._reads, []
        if self._size > BUFFER_LIMIT and not self._ended:
            self.connection.resume()
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
