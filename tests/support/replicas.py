"""Replicas that run with other windows than the usual ones, so that nothing in a test is timed."""

from __future__ import annotations

import json
from pathlib import Path

WITH_WINDOWS = Path(__file__).parent / "windows"


def setting(windows: dict[str, float]) -> dict[str, str]:
    """Return the environment of a program in which constants of `ws_chat.stores` have these values."""
    return {"PYTHONPATH": str(WITH_WINDOWS), "TEST_WINDOWS": json.dumps(windows)}
