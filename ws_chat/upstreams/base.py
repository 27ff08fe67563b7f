"""The seam to whatever produces answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ws_chat.deltas import Chunk

Emit: TypeAlias = "Callable[[Sequence[Chunk]], None]"
"""Takes chunks in order, as they arrive; those of one call may leave in one frame. It never blocks."""


class Upstream(Protocol):
    """Produces answers."""

    def resolve(self, model: str | None) -> str:
        """Return the model that will answer a request which names `model`, or none."""

    async def generate(self, request: Mapping[str, Any], emit: Emit) -> None:
        """Produce one answer: give each chunk to `emit` the moment it arrives, and return when the stream has ended.

        `request` is the body of a chat-completions request (the OpenAI reference), `model` set. Being cancelled
        closes whatever is open before it returns. An answer is complete only if a chunk had a `finish_reason`.

        Raises ChatError (an `upstream_…` code) when the answer failed.
        """

    async def close(self) -> None:
        """Let go of what all requests share."""
