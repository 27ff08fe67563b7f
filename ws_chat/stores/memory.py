"""Logs in this process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ws_chat.stores.base import LogEndedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.deltas import Delta
    from ws_chat.frames import Start, Terminal
    from ws_chat.stores.base import Wake


class MemoryLog:
    """A log as a list: the delta with seq n stands at n - 1."""

    __slots__ = ("_deltas", "_wakes", "last", "start", "terminal")

    def __init__(self, start: Start) -> None:
        self.start = start
        self.last = 0
        self.terminal: Terminal | None = None
        self._deltas: list[Delta] = []
        self._wakes: tuple[Wake, ...] = ()  # replaced, never changed: a reader may leave while it is woken

    def after(self, seq: int, limit: int) -> Sequence[Delta]:  # noqa: D102  (the seam says it)
        return self._deltas[seq : seq + limit]

    def append(self, deltas: Sequence[Delta]) -> None:  # noqa: D102
        if self.terminal:
            raise LogEndedError
        self._deltas.extend(deltas)
        self.last = last = self.last + len(deltas)
        for wake in self._wakes:
            wake(last, deltas)

    def end(self, terminal: Terminal) -> None:  # noqa: D102
        if self.terminal:
            raise LogEndedError
        self.terminal = terminal
        for wake in self._wakes:
            wake(self.last, ())

    def watch(self, wake: Wake) -> None:  # noqa: D102
        self._wakes = (*self._wakes, wake)

    def unwatch(self, wake: Wake) -> None:  # noqa: D102
        self._wakes = tuple(other for other in self._wakes if other != wake)


class MemoryStore:
    """Logs by id."""

    def __init__(self) -> None:
        self._logs: dict[str, MemoryLog] = {}

    async def create(self, start: Start) -> MemoryLog:  # noqa: D102
        if start.id in self._logs:
            raise KeyError(start.id)
        log = self._logs[start.id] = MemoryLog(start)
        return log

    async def get(self, generation_id: str) -> MemoryLog | None:  # noqa: D102
        return self._logs.get(generation_id)

    def remove(self, generation_id: str) -> None:  # noqa: D102
        self._logs.pop(generation_id, None)

    async def close(self) -> None:  # noqa: D102
        self._logs.clear()
