"""Makes the terminal frame of an answer. Pure: no task, no store; times are passed in.

An answer is complete if the upstream sent a finish_reason; if the stream ends without one, the generation fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ws_chat.protocol.deltas import Outcome
from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed

if TYPE_CHECKING:
    from ws_chat.protocol.frames import Terminal


class Generation:
    """An answer being produced. Times are seconds of any one clock; `outcome` is filled in by the upstream."""

    __slots__ = ("_model", "_started", "first", "id", "outcome", "total")

    def __init__(self, generation_id: str, model: str, now: float) -> None:
        self.id = generation_id
        self.outcome = Outcome()
        self._model = model
        self._started = now
        self.first: float | None = None
        """Seconds to the first delta."""
        self.total = 0.0
        """Seconds to the end."""

    @property
    def model(self) -> str:
        """The model that the upstream named, or else the requested one."""
        return self.outcome.model or self._model

    def record_first_delta(self, now: float) -> None:
        self.first = now - self._started

    def finish(self, last: int, now: float) -> Terminal:
        """Return the terminal frame after the end of the upstream's stream. `last` is the seq of the last delta."""
        if self.outcome.finish_reason is None:
            message = "The upstream's answer ended before it was complete."
            return self.fail(last, ErrorInfo.of("upstream_incomplete", message), now)
        return self._done("completed", last, now)

    def cancel(self, last: int, now: float) -> Done:
        return self._done("cancelled", last, now)

    def fail(self, last: int, error: ErrorInfo, now: float) -> Failed:
        self.total = now - self._started
        return Failed(self.id, last + 1, error)

    def _done(self, status: Literal["completed", "cancelled"], last: int, now: float) -> Done:
        self.total = now - self._started
        return Done(
            id=self.id,
            seq=last + 1,
            status=status,
            finish_reason=self.outcome.finish_reason,
            model=self.model,
            usage=self.outcome.usage,
            timing={
                "ttft_ms": None if self.first is None else _milliseconds(self.first),
                "total_ms": _milliseconds(self.total),
            },
        )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
