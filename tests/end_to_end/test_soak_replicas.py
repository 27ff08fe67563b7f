"""The soak of replicas, in small: connections that break and go on at the other one, and a replica that is killed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from load import soak_replicas

from ws_chat.client import backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def site(**of) -> AsyncIterator[tuple]:
    """Run replicas whose leases lapse when a test says so. A fault in any task is raised as it is, not in a group."""
    try:
        async with soak_replicas.site(held=True, **of) as parts:
            yield parts
    except BaseExceptionGroup as group:
        fault: BaseException = group
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        raise fault from None


async def test_connections_break_and_go_on_elsewhere_and_then_a_replica_is_killed(monkeypatch):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):  # which the soak sets
        monkeypatch.setattr(backoff, name, getattr(backoff, name))
    async with site() as (fake, them):
        await soak_replicas.drops(fake, them, 8, seed=1, readers=4, seconds=0.3, size=2500)
        await soak_replicas.killed(fake, them, 12, seed=1, longest=2)


async def test_one_of_two_workers_is_killed():
    async with site(replicas=1, workers=2) as (fake, them):
        await soak_replicas.killed(fake, them, 12, seed=1, longest=2)
