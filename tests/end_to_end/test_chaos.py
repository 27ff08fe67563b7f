"""The chaos program, in small: three replicas, three faults one after the other, and readers that see none of them.

All of it, with every nemesis: `make chaos`. Its checker has tests of its own (tests/load/test_chaos_checker.py).
"""

from __future__ import annotations

import asyncio

import pytest
from load.chaos import nemeses
from load.chaos.__main__ import one, report
from load.chaos.checker import check
from support.processes import ROOT

pytestmark = pytest.mark.anyio

SECONDS = 12.0
PATIENCE = 3.0
"""On a machine that is three times slower than needed, deadlines are missed; everything else holds."""


async def test_readers_see_none_of_the_faults(tmp_path):
    struck = 0

    async def each(site, chance) -> None:
        nonlocal struck
        for strike in (nemeses.flush, nemeses.promote, nemeses.kill):
            await strike(site, chance)
            struck += 1
            await asyncio.sleep(2)  # so that the next one finds something at work

    nemesis = nemeses.Nemesis(each, secondary=True, pause=2)
    history = await one(nemesis, "some", 1, SECONDS, ROOT, 1.0, tmp_path)
    violations = check(history, PATIENCE)
    print(report(history, violations, SECONDS))
    assert struck == 3
    assert sum(run.completed for run in history.runs) > 5
    assert not violations
