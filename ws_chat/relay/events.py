"""Events for observers: frozen values, a few for each connection, reader and generation.

None per token: tokens are counted when a reader or a generation ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("ws_chat.observe")


class ConnectionOpened(msgspec.Struct, frozen=True):
    """A connection was accepted over a transport: `websocket` or `sse`."""

    transport: str


class ConnectionClosed(msgspec.Struct, frozen=True):
    """A connection ended. `sent`: bytes of its frames; `dropped`: its peer read nothing, or answered no ping."""

    transport: str
    sent: int
    dropped: bool


class RequestRefused(msgspec.Struct, frozen=True):
    """A connection, request or client frame was refused."""

    transport: str
    code: str


class LimitReached(msgspec.Struct, frozen=True):
    """A limit had an effect: one of LIMITS."""

    limit: str


LIMITS: Final = (
    "max_frame_bytes",
    "max_connections",
    "max_generations",
    "max_generations_per_connection",
    "max_generations_per_principal",
    "requests_per_minute",
    "free_requests_per_minute",
    "max_answer_bytes",
    "values",
    "kept_bytes",
    "head_bytes",
    "request_seconds",
    "open_files",
)


class GenerationStarted(msgspec.Struct, frozen=True):
    """A generation was started."""

    transport: str


class GenerationEnded(msgspec.Struct, frozen=True):
    """A generation ended. Times are seconds, `size` the bytes of its deltas as JSON.

    `status` is `completed`, `cancelled` or `failed`; `code` is that of the error. `content` returns the messages of the
    conversation, which are private: use it only where the operator has allowed that.
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
    """An existing generation is read from after the seq `after`."""

    transport: str
    after: int


class ReadingEnded(msgspec.Struct, frozen=True):
    """A reader received the terminal frame, or disconnected. Fewer token frames than deltas: some were merged."""

    transport: str
    deltas: int
    frames: int


Event: TypeAlias = (
    ConnectionOpened
    | ConnectionClosed
    | RequestRefused
    | LimitReached
    | GenerationStarted
    | GenerationEnded
    | Followed
    | ReadingEnded
)


class Observer(Protocol):
    """Receives events synchronously: it must not block."""

    def __call__(self, event: Event) -> None: ...


class Observers:
    """Passes events to several observers. An exception of one is logged, and does not affect the others."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __call__(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("An observer failed at %s", type(event).__name__)
