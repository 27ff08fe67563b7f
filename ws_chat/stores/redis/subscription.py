"""What other replicas produce, read here: a local copy of each log that somebody here reads.

One read waits for everything: the journals of those replicas, and this one's own inbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from ws_chat.protocol.errors import LOST, ChatError, ErrorInfo
from ws_chat.protocol.frames import Failed
from ws_chat.stores.memory import MemoryLog
from ws_chat.stores.redis.names import ASK, deltas_of, terminal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start
    from ws_chat.stores.base import Wake
    from ws_chat.stores.redis.connection import Link

logger = logging.getLogger("ws_chat.redis")

PACE: Final = 0.1
"""Seconds between two reads, at least."""
LINGER: Final = 1.0
"""Seconds that a log is followed without a reader."""
GRACE: Final = 5.0
"""Seconds that a log may be missing where a replica should write it."""
RETRY: Final = 0.5
TOLD: Final = 2.0
"""Seconds that a replica may take to tell what it was asked for; then it is asked again."""


class FollowedLog(MemoryLog):
    """A copy of a log that another replica writes. Tells when nobody reads it."""

    __slots__ = ("_on_idle", "key", "leaving", "missing", "replica", "told")

    def __init__(
        self, key: str, replica: str, start: Start, request: bytes, on_idle: Callable[[FollowedLog], None]
    ) -> None:
        super().__init__(start, request)
        self.key = key
        self.replica = replica
        self.told = asyncio.Event()  # its replica was asked for it, and has told all that there is
        self.leaving: asyncio.TimerHandle | None = None
        self.missing: float | None = None
        self._on_idle = on_idle

    @property
    def idle(self) -> bool:
        """Whether nobody reads it."""
        return not self._watchers

    def unwatch(self, wake: Wake) -> None:
        super().unwatch(wake)
        if self.idle:
            self._on_idle(self)

    def take(self, first: int, deltas: Sequence[Delta]) -> bool:
        """Add what is new of `deltas`, the first of which has the seq `first`; False when some before are missing."""
        if self.terminal or first > self.last + 1:
            return self.terminal is not None
        if new := deltas[self.last + 1 - first :]:
            self.append(new)
        return True


class Following:
    """The logs that are followed, and the reading of the streams."""

    def __init__(
        self,
        link: Link,
        replica: str,
        on_message: Callable[[dict[bytes, bytes]], None],
        on_leave: Callable[[FollowedLog], None],
    ) -> None:
        self._link = link
        self._names = link.names
        self._replica = replica
        self._on_message = on_message
        self._on_leave = on_leave
        self._logs: dict[str, FollowedLog] = {}
        self._followed: Counter[str] = Counter()  # how many logs, by replica
        self._inbox = self._names.inbox(replica)
        self._positions: dict[str, bytes] = {self._inbox: b"0-0"}
        self.doubtful = False
        """Whether something may have been missed, because Redis was away."""

    def get(self, key: str) -> FollowedLog | None:
        """Return a log that is followed."""
        return self._logs.get(key)

    @property
    def replicas(self) -> set[str]:
        """Those of which something is followed."""
        return set(self._followed)

    def of(self, replica: str) -> set[str]:
        """Return the keys of what is followed of a replica."""
        return {key for key, log in self._logs.items() if log.replica == replica}

    def follow(self, key: str, replica: str, start: Start, request: bytes, position: bytes) -> FollowedLog:
        """Follow a log, whose replica has been asked for it, from that position of its journal on."""
        log = self._logs[key] = FollowedLog(key, replica, start, request, self.linger)
        self._followed[replica] += 1
        self._positions.setdefault(self._names.journal(replica), position)
        self.linger(log, TOLD)
        return log

    async def read(self) -> None:
        """Read what comes, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                for name, entries in await self._link.read(self._positions):
                    for position, fields in entries:
                        await self._take(name.decode(), position, fields)
            except ChatError:
                self.doubtful = True
                await asyncio.sleep(RETRY)
            except Exception:
                logger.exception("An entry could not be read")
            await asyncio.sleep(max(0.0, began + PACE - loop.time()))

    async def resume(self) -> None:
        """Ask for everything once more, after something may have been missed."""
        self.doubtful = False
        try:
            for log in list(self._logs.values()):
                await self._settle(log)
                if log.terminal is None and not await self.ask(log, "watch"):
                    self.doubtful = True
        except ChatError:
            self.doubtful = True
            raise

    async def catch_up(self, log: FollowedLog) -> None:
        """Wait until a log has come as far as its own replica may have shown it, or has ended."""

        def stay(*_: object) -> None:
            """Read it, so that it is not left meanwhile."""

        log.watch(stay)
        try:
            log.told.clear()
            await self.ask(log, "watch")
            await log.told.wait()
        finally:
            log.unwatch(stay)

    async def ask(self, log: FollowedLog, what: str) -> bool:
        """Ask the replica that writes a log for something: `watch`, `unwatch`, `cancel`.

        Returns whether that replica lives: one without a lease may be dead, or about to say that it is not.
        """
        names = [self._names.lease(log.replica), self._names.inbox(log.replica)]
        return bool(await self._link.run(ASK, names, what, log.key, self._replica))

    async def settle(self, replica: str) -> None:
        """End those logs of a replica that have their end in Redis, or are not there (any more)."""
        for log in [log for log in self._logs.values() if log.replica == replica]:
            await self._settle(log)

    async def _settle(self, log: FollowedLog) -> None:
        loop = asyncio.get_running_loop()
        owner, terminal, deltas = await self._link.call(
            "HMGET", self._names.log(log.key), "replica", "terminal", "deltas"
        )
        if log.terminal:
            return
        if terminal:
            log.take(1, deltas_of(deltas))
            self._end(log, terminal)
        elif owner is None or owner.decode() != log.replica:
            log.missing = log.missing or loop.time()
            if loop.time() - log.missing > GRACE:
                self._end(log, None)

    def _end(self, log: FollowedLog, terminal: bytes | None) -> None:
        self._forget(log)
        log.end(terminal_of(terminal) if terminal else Failed(log.start.id, log.last + 1, LOST))
        log.told.set()

    async def _take(self, name: str, position: bytes, fields: dict[bytes, bytes]) -> None:
        if name in self._positions:
            self._positions[name] = position
        if name == self._inbox:
            self._on_message(fields)
            return
        parts: dict[str, list[msgspec.Raw]] = msgspec.json.decode(fields[b"entry"], type=dict[str, list[msgspec.Raw]])
        for key in parts.keys() & self._logs.keys():
            log = self._logs[key]
            if self._names.journal(log.replica) == name:
                await self._take_part(log, *parts[key])

    async def _take_part(
        self, log: FollowedLog, first: msgspec.Raw, deltas: msgspec.Raw, terminal: msgspec.Raw | None = None
    ) -> None:
        seq: int = msgspec.json.decode(first)
        complete = log.take(seq, deltas_of(deltas))
        if complete:
            log.missing = None
            if seq == 1:
                log.told.set()
            if terminal is not None:
                self._end(log, bytes(terminal))
        elif terminal is not None:
            await self._settle(log)
        elif log.told.is_set():
            await self.ask(log, "watch")
        # else: that has been done, and the whole of it comes

    def linger(self, log: FollowedLog, seconds: float = LINGER) -> None:
        """Follow a log for a while from now on, even if nobody reads it."""
        if log.leaving:
            log.leaving.cancel()
        if log.terminal is None:
            log.leaving = asyncio.get_running_loop().call_later(seconds, self._leave, log)

    def _leave(self, log: FollowedLog) -> None:
        """Follow a log no more, when nobody reads it."""
        if self._logs.get(log.key) is log and log.idle:
            self._forget(log)
            log.told.set()
            self._on_leave(log)

    def _forget(self, log: FollowedLog) -> None:
        if self._logs.get(log.key) is log:
            del self._logs[log.key]
            self._followed[log.replica] -= 1
            if not self._followed[log.replica]:
                del self._followed[log.replica]
                self._positions.pop(self._names.journal(log.replica), None)

    def give_up(self, error: ErrorInfo) -> list[FollowedLog]:
        """End every copy with an error, and return them; the logs themselves may go on."""
        copies = list(self._logs.values())
        for log in copies:
            self._forget(log)
            log.end(Failed(log.start.id, log.last + 1, error))
            log.told.set()
        return copies

    async def close(self) -> None:
        """End every copy: this replica stops."""
        self.give_up(LOST)
