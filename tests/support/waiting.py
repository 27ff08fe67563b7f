"""Waiting in tests: for a condition, never for a time. A test that exceeds its limit reports what it waited for.

Each test has LIMIT seconds, far more than any needs on a slow and busy machine. An async test that reaches them fails
with what it waited for and where each task stands; `pytest-timeout` ends other tests that hang (pyproject.toml).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

LIMIT = 120.0
"""Seconds that a test may take."""
POLL_INTERVAL = 0.01
"""Seconds between two checks of a condition."""

_ROOT = Path(__file__).parents[2]
_waiting: dict[object, str] = {}
"""The names of the conditions that are being waited for."""


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until `condition()`, or what it returns when awaited, is true; return that. `what` names it in a failure."""
    token = object()
    _waiting[token] = what
    try:
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(POLL_INTERVAL)
    finally:
        del _waiting[token]


def until_sync(condition: Callable[[], Any], what: str) -> Any:
    """Poll until `condition()` is true, and return that. For tests without an event loop."""
    token = object()
    _waiting[token] = what
    try:
        while not (value := condition()):
            time.sleep(POLL_INTERVAL)
        return value
    finally:
        del _waiting[token]


def limited(test: Callable[..., Awaitable[None]], limit: float = LIMIT) -> Callable[..., Awaitable[None]]:
    """Return an async test that fails after `limit` seconds, with what it waited for."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        assert task
        report = ""

        def stop() -> None:
            nonlocal report
            report = f"The test took longer than {limit:.0f} s.\n{standing(task)}"
            task.cancel()

        timer = asyncio.get_running_loop().call_later(limit, stop)
        try:
            await test(*args, **kwargs)
        except BaseException:
            if not report:
                raise
        finally:
            timer.cancel()
        if report:
            pytest.fail(report, pytrace=False)

    return run


def standing(of: asyncio.Task[Any]) -> str:
    """Return what is waited for, and where this task and all others stand, as text."""
    named = [f"It waited for {what}." for what in _waiting.values()]
    others = [f"{task.get_name()}: {_place(task)}" for task in asyncio.all_tasks() - {of}]
    return "\n".join([*named, f"The test: {_place(of)}", "Other tasks:", *sorted(others)])


def _place(task: asyncio.Task[Any]) -> str:
    return " > ".join(_frames(task.get_coro())) or repr(task)


def _frames(awaited: Any) -> Iterator[str]:
    """Yield where a coroutine stands and what it awaits, outermost first, in the files of this project."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame and Path(frame.f_code.co_filename).is_relative_to(_ROOT) and ".venv" not in frame.f_code.co_filename:
            yield f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
