"""The soak of replicas, in small: connections that break and go on at the other one, and a replica that is killed."""

from __future__ import annotations

import asyncio

import pytest
import soak_replicas

from ws_chat.client import backoff

pytestmark = pytest.mark.anyio


async def test_connections_that_are_reset_at_random_and_go_on_elsewhere(monkeypatch):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):  # which the soak sets
        monkeypatch.setattr(backoff, name, getattr(backoff, name))
    await soak_replicas.drops(40, seed=1, readers=20, seconds=0.7, size=2500)


async def test_a_replica_and_a_worker_that_are_killed():
    async with asyncio.TaskGroup() as group:
        group.create_task(soak_replicas.killed(60, seed=1, longest=5))
        group.create_task(soak_replicas.killed(60, seed=2, replicas=1, workers=2, longest=5))
