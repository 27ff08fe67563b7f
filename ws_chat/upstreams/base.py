"""The seam to whatever produces answers. docs/embedding.md has one in ten lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ws_chat.protocol.deltas import Delta, Outcome

Emit: TypeAlias = "Callable[[Sequence[Delta]], None]"
"""Takes deltas in order, as they arrive; those of one call may leave in one frame. It never blocks."""


class Upstream(Protocol):
    """Produces answers."""

    def resolve(self, model: str | None) -> str:
        """Return the model that will answer a request which names `model`, or none."""

    async def generate(self, request: Mapping[str, Any], emit: Emit, outcome: Outcome) -> None:
        """Produce one answer: give each delta to `emit` the moment it arrives, and return when the stream has ended.

        `request` is the body of a chat-completions request (the OpenAI reference), `model` set. Only what `substance`
        leaves of a delta is emitted, and only if that is something; what else is known goes into `outcome` at once. An
        answer is complete only with a `finish_reason`. Being cancelled closes whatever is open before it returns.

        Raises ChatError (an `upstream_…` code) when the answer failed.
        """

    async def close(self) -> None:
        """Let go of what all requests share."""
