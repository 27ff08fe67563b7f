"""The connection to Redis. What goes wrong with it becomes one error here: `overloaded`, to be tried again."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from limits.aio.storage import RedisStorage
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ws_chat.errors import ChatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limits.aio.storage import Storage

logger = logging.getLogger("ws_chat.redis")

BLOCK: Final = 1.0
"""Seconds that a read waits for something to come."""
STEADY: Final = 4.0
"""Seconds after which, when Redis is back, everybody who lives has said so."""
PATIENCE: Final = 2.0
"""Seconds that Redis may take to answer."""


class Link:
    """Runs commands and scripts. Each raises ChatError (`overloaded`) when Redis is away."""

    def __init__(self, url: str) -> None:
        def client(patience: float) -> Redis:
            return Redis.from_url(
                url,
                socket_timeout=patience,
                socket_connect_timeout=PATIENCE,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )

        self._url = url
        self._client = client(PATIENCE)
        self._reading = client(BLOCK + PATIENCE)
        self._scripts: dict[str, Any] = {}
        self.available = False
        """Whether the last command was answered."""
        self._since = 0.0

    @property
    def steady(self) -> bool:
        """Whether Redis has been there for long enough that who says nothing is dead."""
        return self.available and time.monotonic() - self._since >= STEADY

    async def call(self, *command: Any) -> Any:
        """Run a command."""
        try:
            answer = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise self._lost(error) from None
        self._found()
        return answer

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script."""
        known = self._scripts.get(script) or self._scripts.setdefault(script, self._client.register_script(script))
        try:
            answer = await known(keys=keys, args=arguments)
        except (RedisError, OSError) as error:
            raise self._lost(error) from None
        self._found()
        return answer

    async def read(self, positions: Mapping[str, bytes]) -> Any:
        """Wait for new entries of streams after these positions; return pairs of a name and its entries."""
        streams: dict[Any, Any] = dict(positions)
        try:
            return await self._reading.xread(streams, block=round(BLOCK * 1000)) or ()
        except (RedisError, OSError) as error:
            raise self._lost(error) from None

    def counters(self) -> Storage:
        """Return what counts requests over the same connections."""
        # A pool is none of the option types that it names, and yet the documented way to hand over connections.
        pool: Any = self._client.connection_pool
        return RedisStorage(
            f"async+{self._url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="ws_chat:quota",
            connection_pool=pool,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._reading.aclose()

    def _found(self) -> None:
        if not self.available:
            logger.info("Redis answers")
            self._since = time.monotonic()
        self.available = True

    def _lost(self, error: Exception) -> ChatError:
        if self.available:
            logger.warning("Redis is away: %s", error)
        self.available = False
        return ChatError("overloaded", "The shared log cannot be reached now.", retry_after=1)
