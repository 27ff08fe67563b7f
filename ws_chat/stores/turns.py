"""Long work in slices, so that it does not hold up the event loop: replays, and the wakes of thousands of readers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

Job: TypeAlias = Callable[[], None]
MayGoOn: TypeAlias = Callable[[Job], bool]

TURN_TIME: Final = 0.005
"""Seconds that all jobs together may go on in one turn of the event loop."""


def always(_: Job) -> bool:
    """Let every job go on: for logs and readers without an event loop."""
    return True


class Turns:
    """The jobs of one event loop that wait for their next slice.

    Invariants (tests/stores/test_turns.py):

    - Small work is never delayed. A job does its first slice at once, wherever it is called, and asks only before the next.
    - All jobs together go on for at most TURN_TIME and one slice in a turn of the event loop. It counts from the first
      question.
    - A job waits at most once. Waiting jobs get one slice each, in order; one that is alone goes on while there is time.
    - A job that raises costs no other one its turn.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Job, None] = OrderedDict()
        self._end: float | None = None  # of this turn's time; None: no job has asked

    def may_go_on(self, job: Job) -> bool:
        """Return whether there is time for another slice now. If not, `job` is called when it is its turn."""
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
