"""Logs shared through Redis: any replica serves any reader of a named generation. Those without a name stay in memory.

Named logs are spread over shards by their keys; `shard` is what a replica does in each. All replicas name the
same shards in the same order.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING
from zlib import crc32

from ws_chat.stores.memory import MemoryStore
from ws_chat.stores.redis.connection import Link
from ws_chat.stores.redis.names import redis_name
from ws_chat.stores.redis.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limits.aio.storage import Storage

    from ws_chat.protocol.frames import Start
    from ws_chat.stores.base import GenerationKey, Log, RunningGenerations


class RedisStore:
    """A replica's part in the logs that replicas share. Those that have ended are kept for `retention` seconds."""

    def __init__(self, urls: Sequence[str], *, retention: float = 300.0) -> None:
        """Use one shard for each URL."""
        self.replica = secrets.token_hex(8)
        self._unnamed = MemoryStore(retention=retention)
        self._links = [Link(urls, shard) for shard in range(len(urls))]
        self._shards = [Shard(link, self.replica, max(1, round(retention * 1000))) for link in self._links]

    @property
    def available(self) -> bool:
        """Whether every shard answers."""
        return all(link.available for link in self._links)

    @property
    def shared(self) -> bool:
        return True

    @property
    def counters(self) -> Storage:
        """Where all replicas count requests."""
        return self._links[0].counters()

    async def open(self, running: RunningGenerations) -> None:
        await asyncio.gather(*(shard.open(running) for shard in self._shards))

    async def create(self, key: GenerationKey, start: Start, request: bytes) -> Log:
        return await self._place(key).create(key, start, request)

    async def get(self, key: GenerationKey, after: int = 0) -> Log | None:
        return await self._place(key).get(key, after)

    async def cancel(self, key: GenerationKey) -> None:
        await self._place(key).cancel(key)

    def remove(self, key: GenerationKey) -> None:
        self._place(key).remove(key)

    async def close(self) -> None:
        await asyncio.gather(*(shard.close() for shard in self._shards))
        await self._unnamed.close()

    def _place(self, key: GenerationKey) -> Shard | MemoryStore:
        if not key.named:
            return self._unnamed
        return self._shards[crc32(redis_name(key).encode()) % len(self._shards)]
