"""The session of one connection: a frame in, a decision out. Pure: it sends nothing and starts nothing.

It knows which generations the connection follows, and limits their number. The transport carries out the decisions and
reports the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import Cancel, Chat, Pong, Position, Resume, ServerFrame

if TYPE_CHECKING:
    from collections.abc import Callable

    from ws_chat.protocol.frames import ClientFrame


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Start `chat` as the generation `id`, or find the one that it started before, and follow it from its start."""

    id: str
    chat: Chat


@dataclass(frozen=True, slots=True)
class FollowGeneration:
    """Follow the named generation `id` from after a position."""

    id: str
    position: Position


@dataclass(frozen=True, slots=True)
class CancelGeneration:
    """Cancel the generation `id`; a named one may be followed by another connection."""

    id: str


@dataclass(frozen=True, slots=True)
class SendFrame:
    frame: ServerFrame


Action: TypeAlias = StartGeneration | FollowGeneration | CancelGeneration | SendFrame


class Session:
    """One connection's generations: at most `limit` followed at once. `new_id` returns a random, unguessable id."""

    __slots__ = ("_following", "_limit", "_new_id")

    def __init__(self, *, limit: int, new_id: Callable[[], str]) -> None:
        self._limit = limit
        self._new_id = new_id
        self._following: dict[str, bool] = {}  # ids, and whether they are named

    def receive(self, frame: ClientFrame) -> Action:
        """Return the action for a frame. Changes nothing.

        Raises ChatError (`invalid_request`, `id_conflict`, `too_many_generations`).
        """
        match frame:
            case Chat():
                return self._chat(frame)
            case Resume():
                if self._following.get(frame.id) is False:
                    raise ChatError("not_found", "There is no such generation.", param="id")
                self._check_room(frame.id)
                return FollowGeneration(frame.id, frame.position)
            case Cancel():
                return self._cancel(frame.id or None)
        return SendFrame(Pong(frame.id))

    def follows(self, generation_id: str, *, named: bool) -> None:
        self._following[generation_id] = named

    def ended(self, generation_id: str) -> None:
        """Record that the terminal frame of a followed generation has been sent."""
        self._following.pop(generation_id, None)

    def _chat(self, chat: Chat) -> StartGeneration:
        generation_id = chat.id or self._new_id()
        if self._following.get(generation_id) is False:
            # The frames of two generations with one id could not be distinguished.
            raise ChatError("id_conflict", "This id is used by an unnamed generation on this connection.", param="id")
        self._check_room(generation_id, chat.previous_id)
        return StartGeneration(generation_id, chat)

    def _check_room(self, *leaving: str | None) -> None:
        # A generation that is followed already only gets a new position; an interrupted one is replaced.
        if len(self._following.keys() - set(leaving)) >= self._limit:
            message = f"At most {self._limit} generations may run at once on a connection."
            raise ChatError("too_many_generations", message, limit="max_generations_per_connection")

    def _cancel(self, generation_id: str | None) -> CancelGeneration:
        if generation_id is None:
            if len(self._following) != 1:
                message = f"{len(self._following)} generations run on this connection: name one by its id."
                raise ChatError("invalid_request", message, param="id")
            (generation_id,) = self._following
        return CancelGeneration(generation_id)
