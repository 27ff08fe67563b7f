"""What this process produces, written to Redis: a journal of all deltas, and each generation's end.

One entry per INTERVAL holds the new deltas of everything that runs here, so that neither the rate of tokens nor the
number of generations costs a command more. Deltas are shown at once here and journalled later; an end is logged first
and shown then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ws_chat.protocol.errors import LOST, ChatError
from ws_chat.protocol.frames import Failed, encode
from ws_chat.stores.base import LogEndedError
from ws_chat.stores.memory import MemoryLog
from ws_chat.stores.redis.connection import cancel
from ws_chat.stores.redis.names import CREATE, END, RESTORE, raw, redis_name, terminal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.stores.base import GenerationKey, OnEnd
    from ws_chat.stores.redis.connection import Link

logger = logging.getLogger("ws_chat.redis")

INTERVAL: Final = 0.1
"""Seconds between entries of the journal."""
RUNNING_EXPIRY: Final = 24 * 3600 * 1000
"""Milliseconds that a generation is kept that never ends."""
JOURNAL_AGE: Final = 60 * 1000
"""Milliseconds that an entry stays, more or less: what runs longer is written once more, as a whole."""
ENTRY: Final = 20_000
"""Deltas in an entry; once there are so many, what is left follows in the next one, without a pause."""
KEPT: Final = 10 * 1000
"""Milliseconds that an entry is kept at least: for a follower that is slow, but not so slow that it lost its lease."""
END_PATIENCE: Final = 10.0
"""Seconds in which an end must be logged."""
RETRY: Final = 0.5


class OwnLog(MemoryLog):
    """A log that is written here. Its end is handed to the journal, which shows it once it is logged."""

    __slots__ = ("_hand_over", "ending", "generation", "journalled", "key", "since", "watchers")

    def __init__(
        self,
        generation: GenerationKey,
        start: Start,
        request: bytes,
        hand_over: Callable[[OwnLog, Terminal, OnEnd | None], None],
    ) -> None:
        super().__init__(start, request)
        self.generation = generation
        self.key = redis_name(generation)
        self.journalled = 0
        self.since = (0, 0)  # the id of the entry that holds its first delta
        self.ending = False
        self.watchers: set[str] = set()  # the replicas that read it
        self._hand_over = hand_over

    def all_after(self, seq: int, limit: int) -> list[Delta]:
        """Return the deltas after `seq`, in all parts."""
        deltas: list[Delta] = []
        while len(deltas) < limit and (part := self.after(seq + len(deltas), limit - len(deltas))):
            deltas += part
        return deltas

    def append(self, deltas: Sequence[Delta]) -> None:
        if self.ending:
            raise LogEndedError
        super().append(deltas)

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        if self.ending:
            raise LogEndedError
        self.ending = True
        self._hand_over(self, terminal, on_end)

    def show(self, terminal: Terminal, on_end: OnEnd | None) -> None:
        """End it for the readers."""
        super().end(terminal, on_end)


class Journal:
    """Writes the logs of one replica. Keeps each that has ended for `retention` milliseconds."""

    def __init__(self, link: Link, replica: str, retention: int) -> None:
        self._link = link
        self._names = link.names
        self._replica = replica
        self._retention = retention
        self._logs: dict[str, OwnLog] = {}
        self._whole: set[str] = set()  # the keys whose next part is all there is
        self._last = (0, 0)
        self._written = 0.0  # when there was last anything to write
        self._writing: set[asyncio.Task[None]] = set()

    def get(self, key: str) -> OwnLog | None:
        """Return a log that is written here."""
        return self._logs.get(key)

    async def create(self, generation: GenerationKey, start: Start, request: bytes) -> OwnLog | None:
        """Open a log; None when there is one already."""
        log = OwnLog(generation, start, request, self._hand_over)
        if not await self._link.run(CREATE, *self._registration(log)):
            return None
        self._logs[log.key] = log
        return log

    @property
    def logs(self) -> list[OwnLog]:
        """All that are written here."""
        return list(self._logs.values())

    def forget(self, key: str) -> None:
        """Write a log no more."""
        self._logs.pop(key, None)
        self._whole.discard(key)

    def show_whole(self, key: str) -> None:
        """Write all that a log holds into the next entry, unless it has ended meanwhile."""
        if key in self._logs:
            self._whole.add(key)

    async def restore(self) -> list[OwnLog]:
        """Write anew what may have been lost; return the logs that are not ours to write any more."""
        lost = []
        for key, log in list(self._logs.items()):
            if not await self._link.run(RESTORE, *self._registration(log)):
                lost.append(log)
            self.show_whole(key)
        return lost

    async def write(self) -> None:
        """Write an entry every INTERVAL, if there is anything new. Never returns."""
        complete = True
        while True:
            await asyncio.sleep(INTERVAL if complete else 0)
            try:
                complete = await self._write_entry()
            except ChatError:
                await asyncio.sleep(RETRY)
            except Exception:
                logger.exception("The journal could not be written")
                await asyncio.sleep(RETRY)

    async def close(self) -> bool:
        """Give up the ends that are still being written; return whether there are none."""
        writing = bool(self._writing)
        await cancel(self._writing)
        return not writing

    async def _write_entry(self) -> bool:
        """Write an entry, if there is anything new; return whether that was all."""
        parts = self._parts()
        if not parts:
            await self._let_go()
            return True
        self._written = asyncio.get_running_loop().time()
        kept = [log.since for log in self._logs.values() if log.journalled]
        oldest = min(*kept, self._last, (max(0, self._last[0] - KEPT), 0))
        entry = msgspec.json.encode({key: (first, raw(deltas)) for key, (first, deltas) in parts.items()})
        journal = self._names.journal(self._replica)
        try:
            answer: bytes = await self._link.call(
                "XADD", journal, "MINID", "~", "{}-{}".format(*oldest), "*", "entry", entry
            )
        except ChatError:
            for key, (first, _) in parts.items():
                if first == 1:
                    self.show_whole(key)
            raise
        milliseconds, _, number = answer.partition(b"-")
        self._last = (int(milliseconds), int(number))
        for key, (first, deltas) in parts.items():
            if (log := self._logs.get(key)) is not None:
                log.journalled = first + len(deltas) - 1
                if first == 1:
                    log.since = self._last
        return sum(len(deltas) for _, deltas in parts.values()) < ENTRY

    async def _let_go(self) -> None:
        """Remove the journal when nothing runs and nobody can need it any more: it holds what was said."""
        now = asyncio.get_running_loop().time()
        if self._written and not self._logs and now - self._written > KEPT / 1000:
            await self._link.call("DEL", self._names.journal(self._replica))
            self._written = 0.0

    def _parts(self) -> dict[str, tuple[int, Sequence[Delta]]]:
        """Return, for each log with anything new, a seq and the deltas from there on."""
        parts: dict[str, tuple[int, Sequence[Delta]]] = {}
        room = ENTRY
        for key, log in self._logs.items():
            old = log.journalled and self._last[0] - log.since[0] > JOURNAL_AGE
            whole = old or key in self._whole
            known = 0 if whole else log.journalled
            if room and not log.ending and (log.last > known or whole):
                deltas = log.all_after(known, log.last if whole else room)
                parts[key] = (known + 1, deltas)
                self._whole.discard(key)
                room = max(0, room - len(deltas))
        return parts

    def _hand_over(self, log: OwnLog, terminal: Terminal, on_end: OnEnd | None) -> None:
        task = asyncio.create_task(self._end(log, terminal, on_end))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _end(self, log: OwnLog, terminal: Terminal, on_end: OnEnd | None) -> None:
        """Log an end and show it. One that cannot be logged in time is shown as lost, and later logged so."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_PATIENCE
        shown = False
        try:
            while True:
                try:
                    logged = await self._log_end(log, terminal)
                    break
                except ChatError:
                    if not shown and loop.time() >= deadline:
                        terminal = Failed(log.start.id, log.last + 1, LOST)
                        log.show(terminal, on_end)
                        shown = True
                    await asyncio.sleep(RETRY)
        except asyncio.CancelledError:  # the process stops
            logged = Failed(log.start.id, log.last + 1, LOST)
        if self._logs.get(log.key) is log:
            self.forget(log.key)
        if not shown:
            log.show(logged, on_end)

    async def _log_end(self, log: OwnLog, terminal: Terminal) -> Terminal:
        """Log an end; return the one that counts, which may be another's."""
        self._written = asyncio.get_running_loop().time()
        deltas = raw(log.all_after(0, log.last))
        entry = {log.key: (log.journalled + 1, deltas[log.journalled :], terminal)}
        arguments: list[Any] = [
            self._replica,
            encode(terminal),
            msgspec.json.encode(deltas),
            self._retention,
            log.key,
            msgspec.json.encode(entry),
        ]
        names = [self._names.log(log.key), self._names.running(self._replica), self._names.journal(self._replica)]
        found: bytes = await self._link.run(END, names, *arguments)
        if found == b"absent" and await self._link.run(RESTORE, *self._registration(log)):
            found = await self._link.run(END, names, *arguments)
        if found in {b"absent", b"foreign"}:
            return Failed(log.start.id, log.last + 1, LOST)
        return terminal_of(found)

    def _registration(self, log: OwnLog) -> tuple[Any, ...]:
        names = [self._names.log(log.key), self._names.running(self._replica)]
        start = encode(log.start)
        return names, self._replica, start, log.request, RUNNING_EXPIRY, log.key
