"""Logs in this process's memory.

Older deltas of a log are packed, and all of them at its end: one object for many of them takes less memory. All ended logs
together take at most `limit` bytes; beyond that the oldest of the principal that keeps most are removed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from bisect import bisect_right
from collections import OrderedDict
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from ws_chat.stores.base import LogEndedError, LogExistsError, failed_early, rest_of
from ws_chat.stores.turns import Turns, always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.errors import ErrorInfo
    from ws_chat.protocol.frames import Start, Terminal, Token
    from ws_chat.stores.base import GenerationKey, OnEnd, RunningGenerations, Wake
    from ws_chat.stores.turns import MayGoOn

KEPT_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of packed logs that a store keeps by default."""
PART: Final = 512
"""Deltas that are packed together, at most: a reader unpacks that many at a time."""
TAIL: Final = 2 * PART
"""Unpacked deltas at which the older ones are packed: a reader that keeps up, or nearly, need not unpack any."""
PART_SIZE: Final = 64 * 1024
"""Bytes at which a pack is complete, even with fewer deltas."""
MANY: Final = 64
"""Readers that are woken in one slice."""
_CLOSING: Final = b'"}'
_OPENINGS: Final = {opening: opening for opening in (b'{"content":"', b'{"reasoning_content":"')}  # one object for all
OVERHEAD: Final = 2048
"""Rough number of bytes that an ended log takes besides its deltas and its request."""


class _Part(NamedTuple):
    """Packed deltas, one per line, without the `opening` and `closing` that all of them share."""

    before: int  # the seq before its first delta
    opening: bytes
    closing: bytes
    lines: bytes

    @classmethod
    def of(cls, before: int, deltas: Sequence[Delta]) -> _Part:
        lines = b"\n".join(deltas)
        opening = deltas[0][: deltas[0].find(b':"') + 2]  # nearly always that of a text; any bytes would be correct
        between = _CLOSING + b"\n" + opening
        # `between` is at every line break, so adding it again is exact, whatever the deltas are.
        if lines.endswith(_CLOSING) and lines.count(between) == len(deltas) - 1:
            opening = _OPENINGS.get(opening, opening)
            return cls(before, opening, _CLOSING, lines[len(opening) : -len(_CLOSING)].replace(between, b"\n"))
        return cls(before, b"", b"", lines)

    def after(self, seq: int, limit: int) -> list[Delta]:
        start = seq - self.before
        _, opening, closing, lines = self
        found = lines.split(b"\n", start + limit)[start : start + limit]
        return [opening + line + closing for line in found] if opening else found


class MemoryLog:
    """A log as packed parts, and a list of the deltas after them. `on_packed` is called once, when all are packed at the end."""

    __slots__ = (
        "_again",
        "_on_packed",
        "_packed",
        "_parts",
        "_round",
        "_size",
        "_tail",
        "_wakes",
        "_watchers",
        "fault",
        "last",
        "may_go_on",
        "request",
        "shared",
        "shared_after",
        "start",
        "terminal",
    )

    def __init__(
        self,
        start: Start,
        request: bytes = b"",
        on_packed: Callable[[], None] = lambda: None,
        may_go_on: MayGoOn = always,
    ) -> None:
        self.start = start
        self.request = request
        self.last = 0
        self.terminal: Terminal | None = None
        self.fault: ErrorInfo | None = None
        self.shared: Token | None = None
        self.shared_after = 0
        self.may_go_on = may_go_on
        self._on_packed = on_packed
        self._parts: list[_Part] = []
        self._size = 0  # bytes of the deltas in the parts
        self._packed = 0  # the seq of the last packed delta
        self._tail: list[Delta] = []
        self._watchers: dict[Wake, None] = {}
        # The watchers as a tuple, because they may change while a write wakes them. A change empties the tuple, and the
        # next write rebuilds it: rebuilding it at each change would make the end of a log quadratic in its readers.
        self._wakes: tuple[Wake, ...] = ()
        self._round: Iterator[Wake] | None = None  # the watchers that are not woken yet
        self._again = False  # wake all of them once more: there was a write meanwhile

    @property
    def size(self) -> int:
        return self._size + sum(map(len, self._tail))

    @property
    def packed_size(self) -> int:
        """Bytes that its parts take."""
        return sum(len(part.lines) for part in self._parts)

    def after(self, seq: int, limit: int) -> Sequence[Delta]:
        if seq >= self._packed:
            start = seq - self._packed
            return self._tail[start : start + limit]
        part = bisect_right(self._parts, seq, key=itemgetter(0)) - 1
        return self._parts[part].after(seq, limit)

    def append(self, deltas: Sequence[Delta]) -> None:
        if self.terminal:
            raise LogEndedError
        tail = self._tail
        tail.extend(deltas)
        if len(tail) >= TAIL:
            self._pack(len(tail) - PART)
        self.last = last = self.last + len(deltas)
        wakes = self._wakes or self._all_wakes()
        if len(wakes) <= MANY:
            for wake in wakes:
                wake(last, deltas)
        else:
            self._wake_many(deltas)

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        if self.terminal:
            raise LogEndedError
        self._pack(len(self._tail))
        self.terminal = terminal
        if failed_early(self.last, terminal):
            self.request = rest_of(self.request)
        self._on_packed()
        self._wake_many(())
        if on_end:
            on_end(terminal)

    def replace_request(self, request: bytes) -> None:
        self.request = request

    def interrupt(self, fault: ErrorInfo) -> None:
        self.fault = fault
        self._wake_many(())

    def watch(self, wake: Wake) -> None:
        self._watchers[wake] = None
        self._wakes = ()

    def unwatch(self, wake: Wake) -> None:
        self._watchers.pop(wake, None)
        self._wakes = ()
        if not self._watchers:
            self.shared = None

    def _pack(self, count: int) -> None:
        """Pack the first `count` deltas of the tail."""
        tail = self._tail
        at = 0
        while at < count:
            end = min(at + PART, count)
            deltas = tail[at:end]
            size = sum(map(len, deltas))
            if size > PART_SIZE:
                del deltas[_leading(deltas, PART_SIZE) :]
                size = sum(map(len, deltas))
            self._size += size
            self._parts.append(_Part.of(self._packed + at, deltas))
            at += len(deltas)
        del tail[:count]
        self._packed += count

    def _wake_many(self, deltas: Sequence[Delta]) -> None:
        self._again = self._round is not None
        if self._round is None:
            self._round = iter(self._wakes or self._all_wakes())
            self._wake_slice(deltas)

    def _wake_slice(self, deltas: Sequence[Delta] = ()) -> None:
        """Wake the next MANY watchers, and more while there is time."""
        while self._round:
            wakes = list(islice(self._round, MANY))
            try:
                for wake in wakes:
                    if wake in self._watchers:
                        wake(self.last, deltas)
            except BaseException:
                self._round = None  # else no later write would wake a reader
                raise
            if len(wakes) < MANY:
                self._round = iter(self._all_wakes()) if self._again else None
                self._again = False
                deltas = ()
            if self._round and not self.may_go_on(self._wake_slice):
                return

    def _all_wakes(self) -> tuple[Wake, ...]:
        self._wakes = wakes = tuple(self._watchers)
        return wakes


def _leading(deltas: Sequence[Delta], size: int) -> int:
    """Return how many of the deltas, from the first, are needed for `size` bytes."""
    for count, delta in enumerate(deltas, 1):
        size -= len(delta)
        if size <= 0:
            return count
    return len(deltas)


class _Kept(NamedTuple):
    until: float  # loop time
    size: int


@dataclasses.dataclass(slots=True)
class _Share:
    """What one principal keeps."""

    size: int = 0
    keys: dict[GenerationKey, None] = dataclasses.field(default_factory=dict)  # the oldest end first


class MemoryStore:
    """Logs by key. Ended ones are kept for `retention` seconds, all together in at most `limit` bytes."""

    def __init__(self, *, retention: float = 300.0, limit: int = KEPT_LIMIT, turns: Turns | None = None) -> None:
        self._turns = turns or Turns()
        self._retention = retention
        self._limit = limit
        self._logs: dict[GenerationKey, MemoryLog] = {}
        self._ended: OrderedDict[GenerationKey, _Kept] = OrderedDict()  # the oldest end first
        self._sweep: asyncio.TimerHandle | None = None
        self._shares: dict[str, _Share] = {}  # by principal
        self.on_evict: Callable[[], None] = lambda: None
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
        log = self._logs[key] = MemoryLog(start, request, lambda: self._keep(key), self._turns.may_go_on)
        return log

    async def get(self, key: GenerationKey, after: int = 0) -> MemoryLog | None:
        return self._logs.get(key)

    def remove(self, key: GenerationKey) -> None:
        self._logs.pop(key, None)
        if kept := self._ended.pop(key, None):
            self.kept_bytes -= kept.size
            share = self._shares[key.principal]
            share.size -= kept.size
            del share.keys[key]
            if not share.keys:
                del self._shares[key.principal]

    async def forget(self, key: GenerationKey) -> None:
        self.remove(key)

    async def close(self) -> None:
        if self._sweep:
            self._sweep.cancel()
        self._logs.clear()
        self._ended.clear()
        self._shares.clear()
        self.kept_bytes = 0

    def _keep(self, key: GenerationKey) -> None:
        log = self._logs.get(key)
        if log is None:
            return  # removed while it ran
        loop = asyncio.get_running_loop()
        size = OVERHEAD + len(log.request) + log.packed_size
        self._ended[key] = kept = _Kept(loop.time() + self._retention, size)
        self.kept_bytes += kept.size
        share = self._shares.setdefault(key.principal, _Share())
        share.keys[key] = None
        share.size += size
        while self.kept_bytes > self._limit:
            largest = max(self._shares.values(), key=lambda share: share.size)
            self.remove(next(iter(largest.keys)))
            self.evicted += 1
            self.on_evict()
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
