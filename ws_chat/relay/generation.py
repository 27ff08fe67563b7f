"""One answer's life: it begins, and ends in one terminal frame. Pure: no task, no store; time is passed in.

    WAITING --begin--> STREAMING --finish--> COMPLETED
       |                   |-----cancel----> CANCELLED
       '---- (the same) ---'------fail-----> FAILED

An answer is complete when its finish_reason has come; an upstream that just stops makes it fail, never complete.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Literal

from ws_chat.protocol.deltas import Outcome
from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed

if TYPE_CHECKING:
    from ws_chat.protocol.frames import Terminal


class State(enum.Enum):
    """Where a generation is in its life."""

    WAITING = "waiting"
    STREAMING = "streaming"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Event(enum.Enum):
    """What can happen to a generation."""

    BEGIN = "begin"
    FINISH = "finish"
    CANCEL = "cancel"
    FAIL = "fail"


TRANSITIONS: Final = {
    (State.WAITING, Event.BEGIN): State.STREAMING,
    (State.WAITING, Event.FINISH): State.COMPLETED,
    (State.WAITING, Event.CANCEL): State.CANCELLED,
    (State.WAITING, Event.FAIL): State.FAILED,
    (State.STREAMING, Event.FINISH): State.COMPLETED,
    (State.STREAMING, Event.CANCEL): State.CANCELLED,
    (State.STREAMING, Event.FAIL): State.FAILED,
}


class IllegalTransitionError(Exception):
    """Something happened to a generation that cannot happen in its state. Nothing has changed."""


class Generation:
    """One answer being produced. Times are seconds of any one clock; `outcome` is what its upstream says of it."""

    __slots__ = ("_model", "_started", "first", "id", "outcome", "state", "total")

    def __init__(self, generation_id: str, model: str, now: float) -> None:
        self.id = generation_id
        self.state = State.WAITING
        self.outcome = Outcome()
        self._model = model
        self._started = now
        self.first: float | None = None
        """Seconds until the first delta."""
        self.total = 0.0
        """Seconds until the end."""

    def begin(self, now: float) -> None:
        """Take note of the first delta."""
        self._move(Event.BEGIN)
        self.first = now - self._started

    def finish(self, last: int, now: float) -> Terminal:
        """Take the end of the upstream's stream: complete with a finish_reason, failed without one.

        `last` is the seq of the last delta, here and below.
        """
        if self.outcome.finish_reason is None:
            message = "The upstream's answer broke off before it was complete."
            return self.fail(last, ErrorInfo("upstream_incomplete", message), now)
        self._move(Event.FINISH)
        return self._done("completed", last, now)

    def cancel(self, last: int, now: float) -> Done:
        """Take a cancel: what was said so far is the answer."""
        self._move(Event.CANCEL)
        return self._done("cancelled", last, now)

    def fail(self, last: int, error: ErrorInfo, now: float) -> Failed:
        """Take a failure: what was said so far stays said."""
        self._move(Event.FAIL)
        self.total = now - self._started
        return Failed(self.id, last + 1, error)

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalTransitionError(f"{event.value} of a generation that is {self.state.value}") from None

    def _done(self, status: Literal["completed", "cancelled"], last: int, now: float) -> Done:
        self.total = now - self._started
        return Done(
            id=self.id,
            seq=last + 1,
            status=status,
            finish_reason=self.outcome.finish_reason,
            model=self.outcome.model or self._model,
            usage=self.outcome.usage,
            timing={
                "ttft_ms": None if self.first is None else _milliseconds(self.first),
                "total_ms": _milliseconds(self.total),
            },
        )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
