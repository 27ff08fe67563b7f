"""How long to go on trying, and how long to wait between one attempt and the next."""

from __future__ import annotations

import random
import time
from typing import Final

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before the second attempt, and at most; each pause is up to twice the one before, at random."""


class Patience:
    """So many seconds from now, to be used up by attempts and pauses."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew(time.monotonic())

    def renew(self, since: float) -> None:
        """Begin again: all was well at the time `since` (of the monotonic clock)."""
        self._deadline = since + self._seconds
        self._pause = FIRST_PAUSE

    @property
    def left(self) -> float:
        """Seconds until it is over; 0 when it is."""
        return max(0.0, self._deadline - time.monotonic())

    def pause(self, at_least: float | None) -> float | None:
        """Return how many seconds to wait before the next attempt; None when there is to be none."""
        pause, left = max(self._pause, at_least or 0), self.left
        if not left or (at_least or 0) > left:
            return None
        self._pause = min(LONGEST_PAUSE, self._pause * random.uniform(1, 2))  # noqa: S311  (jitter, no secret)
        return min(pause, left)

    def counts_as_held(self, seconds: float) -> bool:
        """Whether a connection that lasted so long was a good one, though nothing came over it: a model may think."""
        return seconds > min(LONGEST_PAUSE, self._seconds / 2)
