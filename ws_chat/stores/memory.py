"""Logs in this process's memory.

An ended log is packed: its deltas become JSON again, a tenth of the size. All packed logs together take at most `limit`
bytes; beyond that the oldest are removed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ws_chat.protocol.frames import DIGEST_SIZE
from ws_chat.stores.base import LogEndedError, LogExistsError, failed_early

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.stores.base import GenerationKey, OnEnd, RunningGenerations, Wake

KEPT_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of packed logs that a store keeps by default."""
PART: Final = 512
"""Deltas that are packed together: a reader unpacks that many at a time."""
OVERHEAD: Final = 2048
"""Bytes that a packed log takes besides its deltas and its request, roughly."""


class MemoryLog:
    """A log as a list: the delta with seq n is at index n - 1. `on_packed` is called once, at the end."""

    __slots__ = ("_deltas", "_on_packed", "_parts", "_wakes", "_watchers", "last", "request", "start", "terminal")

    def __init__(self, start: Start, request: bytes = b"", on_packed: Callable[[], None] = lambda: None) -> None:
        self.start = start
        self.request = request
        self.last = 0
        self.terminal: Terminal | None = None
        self._on_packed = on_packed
        self._deltas: list[Delta] = []
        self._parts: list[bytes] = []  # the deltas, after the end
        self._watchers: dict[Wake, None] = {}
        # The watchers as a tuple, because they may change while a write wakes them. A change empties it and the next
        # write fills it: filling it at each change would make the end of a log quadratic in its readers.
        self._wakes: tuple[Wake, ...] = ()

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
        for wake in self._wakes or self._all_wakes():
            wake(last, deltas)

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        if self.terminal:
            raise LogEndedError
        self._parts = [msgspec.json.encode(self._deltas[at : at + PART]) for at in range(0, self.last, PART)]
        self._deltas = []
        self.terminal = terminal
        if failed_early(self.last, terminal):
            self.request = self.request[:DIGEST_SIZE]
        self._on_packed()
        for wake in self._all_wakes():
            wake(self.last, ())
        if on_end:
            on_end(terminal)

    def watch(self, wake: Wake) -> None:
        self._watchers[wake] = None
        self._wakes = ()

    def unwatch(self, wake: Wake) -> None:
        self._watchers.pop(wake, None)
        self._wakes = ()

    def _all_wakes(self) -> tuple[Wake, ...]:
        self._wakes = wakes = tuple(self._watchers)
        return wakes


class _Kept(NamedTuple):
    until: float  # loop time
    size: int


class MemoryStore:
    """Logs by key. Ended ones are kept for `retention` seconds, all together in at most `limit` bytes."""

    def __init__(self, *, retention: float = 300.0, limit: int = KEPT_LIMIT) -> None:
        self._retention = retention
        self._limit = limit
        self._logs: dict[GenerationKey, MemoryLog] = {}
        self._ended: OrderedDict[GenerationKey, _Kept] = OrderedDict()  # the oldest end first
        self._sweep: asyncio.TimerHandle | None = None
        self.kept_bytes = 0
        self.evicted = 0
        """Logs that were removed before their retention time, because of the limit."""
        self.available = True
        self.shared = False
        self.counters = None

    async def open(self, running: RunningGenerations) -> None:
        """Do nothing: no other process reads."""

    async def cancel(self, key: GenerationKey) -> None:
        """Do nothing: no other process writes."""

    async def create(self, key: GenerationKey, start: Start, request: bytes) -> MemoryLog:
        if key in self._logs:
            raise LogExistsError
        log = self._logs[key] = MemoryLog(start, request, lambda: self._keep(key))
        return log

    async def get(self, key: GenerationKey, after: int = 0) -> MemoryLog | None:
        return self._logs.get(key)

    def remove(self, key: GenerationKey) -> None:
        self._logs.pop(key, None)
        if kept := self._ended.pop(key, None):
            self.kept_bytes -= kept.size

    async def close(self) -> None:
        if self._sweep:
            self._sweep.cancel()
        self._logs.clear()
        self._ended.clear()
        self.kept_bytes = 0

    def _keep(self, key: GenerationKey) -> None:
        log = self._logs.get(key)
        if log is None:
            return  # removed while it ran
        loop = asyncio.get_running_loop()
        size = OVERHEAD + len(log.request) + log.size
        self._ended[key] = kept = _Kept(loop.time() + self._retention, size)
        self.kept_bytes += kept.size
        while self.kept_bytes > self._limit:
            self.remove(next(iter(self._ended)))
            self.evicted += 1
        if self._sweep is None:
            self._sweep = loop.call_later(self._retention, self._remove_old)

    def _remove_old(self) -> None:
        """Remove the logs whose retention time has passed, and schedule the next call."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        while self._ended:
            key, kept = next(iter(self._ended.items()))
            if kept.until > loop.time():
                self._sweep = loop.call_at(kept.until, self._remove_old)
                return
            self.remove(key)
