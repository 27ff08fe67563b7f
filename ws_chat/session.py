"""One connection's conversation with us: a frame in, a decision out. Pure: it sends nothing and starts nothing.

It knows which generations are the connection's own and whether there is room for another; the door that asked carries
out what it decided.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from ws_chat.errors import ChatError
from ws_chat.frames import Cancel, Chat, Ping, Pong, ServerFrame

if TYPE_CHECKING:
    from collections.abc import Callable

    from ws_chat.frames import ClientFrame

REMEMBERED: Final = 128
"""How many ended generations of a connection are still known: a cancel that crosses the done frame is no error."""


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Start `chat` as the generation `id`, and follow it."""

    id: str
    chat: Chat


@dataclass(frozen=True, slots=True)
class CancelGeneration:
    """Cancel the generation `id`."""

    id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Send one frame."""

    frame: ServerFrame


Action: TypeAlias = StartGeneration | CancelGeneration | Reply


class Session:
    """One connection's generations: at most `limit` running at once, named by `new_id` (random and unguessable)."""

    __slots__ = ("_ended", "_limit", "_new_id", "_running")

    def __init__(self, *, limit: int, new_id: Callable[[], str]) -> None:
        self._limit = limit
        self._new_id = new_id
        self._running: set[str] = set()
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    def receive(self, frame: ClientFrame) -> Action | None:
        """Decide what a frame asks for; None when nothing is to be done.

        Raises ChatError (`invalid_request`, `not_found`, `too_many_generations`), with nothing changed.
        """
        match frame:
            case Chat():
                return self._chat(frame)
            case Cancel():
                return self._cancel(frame.id)
            case Ping():
                return Reply(Pong())
        raise ChatError("invalid_request", "Resuming a generation is not available yet.", param="id")

    def ended(self, generation_id: str) -> None:
        """Take note that a generation's terminal frame is out, or that it was never started."""
        self._running.remove(generation_id)
        self._ended.append(generation_id)

    def _chat(self, chat: Chat) -> StartGeneration:
        if chat.id is not None:
            raise ChatError("invalid_request", 'Naming a generation is not available yet: leave "id" out.', param="id")
        if chat.previous_id is not None:
            raise ChatError("invalid_request", "Continuing a generation is not available yet.", param="previous_id")
        if len(self._running) >= self._limit:
            raise ChatError("too_many_generations", f"At most {self._limit} generations run at once on a connection.")
        generation_id = self._new_id()
        self._running.add(generation_id)
        return StartGeneration(generation_id, chat)

    def _cancel(self, generation_id: str | None) -> CancelGeneration | None:
        if generation_id is None:
            if len(self._running) != 1:
                raise ChatError(
                    "invalid_request",
                    f"{len(self._running)} generations are running on this connection: say which one.",
                    param="id",
                )
            (generation_id,) = self._running
        if generation_id in self._running:
            return CancelGeneration(generation_id)
        if generation_id in self._ended:
            return None
        raise ChatError("not_found", "There is no such generation.", param="id")
