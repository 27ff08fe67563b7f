"""Replicas that run with other windows than the usual ones, so that nothing in a test is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio import Redis

SHARD = "ws_chat:{0}:"
"""The prefix of every name in Redis."""
WITH_WINDOWS = Path(__file__).parent / "windows"


def setting(windows: dict[str, float]) -> dict[str, str]:
    """Return the environment of a program in which constants of `ws_chat.stores` have these values."""
    return {"PYTHONPATH": str(WITH_WINDOWS), "TEST_WINDOWS": json.dumps(windows)}


async def lapse(redis: Redis, living: set[str]) -> set[str]:
    """Let the leases of all replicas but these lapse, as they do in time; return the names of those that were dead."""
    dead = {name.decode() for name in await redis.smembers(f"{SHARD}replicas")} - living
    for name in dead:
        await redis.delete(f"{SHARD}lease:{name}")
    return dead


HELD: dict[str, Any] = {
    "redis.connection.PATIENCE": 600,
    "redis.connection.STEADY": 0,
    "redis.lease.LEASE": 600_000,
    "redis.shard.AWAY": 600,
    "redis.shard.RENEWAL": 0.2,
    "redis.journal.END_PATIENCE": 600,
}
"""Windows with which no replica is taken for dead because the machine is slow; a test says which one is."""
