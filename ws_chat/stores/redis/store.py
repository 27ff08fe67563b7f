"""Logs shared through Redis: any replica serves any reader of a named generation. Unnamed generations stay in memory.

A replica writes the logs of its own generations (`writer`) and keeps copies of the logs that its readers read (`follower`).
Redis may lose data: its latest writes in a failover, or everything. Every lookup of an id runs a script that detects this
(`keys`). Then all replicas write again what Redis lacks of their logs, and until they had time to, none starts a named
generation or says that an id is unknown.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from ws_chat.protocol.errors import RESTORING, UNREACHABLE, ChatError
from ws_chat.stores.memory import MemoryStore
from ws_chat.stores.redis.connection import FAULTS, Link, describe, evaluate, state_arguments
from ws_chat.stores.redis.follower import Follower
from ws_chat.stores.redis.keys import FIND, FORGET, RENEW, Names, cancels, lease_key, slot_of
from ws_chat.stores.redis.log import Copy, OwnLog
from ws_chat.stores.redis.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from limits.aio.storage import Storage

    from ws_chat.protocol.frames import Start
    from ws_chat.stores.base import GenerationKey, Log, RunningGenerations
    from ws_chat.stores.redis.connection import Command
    from ws_chat.stores.redis.keys import Slot

logger = logging.getLogger("ws_chat.redis")

WRITE_INTERVAL: Final = 0.2
END_INTERVAL: Final = 0.01
"""Seconds for which ending logs are gathered, to be written together."""
READ_INTERVAL: Final = 0.1
LEASE: Final = 4_000
"""Milliseconds that the lease of a replica lasts."""
RENEWAL: Final = 1.0
"""Seconds between renewals of the lease. The leases of other replicas are checked at the same time."""
STEADY: Final = 4.0
"""Seconds after Redis was away, or lost data, in which no replica is declared dead."""
AWAY: Final = 5.0
"""Seconds without Redis after which the readers of copies get an error."""
GET_TIMEOUT: Final = 8.0
FORGET_TIME: Final = 10_000
"""Milliseconds for which the entries of a forgotten log stay, for the readers of other replicas."""


class RedisStore:
    """The store of one replica. Ended logs are kept for `retention` seconds."""

    def __init__(self, urls: Sequence[str], *, retention: float = 300.0) -> None:
        """Connect to one Redis; several URLs name more of its nodes. Raises TypeError or ValueError."""
        self.replica = secrets.token_hex(8)
        self._link = Link(urls)
        self._unnamed = MemoryStore(retention=retention, turns=self._link.slots[0].turns)
        milliseconds = max(1, round(retention * 1000))
        self._follower = Follower(self._link, milliseconds)
        self._writer = Writer(self._link, self.replica, milliseconds, self._end_of)
        self._tasks: set[asyncio.Task[None]] = set()
        self._checked = False
        self._unsteady = 0.0  # loop time at which Redis was last away, or had lost data
        self._reached: dict[Slot, float] = {}

    @property
    def available(self) -> bool:
        return self._link.available

    @property
    def shared(self) -> bool:
        return True

    @property
    def counters(self) -> Storage:
        """Where all replicas count requests."""
        return self._link.counters()

    async def open(self, running: RunningGenerations) -> None:
        """Start; wait while the slots are held after a loss of data. Raises ValueError for a Redis that is too old."""
        self._writer.generations = running
        loop = asyncio.get_running_loop()
        self._reached = dict.fromkeys(self._link.slots, loop.time())
        await self._renew()
        while any(slot.up and slot.held for slot in self._link.slots):
            await asyncio.sleep(0.1)
            await self._renew()
        if not self.available:
            logger.warning("Redis does not answer yet")
        for interval, work in (
            (WRITE_INTERVAL, self._writer.write),
            (END_INTERVAL, self._writer.write_ends),
            (READ_INTERVAL, self._follower.read),
            (RENEWAL, self._look_after),
        ):
            self._tasks.add(asyncio.create_task(_forever(interval, work)))

    async def create(self, key: GenerationKey, start: Start, request: bytes) -> Log:
        if not key.named:
            return await self._unnamed.create(key, start, request)
        slot, name = self._place(key)
        epoch = secrets.token_hex(8) if start.epoch is UNSET else start.epoch
        names = Names.of(slot, name, f"{epoch} {self.replica}".encode())
        return await self._writer.create(slot, key, names, start, request)

    async def get(self, key: GenerationKey, after: int = 0) -> Log | None:
        if not key.named:
            return await self._unnamed.get(key)
        try:
            async with asyncio.timeout(GET_TIMEOUT):
                log = await self._find(key)
                if isinstance(log, Copy) and log.last < after and log.terminal is None:
                    await self._follower.reach(log, after)
        except TimeoutError:
            log = None
            raise ChatError("overloaded", "The generation cannot be reached now.", retry_after=1) from None
        if log and log.fault:
            raise ChatError.of(log.fault)
        return log

    async def cancel(self, key: GenerationKey) -> None:
        if key.named and isinstance(log := await self.get(key), Copy) and log.terminal is None:
            await self._follower.cancel(log)

    def remove(self, key: GenerationKey) -> None:
        if key.named:
            self._writer.remove(Names.of(*self._place(key), b"").pointer)
        else:
            self._unnamed.remove(key)

    async def forget(self, key: GenerationKey) -> None:
        log = await self.get(key)
        if not isinstance(log, OwnLog | Copy):
            return
        names = log.names
        commands: list[Command] = [
            ("DEL", names.pointer),
            ("PEXPIRE", names.stream, FORGET_TIME),  # other replicas may have to read its end
            ("SADD", cancels(names.replica), FORGET + names.stream.encode()),
            ("PEXPIRE", cancels(names.replica), FORGET_TIME),
        ]
        for answer in await self._link.pipeline(commands):
            if isinstance(answer, Exception):
                raise ChatError.of(UNREACHABLE)
        if isinstance(log, OwnLog):
            self._writer.forget(log)

    async def close(self) -> None:
        while self._tasks:
            # Cancel repeatedly: asyncio.wait_for, which the client uses, can lose a cancellation in Python 3.11 (bpo-42130).
            for task in self._tasks:
                task.cancel()
            _, self._tasks = await asyncio.wait(self._tasks, timeout=0.1)
        if await self._writer.close():  # else other replicas find no lease later, and end its generations
            await self._link.pipeline([("DEL", lease_key(self.replica))])
        await self._link.close()
        await self._unnamed.close()

    async def _find(self, key: GenerationKey) -> OwnLog | Copy | None:
        slot, name = self._place(key)
        pointer = Names.of(slot, name, b"").pointer
        while True:
            if log := self._writer.get(pointer):
                return log
            marker, held, value = await self._link.run(slot, FIND, (*slot.keys, pointer), *state_arguments())
            self._see(slot, marker, held)
            if value is None:
                if held:
                    raise ChatError.of(RESTORING)
                return None
            names = Names.of(slot, name, value)
            if names.replica == self.replica and await self._writer.undo(names.stream):
                continue
            if copy := await self._follower.open(slot, key, names):
                return copy
            raise ChatError.of(RESTORING)

    def _place(self, key: GenerationKey) -> tuple[Slot, str]:
        name = f"{key.owner}/{key.id}"
        return slot_of(name, self._link.slots), name

    async def _end_of(self, log: OwnLog) -> Any:
        copy = await self._follower.read_once(log.slot, log.key, log.names)
        return copy and copy.terminal

    async def _look_after(self) -> None:
        await self._renew()
        now = asyncio.get_running_loop().time()
        await self._writer.renew()
        await self._follower.look(steady=now - self._unsteady >= STEADY)
        for slot, reached in self._reached.items():
            if now - reached >= AWAY:
                self._follower.interrupt(slot)

    async def _renew(self) -> None:
        """Renew the lease and the markers."""
        if not self._checked:
            try:
                await self._link.check()
                self._checked = True
            except FAULTS:
                return
        key = lease_key(self.replica)
        commands = [
            ("SET", key, self._writer.rounds, "PX", LEASE, "GET"),
            ("PEXPIRE", key, LEASE),  # a Redis that is out of memory refuses the first, but not this one
            *(evaluate(RENEW, slot.keys, *state_arguments()) for slot in self._link.slots),
        ]
        lease, _, *answers = await self._link.pipeline(commands)
        if lease is None:  # other replicas may have declared this one dead
            for slot in self._link.slots:
                self._writer.doubt(slot)
        now = asyncio.get_running_loop().time()
        before = self.available
        for slot, answer in zip(self._link.slots, answers, strict=True):
            slot.up = not isinstance(answer, Exception)
            if slot.up:
                self._reached[slot] = now
                self._see(slot, *answer)
            else:
                self._unsteady = now
                fault = answer
        if before and not self.available:
            logger.warning("Redis does not answer: %s", describe(fault))
        elif self.available and not before:
            logger.info("Redis answers")

    def _see(self, slot: Slot, marker: bytes, held: int) -> None:
        """Record the state of a slot. A new marker means that Redis may have lost data."""
        slot.held = bool(held)
        if marker != slot.marker:
            if slot.marker:
                logger.warning("Redis may have lost something: all replicas write again what they have")
            slot.marker = marker
            self._unsteady = asyncio.get_running_loop().time()
            self._writer.doubt(slot)


async def _forever(interval: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            await work()
        except ChatError:
            pass  # Redis is away, which has been logged
        except Exception:
            logger.exception("The shared log failed")
