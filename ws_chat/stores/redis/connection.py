"""The connection to one shard. What goes wrong with it becomes one error here: `overloaded`, to be tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError, ResponseError

from ws_chat.protocol.errors import UNREACHABLE, ChatError
from ws_chat.stores.redis.names import Names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from limits.aio.storage import Storage
    from limits.aio.storage.redis.redispy import RedispyBridge

logger = logging.getLogger("ws_chat.redis")

CLUSTER: Final = "+cluster://"
"""In a URL: this shard is a slot of a Redis Cluster, of which the URL names any node."""
BLOCK: Final = 1.0
"""Seconds that a read waits for something to come."""
STEADY: Final = 4.0
"""Seconds after which, when Redis is back, everybody who lives has said so."""
PATIENCE: Final = 2.0
"""Seconds that Redis may take to answer, and to be connected to."""
FAULTS: Final = (RedisError, RedisClusterException, OSError)
"""What the client raises, TimeoutError among them."""
AT_ONCE: Final = 16
"""How many commands may wait for their answer, each on a connection of its own."""


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks that use a link, and wait for their end."""
    pending = set(tasks)
    while pending:
        # Once is not enough: under the client lies asyncio.wait_for, which in Python 3.11 can lose it (bpo-42130).
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)


class _Counters(RedisStorage):
    """Counts over connections that are there."""

    bridge: RedispyBridge

    def __init__(self, client: Redis | RedisCluster) -> None:
        self._client: Any = client
        super().__init__("async+redis://", wrap_exceptions=True, implementation="redispy", key_prefix="ws_chat:quota")

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return FAULTS

    def configure_bridge(self) -> None:
        self.bridge.storage = self._client
        self.bridge.connection_getter = lambda _: self._client


class Link:
    """Runs commands and scripts. Each raises ChatError (`overloaded`) when Redis is away, or refuses to write."""

    def __init__(self, urls: Sequence[str], shard: int) -> None:
        """Connect to the URL of this number; the others may name more nodes of the same cluster.

        Raises TypeError or ValueError for a URL that says what cannot be.
        """
        self.names = Names(shard, len(urls))
        self._urls = urls
        self._url = urls[shard]
        self._client = self._connect(PATIENCE)
        self._reading = self._connect(BLOCK + PATIENCE)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._scripts: dict[str, Any] = {}
        self.available = False
        """Whether nothing has gone wrong since Redis last took a write."""
        self._since = time.monotonic()
        self._faults = 0

    @property
    def steady(self) -> bool:
        """Whether Redis has been there for long enough that who says nothing is dead."""
        return self.available and time.monotonic() - self._since >= STEADY

    @property
    def away(self) -> float:
        """For how many seconds Redis has been away."""
        return 0.0 if self.available else time.monotonic() - self._since

    def found(self) -> None:
        """Tell that Redis takes writes."""
        if not self.available:
            logger.info("Redis answers")
            self._since = time.monotonic()
        self.available = True

    async def call(self, *command: Any) -> Any:
        """Run a command."""
        return await self._answer(lambda: self._client.execute_command(*command))

    async def at_once(self, *command: Any) -> Any:
        """Run a command that waits for no turn."""
        return await self._in_time(lambda: self._client.execute_command(*command))

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script."""
        known = self._scripts.get(script) or self._scripts.setdefault(script, self._client.register_script(script))
        return await self._answer(lambda: known(keys=keys, args=arguments))

    async def _answer(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        faults = self._faults
        async with self._turns:
            if self._faults != faults:  # to wait once more for what has just not answered would make the queue endless
                raise ChatError.of(UNREACHABLE)
            return await self._in_time(ask)

    async def _in_time(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return await ask()
        except FAULTS as error:
            raise await self._lost(error) from None

    async def read(self, positions: Mapping[str, bytes]) -> Any:
        """Wait for new entries of streams after these positions; return pairs of a name and its entries."""
        streams: dict[Any, Any] = dict(positions)
        try:
            return await self._reading.xread(streams, block=round(BLOCK * 1000)) or ()
        except FAULTS as error:
            if isinstance(self._reading, RedisCluster):
                # It asks a node of its choice where the keys of an XREAD are, and looks for no other when that is gone.
                await self._reading.aclose()
            raise await self._lost(error) from None

    def counters(self) -> Storage:
        """Return what counts requests."""
        return _Counters(self._client)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._client, self._reading):
            if isinstance(client, RedisCluster):
                # One that is about to look for its nodes anew would close none.
                with contextlib.suppress(*FAULTS):
                    await client.initialize()
            await client.aclose()

    def _connect(self, patience: float) -> Redis | RedisCluster:
        options = {"socket_timeout": patience, "socket_connect_timeout": PATIENCE, "protocol": 2}
        once = Retry(NoBackoff(), 0)
        if CLUSTER not in self._url:
            pool = BlockingConnectionPool.from_url(
                self._url, max_connections=2 * AT_ONCE, timeout=PATIENCE, retry=once, **options
            )
            pool.make_connection()  # type: ignore[no-untyped-call]  # raises for options that there are not
            return Redis.from_pool(pool)
        nodes = [ClusterNode(place.hostname or "localhost", place.port or 6379) for place in map(urlsplit, self._urls)]
        return RedisCluster.from_url(
            self._url.replace(CLUSTER, "://"), startup_nodes=nodes, max_connections=1000, retry=once, **options
        )

    async def _lost(self, error: Exception) -> ChatError:
        if self.available:
            logger.warning("Redis is away: %s", str(error) or "no answer in time")
            self._since = time.monotonic()
        self.available = False
        if not isinstance(error, ResponseError):
            self._faults += 1
        if isinstance(error, ReadOnlyError) and isinstance(self._client, Redis) and isinstance(self._reading, Redis):
            # Its role went to another, which its name leads to by now.
            await self._client.connection_pool.disconnect()
            await self._reading.connection_pool.disconnect()
        return ChatError.of(UNREACHABLE)
