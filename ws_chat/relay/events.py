"""What happened, told once: frozen events, and whoever wants to know. Knows nobody who listens.

Events are told per connection, reader and generation, never per token: what is known at an end costs a token nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("ws_chat.observe")


class ConnectionOpened(msgspec.Struct, frozen=True):
    """A connection was accepted over a transport: `websocket` or `sse`."""

    transport: str


class ConnectionClosed(msgspec.Struct, frozen=True):
    """It is over. `sent` counts the bytes of its frames; `dropped`: its peer took nothing, or answered no ping."""

    transport: str
    sent: int
    dropped: bool


class Refused(msgspec.Struct, frozen=True):
    """A connection, request or client frame was refused."""

    transport: str
    code: str


class GenerationStarted(msgspec.Struct, frozen=True):
    """A generation was started."""

    transport: str


class GenerationEnded(msgspec.Struct, frozen=True):
    """A generation has its terminal frame. Times are seconds, `size` the bytes of its deltas as JSON.

    `status` is `completed`, `cancelled` or `failed`, then with the error's `code`. `content` returns the messages that
    were asked and answered: for nobody but whom the operator allows it.
    """

    transport: str
    id: str
    principal: str
    named: bool
    requested_model: str
    model: str
    status: str
    code: str | None
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    deltas: int
    size: int
    first: float | None
    total: float
    content: Callable[[], Sequence[Any]]


class Followed(msgspec.Struct, frozen=True):
    """Somebody began to read a generation that was there already, from after the seq `after`."""

    transport: str
    after: int


class ReadingEnded(msgspec.Struct, frozen=True):
    """A reader has got the terminal frame, or has gone. Fewer token frames than deltas: some were merged."""

    transport: str
    deltas: int
    frames: int


Event: TypeAlias = (
    ConnectionOpened | ConnectionClosed | Refused | GenerationStarted | GenerationEnded | Followed | ReadingEnded
)


class Observer(Protocol):
    """Is told what happened, at once and synchronously: it must not block."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""


class Observers:
    """Tells several. What one of them raises is logged, and nobody else's business."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __call__(self, event: Event) -> None:
        """Tell all of them."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("An observer failed at %s", type(event).__name__)
