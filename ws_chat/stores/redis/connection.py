"""The connection to Redis: a server, a server behind Sentinel, or a Cluster. Its errors become `overloaded` here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisClusterException, RedisError, ResponseError

from ws_chat.protocol.errors import UNREACHABLE, ChatError
from ws_chat.stores.redis.keys import slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from limits.aio.storage import Storage
    from limits.aio.storage.redis.redispy import RedispyBridge

    from ws_chat.stores.redis.keys import Slot

logger = logging.getLogger("ws_chat.redis")

Command: TypeAlias = tuple[Any, ...]

OLDEST: Final = 7
"""The oldest major version of Redis."""
CLUSTER_SLOTS: Final = 16
"""Slots of a Redis Cluster that are used: more primaries than that have no work."""
TIMEOUT: Final = 2.0
"""Seconds that Redis may take to answer, and to be connected to."""
RETRIES: Final = 1
CONNECTIONS: Final = 32
SCRIPTS: Final = 16
"""Scripts of requests that are run at once: each may carry a whole request."""
MAX_READING: Final = 16
"""Logs that requests may read at once, each over a connection of its own."""
MARKER_TTL: Final = 15_000
"""Milliseconds that the marker lasts. Less than a running log: a step of Redis's clock that expires one expires it too."""
HOLD_TTL: Final = 5_000
"""Milliseconds in which every replica detects that Redis lost data, and has written its logs again."""
FAULTS: Final = (RedisError, RedisClusterException, OSError, RuntimeError)
"""What the client raises. OSError includes TimeoutError; uvloop raises RuntimeError for a write to a closed transport."""


class _Counters(RedisStorage):
    """Counts requests over the connections of a client."""

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
    """Runs commands. The client may repeat any of them, so all must be idempotent."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Raises TypeError or ValueError for URLs that do not fit together, or have unknown options."""
        self._client: Any = _connect(urls)
        self.slots = slots(CLUSTER_SLOTS if isinstance(self._client, RedisCluster) else 1)
        self._reading = asyncio.Semaphore(MAX_READING)
        self._scripts: dict[Slot, list[tuple[Command, asyncio.Future[Any]]]] = {slot: [] for slot in self.slots}
        self._running: dict[Slot, asyncio.Task[None]] = {}

    @property
    def available(self) -> bool:
        return all(slot.up for slot in self.slots)

    async def run(self, slot: Slot, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script for a request, together with those of others.

        Raises ChatError (`overloaded`), at once while Redis does not answer.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._scripts[slot].append((evaluate(script, keys, *arguments), answer))
        if slot not in self._running:
            self._running[slot] = asyncio.create_task(self._run(slot))
        return await answer

    async def call(self, slot: Slot, *command: Any) -> Any:
        """Run a command for a request. Raises ChatError as `run` does."""
        async with self._reading:
            if not slot.up:  # fail fast: each waiting for its own timeout would make the queue endless
                raise ChatError.of(UNREACHABLE)
            try:
                return await self._in_time(lambda: self._client.execute_command(*command))
            except FAULTS as error:
                await self._reconnect(error)
                raise _refuse(slot, error) from None

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in their order; return their answers, which may be exceptions."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            async with asyncio.timeout(TIMEOUT * (1 + RETRIES)):
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
        except FAULTS as error:
            answers = [error] * len(commands)
        for answer in answers:
            if isinstance(answer, ReadOnlyError | OSError) or (
                isinstance(answer, RedisError) and not isinstance(answer, ResponseError)
            ):
                await self._reconnect(answer)
                break
        return answers

    async def read(self, slot: Slot, positions: Mapping[str, str]) -> Any:
        """Return pairs of a stream and its entries after the position, for those streams that have any."""
        options: dict[str, Any] = {}
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()  # does nothing if it is initialized
            # Without this the client asks another node for the keys of each command.
            options["target_nodes"] = self._client.get_node_from_key(next(iter(positions)))
        command = ("XREAD", "COUNT", 1000, "STREAMS", *positions, *positions.values())
        return await self._in_time(lambda: self._client.execute_command(*command, **options)) or ()

    async def check(self) -> None:
        """Raise ValueError if this Redis is too old; log a warning if it may evict keys. Raises FAULTS."""
        server: dict[str, Any] = await self._in_time(self._client.info)
        version = str(server["redis_version"])
        if int(version.partition(".")[0]) < OLDEST:
            raise ValueError(f"WS_CHAT_REDIS_URL: Redis {OLDEST}.0 or newer is needed, this one is {version}")
        if (policy := server.get("maxmemory_policy")) not in (None, "noeviction"):
            logger.warning("Redis has maxmemory-policy %s, which evicts running answers: set noeviction", policy)

    def counters(self) -> Storage:
        return _Counters(self._client)

    async def close(self) -> None:
        if running := list(self._running.values()):
            await asyncio.wait(running)
        with contextlib.suppress(*FAULTS):
            if isinstance(self._client, RedisCluster):
                await self._client.initialize()  # else, about to look for its nodes again, it would close none
        await self._client.aclose()
        if isinstance(self._client, Redis) and isinstance(pool := self._client.connection_pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()

    async def _run(self, slot: Slot) -> None:
        while queue := self._scripts[slot]:
            scripts, self._scripts[slot] = queue[:SCRIPTS], queue[SCRIPTS:]
            results: list[Any] = [ChatError.of(UNREACHABLE) for _ in scripts]
            if slot.up:
                results = await self.pipeline([command for command, _ in scripts])
            for (_, answer), result in zip(scripts, results, strict=True):
                if answer.done():
                    pass  # its request was cancelled
                elif isinstance(result, ChatError):
                    answer.set_exception(result)
                elif isinstance(result, Exception):
                    answer.set_exception(_refuse(slot, result))
                else:
                    answer.set_result(result)
        del self._running[slot]

    async def _in_time(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(TIMEOUT * (1 + RETRIES)):
            return await ask()

    async def _reconnect(self, error: Exception) -> None:
        """Look for the nodes of a Cluster again; close connections to a server that has become a replica."""
        with contextlib.suppress(*FAULTS):
            if isinstance(self._client, RedisCluster):
                await self._client.aclose()
            elif isinstance(error, ReadOnlyError):
                await self._client.connection_pool.disconnect()


def _refuse(slot: Slot, error: Exception) -> ChatError:
    """Record that Redis does not answer; return the error for the client."""
    logger.warning("A request is refused, because of Redis: %s", describe(error))
    if not isinstance(error, OutOfMemoryError):  # Redis can still be read
        slot.up = False
    return ChatError.of(UNREACHABLE)


def evaluate(script: str, keys: Sequence[str], *arguments: Any) -> Command:
    """Return the command that runs a script."""
    return ("EVAL", script, len(keys), *keys, *arguments)


def state_arguments() -> tuple[Any, ...]:
    """Return the arguments of `_STATE`, which begins every script that looks an id up."""
    return secrets.token_hex(8), MARKER_TTL, HOLD_TTL


def describe(error: Exception) -> str:
    return str(error) or "no answer in time"


def _connect(urls: Sequence[str]) -> Redis | RedisCluster:
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RETRIES)
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "protocol": 2,
        "retry": retry,
    }
    scheme, _, place = urls[0].partition("://")
    scheme, _, kind = scheme.partition("+")
    if any(url.partition("://")[0] != urls[0].partition("://")[0] for url in urls):
        raise ValueError("all URLs must have the same scheme")
    plain = f"{scheme}://{place}"
    parts = [urlsplit(url) for url in urls]
    if kind == "cluster":
        nodes = [ClusterNode(part.hostname or "localhost", part.port or 6379) for part in parts]
        return RedisCluster.from_url(plain, startup_nodes=nodes, max_connections=1000, **options)
    if kind == "sentinel":
        return _behind_sentinel(plain, [(part.hostname or "localhost", part.port or 26379) for part in parts], options)
    if len(urls) > 1:
        raise ValueError(
            "several URLs name the nodes of one redis+cluster:// or redis+sentinel://, not several servers"
        )
    pool = BlockingConnectionPool.from_url(plain, max_connections=CONNECTIONS, timeout=TIMEOUT, **options)
    pool.make_connection()  # type: ignore[no-untyped-call]  # raises for unknown options
    return Redis.from_pool(pool)


def _behind_sentinel(url: str, sentinels: list[tuple[str, int]], options: dict[str, Any]) -> Redis:
    """Return a client of the primary that Sentinel names; the path of the URL is its name, and the database."""
    service, _, database = urlsplit(url).path.strip("/").partition("/")
    if not service:
        raise ValueError(
            "redis+sentinel:// must end in the name of the primary, as in redis+sentinel://host:26379/mymaster"
        )
    given: dict[str, Any] = {**parse_url(url), "db": int(database or 0)}
    for own in ("host", "port", "connection_class"):
        given.pop(own, None)
    timeouts = {name: value for name, value in options.items() if name.startswith("socket_")}
    secret = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
    tls = {**tls, "ssl": True} if url.startswith("rediss") else {}
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs={**timeouts, **secret, **tls})  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(service, **options, **given, **({"ssl": True} if tls else {}))
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return client
