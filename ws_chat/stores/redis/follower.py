"""Copies of logs that other replicas write, for the readers here. If such a replica is dead, its logs are ended here."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from ws_chat.protocol.errors import UNREACHABLE, ChatError
from ws_chat.protocol.frames import encode
from ws_chat.stores.redis.connection import FAULTS, describe, evaluate
from ws_chat.stores.redis.keys import LOSE, REPAIR, TERMINAL, cancels, lease_key
from ws_chat.stores.redis.log import Copy, lost, lost_around_seq, parse_head

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ws_chat.stores.base import GenerationKey
    from ws_chat.stores.redis.connection import Command, Link
    from ws_chat.stores.redis.keys import Names, Slot

logger = logging.getLogger("ws_chat.redis")

REACH_INTERVAL: Final = 0.1
BATCH: Final = 500
"""Logs that are read at once."""
PAGE: Final = 1000
"""Entries that are read of one log at once."""
LOOKS: Final = 3
"""Checks in a row, a second apart, without a lease, after which a replica is dead."""
READ: Final = 8_000
"""Milliseconds for which the mark that a generation is read here lasts."""
READ_RENEWAL: Final = 3.0
"""Seconds between renewals of that mark."""
CANCELS: Final = 60_000
"""Milliseconds that cancels wait for their replica."""


class _Lease:
    """What this replica knows of the lease of another one."""

    def __init__(self) -> None:
        self.rounds = 0
        """How often the value of the lease changed: each time, its replica had written everything new."""
        self.missed = 0
        self._value: Any = None

    def note(self, value: Any, *, steady: bool) -> None:
        if not isinstance(value, Exception):
            self.rounds += value is not None and value != self._value
            self.missed = self.missed + 1 if value is None and steady else 0
            self._value = value


class Follower:
    """The copies of a replica. The logs of dead replicas are kept in Redis for `retention` milliseconds."""

    def __init__(self, link: Link, retention: int) -> None:
        self._link = link
        self._retention = retention
        self._copies: dict[str, Copy] = {}  # the ones kept up to date, by the key of the stream
        self._leases: dict[str, _Lease] = {}  # of the replicas that write the copied logs

    async def open(self, slot: Slot, key: GenerationKey, names: Names) -> Copy | None:
        """Return a copy of a log, to be kept up to date while it is watched; None if Redis has lost its beginning."""
        if copy := self._copies.get(names.stream):
            return copy
        copy = await self.read_once(slot, key, names)
        if copy and copy.terminal is None:
            copy = self._copies.setdefault(names.stream, copy)
        return copy

    async def read_once(self, slot: Slot, key: GenerationKey, names: Names) -> Copy | None:
        """Return a copy of a log as it is now."""
        entries: list[Any] = []
        position = "-"
        while page := await self._link.call(slot, "XRANGE", names.stream, position, "+", "COUNT", PAGE):
            entries += page
            position = f"({page[-1][0].decode()}"
            if len(page) < PAGE:
                break
        fields = {name: value for entry, fields in entries if entry.startswith(b"0-") for name, value in fields.items()}
        if b"head" not in fields:
            return None
        copy = Copy(slot, key, names, *parse_head(fields), self._keep)
        copy.take(entries)
        return copy

    async def reach(self, copy: Copy, seq: int) -> None:
        """Wait until a copy has the delta `seq`, or has ended, or its replica has stored everything that it has sent by now."""

        def stay(*_: object) -> None:
            """Keep the copy up to date."""

        lease = self._leases.setdefault(copy.names.replica, _Lease())
        enough = lease.rounds + 2  # the next one may have started before the delta was sent
        copy.watch(stay)
        try:
            while copy.last < seq and lease.rounds < enough and not (copy.terminal or copy.fault):  # noqa: ASYNC110
                await asyncio.sleep(REACH_INTERVAL)
            if copy.last < seq:
                await self._read(copy.slot, [copy])  # it may have been stored since the last time
        finally:
            copy.unwatch(stay)

    async def cancel(self, copy: Copy) -> None:
        """Ask the replica of a log to cancel it; `look` repeats that until it has ended. Raises ChatError (`overloaded`)."""
        copy.cancelled = True
        for answer in await self._link.pipeline(_cancel(copy)):
            if isinstance(answer, Exception):
                logger.warning("A cancel could not be passed on: %s", describe(answer))
                raise ChatError.of(UNREACHABLE)
        self._keep(copy)

    async def read(self) -> None:
        """Bring all copies up to date."""
        for slot in self._link.slots:
            copies = [copy for copy in self._copies.values() if copy.slot is slot]
            for at in range(0, len(copies), BATCH):
                if not await self._read(slot, copies[at : at + BATCH]):
                    break

    async def _read(self, slot: Slot, copies: list[Copy]) -> bool:
        """Bring copies of a slot up to date; return whether Redis answered."""
        try:
            found = await self._link.read(slot, {copy.names.stream: f"1-{copy.last}" for copy in copies})
        except FAULTS as error:
            logger.debug("Copies cannot be read: %s", describe(error))
            return False
        for stream, entries in found:
            self._take(stream.decode(), entries)
        return True

    def interrupt(self, slot: Slot) -> None:
        """End the readers of a slot's copies with an error: Redis cannot be read now."""
        for stream, copy in list(self._copies.items()):
            if copy.slot is slot and not copy.cancelled:
                del self._copies[stream]
                copy.interrupt(UNREACHABLE)

    async def look(self, *, steady: bool) -> None:
        """Renew the marks of what is read here, repeat cancels, and end the logs of dead replicas.

        `steady`: live replicas had time to renew their leases.
        """
        now = asyncio.get_running_loop().time()
        commands: list[Command] = []
        for stream, copy in list(self._copies.items()):
            copy.idle = 0 if copy.watched or copy.cancelled else copy.idle + 1
            if copy.idle > 1:
                del self._copies[stream]
            if copy.watched and now >= copy.renew_at:
                copy.renew_at = now + READ_RENEWAL
                commands.append(("SET", copy.names.read, "", "PX", READ))
            if copy.cancelled:
                commands += _cancel(copy)
        replicas = sorted({copy.names.replica for copy in self._copies.values()})
        self._leases = {replica: self._leases.get(replica) or _Lease() for replica in replicas}
        answers = await self._link.pipeline([*commands, *(("GET", lease_key(replica)) for replica in replicas)])
        for replica, value in zip(replicas, answers[len(commands) :], strict=True):
            self._leases[replica].note(value, steady=steady)
        gone = {replica for replica, lease in self._leases.items() if lease.missed >= LOOKS}
        copies = [copy for copy in self._copies.values() if copy.names.replica in gone]
        for at in range(0, len(copies), BATCH):
            await self._end(copies[at : at + BATCH])

    async def _end(self, copies: list[Copy]) -> None:
        """End the logs of dead replicas. A terminal frame that is already there stays."""
        logger.warning("The replica of %d generations is gone", len(copies))
        commands: list[Command] = []
        for copy in copies:
            commands.append(evaluate(LOSE, (copy.names.stream,), *lost_around_seq(copy.key.id)))
            commands += (("PEXPIRE", key, self._retention) for key in (copy.names.stream, copy.names.pointer))
        answers = await self._link.pipeline(commands)
        repairs = []
        for copy, answer in zip(copies, answers[::3], strict=True):
            copy.abandoned = True
            if answer == 0:  # Redis has lost the log, too
                end = encode(lost(copy))
                entries = [*copy.entries(None), TERMINAL, "terminal", end]
                keys = copy.names.pointer, copy.names.stream
                repairs.append(evaluate(REPAIR, keys, copy.names.value, self._retention, end, " 0", *entries))
        await self._link.pipeline(repairs)

    def _keep(self, copy: Copy) -> None:
        if copy.terminal is None and not copy.fault:
            copy.idle = 0
            self._copies.setdefault(copy.names.stream, copy)

    def _take(self, stream: str, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        if (copy := self._copies.get(stream)) is None:
            return
        try:
            copy.take(entries)
        except Exception:
            logger.exception("The log %s cannot be read", stream)
            copy.interrupt(UNREACHABLE)
        if copy.terminal or copy.fault:
            self._copies.pop(stream, None)


def _cancel(copy: Copy) -> list[Command]:
    mailbox = cancels(copy.names.replica)
    return [("SADD", mailbox, copy.names.stream), ("PEXPIRE", mailbox, CANCELS)]
