"""Logs in this process's memory.

A log that has ended is packed: its deltas become JSON again, a tenth of the size, so that many can be kept. Memory has
a bound all the same: the packed logs together take at most `limit` bytes, and the oldest go first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ws_chat.stores.base import LogEndedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.stores.base import Ended, Production, Wake

KEPT_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of packed logs that are kept, unless a store is told otherwise."""
PART: Final = 512
"""How many deltas are packed together: a reader unpacks that many at a time."""
OVERHEAD: Final = 2048
"""Bytes that a packed log takes besides its deltas and its request, more or less."""


class MemoryLog:
    """A log as a list: the delta with seq n stands at n - 1. `on_end` is called once, at the end."""

    __slots__ = ("_deltas", "_on_end", "_parts", "_wakes", "last", "request", "start", "terminal")

    def __init__(self, start: Start, request: bytes = b"", on_end: Callable[[], None] = lambda: None) -> None:
        self.start = start
        self.request = request
        self.last = 0
        self.terminal: Terminal | None = None
        self._on_end = on_end
        self._deltas: list[Delta] = []
        self._parts: list[bytes] = []  # the deltas, after the end
        self._wakes: tuple[Wake, ...] = ()  # replaced, never changed: a reader may leave while it is woken

    @property
    def size(self) -> int:
        """Bytes of its deltas as JSON, once it has ended."""
        return sum(map(len, self._parts))

    def after(self, seq: int, limit: int) -> Sequence[Delta]:
        if self.terminal is None:
            return self._deltas[seq : seq + limit]
        part, start = divmod(seq, PART)
        deltas: list[Delta] = msgspec.json.decode(self._parts[part]) if part < len(self._parts) else []
        return deltas[start : start + limit]

    def append(self, deltas: Sequence[Delta]) -> None:
        if self.terminal:
            raise LogEndedError
        self._deltas.extend(deltas)
        self.last = last = self.last + len(deltas)
        for wake in self._wakes:
            wake(last, deltas)

    def end(self, terminal: Terminal, then: Ended | None = None) -> None:
        if self.terminal:
            raise LogEndedError
        self._parts = [msgspec.json.encode(self._deltas[at : at + PART]) for at in range(0, self.last, PART)]
        self._deltas = []
        self.terminal = terminal
        self._on_end()
        for wake in self._wakes:
            wake(self.last, ())
        if then:
            then(terminal)

    def watch(self, wake: Wake) -> None:
        self._wakes = (*self._wakes, wake)

    def unwatch(self, wake: Wake) -> None:
        self._wakes = tuple(other for other in self._wakes if other != wake)


class _Kept(NamedTuple):
    until: float  # loop time
    size: int


class MemoryStore:
    """Logs by key. Those that have ended are kept for `retention` seconds, and in `limit` bytes all together."""

    def __init__(self, *, retention: float = 300.0, limit: int = KEPT_LIMIT) -> None:
        self._retention = retention
        self._limit = limit
        self._logs: dict[str, MemoryLog] = {}
        self._ended: OrderedDict[str, _Kept] = OrderedDict()  # the oldest end first
        self._sweep: asyncio.TimerHandle | None = None
        self.kept_bytes = 0
        self.evicted = 0
        """How many logs were forgotten before their time, for want of memory."""
        self.available = True
        self.counters = None

    async def open(self, production: Production) -> None:
        """Do nothing: nobody else reads."""

    async def cancel(self, key: str) -> None:
        """Do nothing: nobody else writes."""

    async def create(self, key: str, start: Start, request: bytes) -> MemoryLog:
        if key in self._logs:
            raise KeyError(key)
        log = self._logs[key] = MemoryLog(start, request, lambda: self._keep(key))
        return log

    async def get(self, key: str, after: int = 0) -> MemoryLog | None:
        return self._logs.get(key)

    def remove(self, key: str) -> None:
        self._logs.pop(key, None)
        if kept := self._ended.pop(key, None):
            self.kept_bytes -= kept.size

    async def close(self) -> None:
        if self._sweep:
            self._sweep.cancel()
        self._logs.clear()
        self._ended.clear()
        self.kept_bytes = 0

    def _keep(self, key: str) -> None:
        log = self._logs.get(key)
        if log is None:
            return  # forgotten while it ran
        loop = asyncio.get_running_loop()
        size = OVERHEAD + len(log.request) + log.size
        self._ended[key] = kept = _Kept(loop.time() + self._retention, size)
        self.kept_bytes += kept.size
        while self.kept_bytes > self._limit:
            self.remove(next(iter(self._ended)))
            self.evicted += 1
        if self._sweep is None:
            self._sweep = loop.call_later(self._retention, self._forget_old)

    def _forget_old(self) -> None:
        """Forget what has been kept long enough, and look again when the next one will have been."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        for key, kept in list(self._ended.items()):
            if kept.until > loop.time():
                self._sweep = loop.call_at(kept.until, self._forget_old)
                return
            self.remove(key)
