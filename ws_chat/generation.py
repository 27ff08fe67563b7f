"""One answer's life: deltas in, seq out, one terminal frame at the end. Pure: no task, no store; time is passed in.

    WAITING --delta--> STREAMING --finish--> COMPLETED
       |                   |-----cancel----> CANCELLED
       '---- (the same) ---'------fail-----> FAILED

An answer is complete when its finish_reason has come; an upstream that just stops makes it fail, never complete.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from ws_chat.deltas import substance
from ws_chat.errors import ErrorInfo
from ws_chat.frames import Done, Failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ws_chat.deltas import Chunk, Delta
    from ws_chat.frames import Terminal


class State(enum.Enum):
    """Where a generation is in its life."""

    WAITING = "waiting"
    STREAMING = "streaming"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Event(enum.Enum):
    """What can happen to a generation."""

    DELTA = "delta"
    FINISH = "finish"
    CANCEL = "cancel"
    FAIL = "fail"


TRANSITIONS: Final = {
    (State.WAITING, Event.DELTA): State.STREAMING,
    (State.WAITING, Event.FINISH): State.COMPLETED,
    (State.WAITING, Event.CANCEL): State.CANCELLED,
    (State.WAITING, Event.FAIL): State.FAILED,
    (State.STREAMING, Event.DELTA): State.STREAMING,
    (State.STREAMING, Event.FINISH): State.COMPLETED,
    (State.STREAMING, Event.CANCEL): State.CANCELLED,
    (State.STREAMING, Event.FAIL): State.FAILED,
}


class IllegalTransitionError(Exception):
    """Something happened to a generation that cannot happen in its state. Nothing has changed."""


class Generation:
    """One answer being produced. Times are seconds of any one clock; `seq` is that of the last delta."""

    __slots__ = ("_finish_reason", "_first", "_model", "_started", "_usage", "id", "seq", "state")

    def __init__(self, generation_id: str, model: str, now: float) -> None:
        self.id = generation_id
        self.seq = 0
        self.state = State.WAITING
        self._model = model
        self._started = now
        self._first: float | None = None
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None

    def accept(self, chunks: Iterable[Chunk], now: float) -> list[Delta]:
        """Take what the upstream said; return the deltas worth a frame. The last of them has the seq `self.seq`.

        Raises IllegalTransitionError after the end.
        """
        deltas = []
        for chunk in chunks:
            delta = chunk.delta
            if delta and ((len(delta) == 1 and delta.get("content")) or (delta := substance(delta))):
                deltas.append(delta)
            if chunk.finish_reason:
                self._finish_reason = chunk.finish_reason
            if chunk.usage:
                self._usage = chunk.usage
            if chunk.model:
                self._model = chunk.model
        if deltas:
            if self.state is not State.STREAMING:
                self._move(Event.DELTA)
            self.seq += len(deltas)
            if self._first is None:
                self._first = now
        return deltas

    def finish(self, now: float) -> Terminal:
        """Take the end of the upstream's stream: complete with a finish_reason, failed without one."""
        if self._finish_reason is None:
            message = "The upstream's answer broke off before it was complete."
            return self.fail(ErrorInfo("upstream_incomplete", message))
        self._move(Event.FINISH)
        return self._done("completed", now)

    def cancel(self, now: float) -> Done:
        """Take a cancel: what was said so far is the answer."""
        self._move(Event.CANCEL)
        return self._done("cancelled", now)

    def fail(self, error: ErrorInfo) -> Failed:
        """Take a failure: what was said so far stays said."""
        self._move(Event.FAIL)
        return Failed(self.id, self.seq + 1, error)

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalTransitionError(f"{event.value} of a generation that is {self.state.value}") from None

    def _done(self, status: str, now: float) -> Done:
        return Done(
            id=self.id,
            seq=self.seq + 1,
            status=status,
            finish_reason=self._finish_reason,
            model=self._model,
            usage=self._usage,
            ttft_ms=None if self._first is None else _milliseconds(self._first - self._started),
            total_ms=_milliseconds(now - self._started),
        )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
