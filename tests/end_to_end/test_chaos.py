"""The chaos program, in small: three replicas, three faults one after the other, and readers that see none of them.

All of it, with every nemesis: `make chaos`. Its checker has tests of its own (tests/load/test_chaos_checker.py).
"""

from __future__ import annotations

import pytest
from load.chaos.__main__ import one, report
from load.chaos.checker import check
from support.processes import ROOT

pytestmark = pytest.mark.anyio

SECONDS = 12.0
PATIENCE = 6.0
"""On a machine that is slow or busy, deadlines are missed; everything else holds."""


async def test_readers_see_none_of_the_faults(tmp_path):
    history = await one("some", 1, SECONDS, ROOT, 1.0, tmp_path)
    violations = check(history, PATIENCE)
    print(report(history, violations, history.end - history.start))
    assert {fault.kind for fault in history.faults} == {"lost all", "away", "lost tail", "killed"}
    assert sum(run.completed for run in history.runs) > 5
    assert not violations
