"""Long work in slices, so that it does not block the event loop: replays, and waking thousands of readers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

Job: TypeAlias = Callable[[], None]
MayGoOn: TypeAlias = Callable[[Job], bool]

TURN_TIME: Final = 0.005
"""Seconds that all jobs together may use in one turn of the event loop."""


def always(_: Job) -> bool:
    """Let every job go on: for logs and readers without an event loop."""
    return True


class Turns:
    """The jobs of one event loop that wait for their next slice.

    Invariants (tests/stores/test_turns.py):

    - Small work is never delayed: a job does its first slice without asking, and calls `may_go_on` before each further one.
    - In a turn of the event loop all jobs together run for at most TURN_TIME, counted from the first call of `may_go_on`,
      and one slice more.
    - A job is in the queue at most once. Queued jobs run one slice each, in order; a job that is alone goes on while there
      is time.
    - A job that raises does not delay the others.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Job, None] = OrderedDict()
        self._end: float | None = None  # of the time in this turn; None: `may_go_on` was not called yet

    def may_go_on(self, job: Job) -> bool:
        """Return whether there is time for another slice now. If not, queue `job`, which is called later."""
        now = time.monotonic()
        if self._end is None:
            self._end = now + TURN_TIME
            asyncio.get_running_loop().call_soon(self._run)
        if now < self._end and not self._waiting:
            return True
        self._waiting[job] = None
        return False

    def _run(self) -> None:
        self._end = end = time.monotonic() + TURN_TIME
        try:
            while self._waiting:
                job, _ = self._waiting.popitem(last=False)
                job()
                if time.monotonic() >= end:
                    break
        finally:
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._run)
            else:
                self._end = None
