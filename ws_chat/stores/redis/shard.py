"""A replica's part in one shard: the logs that replicas share through one Redis, or one slot of a Redis Cluster.

A replica writes what it produces (`journal`) and follows what others produce (`subscription`); leases tell who
lives (`lease`). Its own readers see deltas before Redis does, and an end only after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from ws_chat.protocol.errors import UNREACHABLE, ChatError
from ws_chat.stores.base import LogExistsError
from ws_chat.stores.memory import MemoryLog
from ws_chat.stores.redis.connection import cancel
from ws_chat.stores.redis.journal import Journal
from ws_chat.stores.redis.lease import RENEWAL, Lease
from ws_chat.stores.redis.names import DISOWN, FOLLOW, deltas_of, redis_name, start_of, terminal_of
from ws_chat.stores.redis.subscription import FollowedLog, Following

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ws_chat.protocol.frames import Start
    from ws_chat.stores.base import GenerationKey, Log, RunningGenerations
    from ws_chat.stores.redis.connection import Link
    from ws_chat.stores.redis.journal import OwnLog

logger = logging.getLogger("ws_chat.redis")

PATIENCE: Final = 8.0
"""Seconds that finding a log may take: that of a replica which has just died takes longest."""
RETRY: Final = 0.2
REBIRTH: Final = round(3 * RENEWAL / RETRY)
"""How often a replica without a lease is asked after Redis was away: it may be about to begin one."""
AWAY: Final = 10.0
"""Seconds that readers of other replicas' generations wait for Redis to come back."""


class Shard:
    """Named logs by key. Those that have ended are kept for `retention` milliseconds."""

    def __init__(self, link: Link, replica: str, retention: int) -> None:
        self._link = link
        self._names = link.names
        self._replica = replica
        self._journal = Journal(link, replica, retention)
        self._following = Following(link, replica, self._on_message, self._on_leave)
        self._lease = Lease(link, replica, retention)
        self._running: RunningGenerations | None = None
        self._creating: dict[str, asyncio.Event] = {}
        self._unsure: set[str] = set()  # the keys of creates whose answer never came
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, running: RunningGenerations) -> None:
        self._running = running
        try:
            await self._lease.renew()
        except ChatError:
            logger.warning("Redis does not answer yet")
        for forever in (self._live(), self._look_after(), self._journal.write(), self._following.read()):
            self._begin(forever)

    async def create(self, generation: GenerationKey, start: Start, request: bytes) -> Log:
        key = redis_name(generation)
        if removing := self._removing.get(key):
            await removing
        if key in self._creating or self._journal.get(key):
            raise LogExistsError
        created = self._creating[key] = asyncio.Event()
        try:
            log = await self._journal.create(generation, start, request)
        except BaseException:
            self._unsure.add(key)
            raise
        finally:
            del self._creating[key]
            created.set()
        if log is None:
            raise LogExistsError
        return log

    async def get(self, generation: GenerationKey, after: int = 0) -> Log | None:
        key = redis_name(generation)
        try:
            async with asyncio.timeout(PATIENCE):
                log = await self._find(key)
                for _ in range(2):  # what comes first may have been on its way before it was asked for
                    if isinstance(log, FollowedLog) and log.last < after and log.terminal is None:
                        await self._following.catch_up(log)
                return log
        except TimeoutError:
            raise ChatError("overloaded", "The generation cannot be reached now.", retry_after=1) from None

    async def _find(self, key: str) -> Log | None:
        while True:
            if key in self._removing:
                return None
            if leaving := self._leaving.get(key):  # else its `unwatch` could come after our `watch`
                await asyncio.wait([leaving])
            if creating := self._creating.get(key):
                await creating.wait()
            if log := self._journal.get(key):
                return log
            if followed := self._following.get(key):
                await followed.told.wait()
                if followed.terminal or self._following.get(key) is followed:
                    self._following.linger(followed)
                    return followed
                continue
            found = await self._link.run(FOLLOW, [self._names.log(key)], self._replica, key, self._names.prefix)
            replica, start, request, terminal, deltas, position = found
            if not replica:
                return None
            if terminal:
                return _ended(start, request, terminal, deltas)
            await self._reach(key, replica.decode(), start_of(start), request, position)

    async def _reach(self, key: str, replica: str, start: Start, request: bytes, position: bytes) -> None:
        """Follow a log that runs; if it is lost, end it."""
        if replica == self._replica:
            if self._journal.get(key) is None and key not in self._creating:
                await self._disown(key)
        elif not position:
            await self._lease.bury(replica, [key])
            await asyncio.sleep(RETRY)
        elif self._following.get(key) is None:
            self._following.follow(key, replica, start, request, position)

    async def cancel(self, generation: GenerationKey) -> None:
        log = self._following.get(redis_name(generation))
        if log and not await self._following.ask(log, "cancel") and log.terminal is None:
            raise ChatError("overloaded", "The replica of the generation cannot be reached now.", retry_after=1)

    def remove(self, generation: GenerationKey) -> None:
        key = redis_name(generation)
        self._journal.forget(key)

        async def remove() -> None:
            try:
                await self._link.call("DEL", self._names.log(key))
                await self._link.call("SREM", self._names.running(self._replica), key)
            except ChatError:
                logger.warning("A log could not be removed")  # it expires
            finally:
                del self._removing[key]

        if key not in self._removing:
            self._removing[key] = self._begin(remove())

    async def close(self) -> None:
        await cancel(self._tasks)
        written = await self._journal.close()
        await self._following.close()
        try:
            if written:  # else it dies as one that is killed: others end what it has left
                await self._lease.end()
        except ChatError:
            logger.warning("Redis is not told that this replica ends: its lease will")
        await self._link.close()

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self) -> None:
        """Renew the lease, whatever else takes long. Never returns."""
        while True:
            await asyncio.sleep(RENEWAL)
            try:
                await self._lease.renew()
            except ChatError:
                if self._link.away > AWAY:
                    for log in self._following.give_up(UNREACHABLE):
                        self._on_leave(log)
            except Exception:
                logger.exception("The lease could not be renewed")

    async def _look_after(self) -> None:
        """Make good what may have been missed, and look for replicas that have died. Never returns."""
        while True:
            await asyncio.sleep(RENEWAL)
            try:
                await self._make_good()
                watching = {replica for log in self._journal.logs for replica in log.watchers}
                dead = await self._lease.dead(self._following.replicas | watching)
                for replica in dead:
                    for log in self._journal.logs:
                        self._unwatch(log, replica)
                for replica in dead:
                    await self._bury(replica)
            except ChatError:
                pass  # the link has said so
            except Exception:
                logger.exception("Looking after the shared log failed")

    async def _make_good(self) -> None:
        if self._lease.begun:
            await self._register()
        for key in list(self._unsure):
            if self._journal.get(key) is None and key not in self._creating:
                await self._disown(key)
            self._unsure.discard(key)
        if self._following.doubtful:
            await self._following.resume()

    async def _bury(self, replica: str) -> None:
        try:
            await self._lease.bury(replica, self._following.of(replica))
            await self._following.settle(replica)
        except ChatError:
            raise
        except Exception:
            logger.exception("Replica %s could not be buried", replica)

    async def _register(self) -> None:
        """Write anew what may have been lost, and ask again for what is followed: others took this replica for dead."""
        self._lease.begun = False
        self._following.doubtful = True
        try:
            await self._restore()
        except ChatError:
            self._lease.begun = True
            raise

    async def _restore(self) -> None:
        for log in await self._journal.restore():
            if self._running:
                self._running.cancel(log.generation)

    async def _disown(self, key: str) -> None:
        """Undo what a create has left whose answer never came. Nobody else creates it meanwhile: it would be undone."""
        over = self._creating[key] = asyncio.Event()
        try:
            await self._link.run(DISOWN, [self._names.log(key), self._names.running(self._replica)], self._replica, key)
        finally:
            del self._creating[key]
            over.set()

    def _on_message(self, message: dict[bytes, bytes]) -> None:
        """Take what another replica asks for."""
        by = message.get(b"by", b"").decode()
        running = self._running
        if running is None:
            return
        if log := self._journal.get(message.get(b"watch", b"").decode()):
            self._journal.show_whole(log.key)
            if not log.watchers:
                running.add_remote_reader(log.generation)
            log.watchers.add(by)
        elif (key := message.get(b"watch", b"").decode()) and key not in self._creating:
            self._unsure.add(key)
        elif log := self._journal.get(message.get(b"unwatch", b"").decode()):
            self._unwatch(log, by)
        elif log := self._journal.get(message.get(b"cancel", b"").decode()):
            running.cancel(log.generation)

    def _unwatch(self, log: OwnLog, by: str) -> None:
        if by in log.watchers:
            log.watchers.remove(by)
            if not log.watchers and self._running:
                self._running.remove_remote_reader(log.generation)

    def _on_leave(self, log: FollowedLog) -> None:
        async def leave() -> None:
            attempts = REBIRTH
            while attempts:
                with contextlib.suppress(ChatError):  # the link has said so
                    told = await self._following.ask(log, "unwatch")
                    attempts = 0 if told or self._link.steady else attempts - 1
                if attempts:
                    await asyncio.sleep(RETRY)
            del self._leaving[log.key]

        self._leaving[log.key] = self._begin(leave())


def _ended(start: bytes, request: bytes, terminal: bytes, deltas: bytes) -> MemoryLog:
    log = MemoryLog(start_of(start), request)
    if said := deltas_of(deltas):
        log.append(said)
    log.end(terminal_of(terminal))
    return log
