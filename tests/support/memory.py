"""Bounds of memory in tests: counted by the interpreter, so they hold on any machine."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Assert that the block never holds more than `limit` bytes beyond those of its start."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= limit, f"{peak - before:,} bytes"
