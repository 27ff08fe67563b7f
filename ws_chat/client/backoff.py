"""How long to retry, and the pauses between two attempts."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ws_chat.client.errors import ClientError

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before the second attempt, and at most; each pause is up to twice the one before, at random."""


class Backoff:
    """A budget of seconds for attempts and pauses, counted from the last sign of life."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.renew(time.monotonic())

    def renew(self, since: float) -> None:
        """Restart the budget from the last sign of life, at the time `since` of the monotonic clock."""
        self._deadline = since + self._budget
        self._pause = FIRST_PAUSE

    @property
    def left(self) -> float:
        """Seconds until the budget is used up."""
        return max(0.0, self._deadline - time.monotonic())

    def pause(self, error: ClientError) -> float:
        """Return the seconds to wait after `error` before the next attempt; at least its `retry_after`.

        Raises `error` when there must be no other attempt.
        """
        at_least, left = error.retry_after or 0.0, self.left
        if not error.retryable or not left or at_least > left:
            raise error
        pause = max(self._pause, at_least)
        self._pause = min(LONGEST_PAUSE, self._pause * random.uniform(1, 2))  # noqa: S311  (jitter, no secret)
        return min(pause, left)

    def counts_as_held(self, seconds: float) -> bool:
        """Whether a connection of that age was good although nothing was received: a model may think for long."""
        return seconds > min(LONGEST_PAUSE, self._budget / 2)
