"""Life and death of replicas: each renews a lease; where one is gone, whoever notices ends what it has left running.

A replica that was cut off and comes back registers anew, and is told what it may write no more.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ws_chat.protocol.errors import LOST, ChatError
from ws_chat.protocol.frames import Failed, encode
from ws_chat.stores.redis.names import BURY, LOSE, deltas_of, raw, start_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ws_chat.protocol.deltas import Delta
    from ws_chat.stores.redis.connection import Link

logger = logging.getLogger("ws_chat.redis")

LEASE: Final = 4000
"""Milliseconds that a lease lasts."""
RENEWAL: Final = 1.0
"""Seconds between renewals; with each, the leases of the others are looked at."""
BURIAL: Final = 2000
"""Milliseconds in which nobody else ends what a dead replica has left."""
PAGE: Final = 500


class Lease:
    """The lease of one replica, and what it sees of the others'. Ended logs are kept for `retention` milliseconds."""

    def __init__(self, link: Link, replica: str, retention: int) -> None:
        self._link = link
        self._names = link.names
        self._replica = replica
        self._retention = retention
        self.begun = False
        """Whether it has begun (again), and nobody has written anew yet what may have been lost."""

    async def renew(self) -> None:
        """Renew the lease, or begin it."""
        lease = self._names.lease(self._replica)
        try:
            renewed = await self._link.at_once("SET", lease, "1", "XX", "PX", LEASE)
        except ChatError:
            await self._link.at_once("PEXPIRE", lease, LEASE)  # a Redis that is out of memory takes that still
            raise
        if not renewed:
            # First of all: from here on nobody ends what runs here.
            await self._link.at_once("SET", lease, "1", "PX", LEASE)
            self.begun = True
            try:
                await self._link.at_once("SADD", self._names.replicas, self._replica)
            except ChatError:
                await self._link.at_once("DEL", lease)  # so that it is done again
                raise
        self._link.found()

    async def dead(self, besides: set[str]) -> set[str]:
        """Return the replicas without a lease, of those that are known and `besides`."""
        known = {name.decode() for name in await self._link.call("SMEMBERS", self._names.replicas)} | besides
        others = sorted(known - {self._replica})
        if not others:
            return set()
        leases = await self._link.call("MGET", *map(self._names.lease, others))
        return {replica for replica, lease in zip(others, leases, strict=True) if lease is None}

    async def bury(self, replica: str, known: Iterable[str] = ()) -> None:
        """End what a dead replica has left running, `known` or not, after exactly what it has journalled."""
        if not self._link.steady:
            return  # Redis was away, and nobody could renew a lease
        claimed = await self._link.call("SET", self._names.burial(replica), self._replica, "NX", "PX", BURIAL)
        if not claimed:
            return  # another replica is at it
        keys = {key.decode() for key in await self._link.call("SMEMBERS", self._names.running(replica))} | {*known}
        if keys:
            logger.warning("Replica %s is gone: %d generations are lost", replica, len(keys))
            logs = await self._journalled(replica, keys)
            for key in keys:
                await self._lose(replica, key, logs.get(key, []))
        names = [
            self._names.lease(replica),
            self._names.journal(replica),
            self._names.inbox(replica),
            self._names.running(replica),
        ]
        await self._link.run(BURY, [*names, self._names.replicas], replica)

    async def end(self) -> None:
        """Give the lease up. Whoever follows still finds the journal for a moment."""
        await self._link.call("SREM", self._names.replicas, self._replica)
        await self._link.call("PEXPIRE", self._names.journal(self._replica), LEASE)
        names = (self._names.lease, self._names.inbox, self._names.running)
        await self._link.call("DEL", *(name(self._replica) for name in names))

    async def _journalled(self, replica: str, keys: set[str]) -> dict[str, list[Delta]]:
        logs: dict[str, list[Delta]] = {key: [] for key in keys}
        position = "-"
        while entries := await self._link.call("XRANGE", self._names.journal(replica), position, "+", "COUNT", PAGE):
            for _, fields in entries:
                try:
                    parts: dict[str, Any] = msgspec.json.decode(fields[b"entry"], type=dict[str, msgspec.Raw])
                except (KeyError, msgspec.DecodeError):
                    logger.exception("An entry of a dead replica's journal could not be read")
                    continue
                for key in parts.keys() & keys:
                    number, array, *_ = msgspec.json.decode(parts[key], type=list[msgspec.Raw])
                    first: int = msgspec.json.decode(number)
                    log = logs[key]
                    if first <= len(log) + 1:
                        log += deltas_of(array)[len(log) + 1 - first :]
            position = "(" + entries[-1][0].decode()
            await asyncio.sleep(0)
        return logs

    async def _lose(self, replica: str, key: str, deltas: list[Delta]) -> None:
        start = await self._link.call("HGET", self._names.log(key), "start")
        if start is None:
            return
        terminal = Failed(start_of(start).id, len(deltas) + 1, LOST)
        await self._link.run(
            LOSE,
            [self._names.log(key), self._names.lease(replica)],
            replica,
            encode(terminal),
            msgspec.json.encode(raw(deltas)),
            self._retention,
        )
