"""The interface of upstreams, which produce answers. docs/embedding.md shows one in ten lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ws_chat.protocol.deltas import Delta, Fields, Outcome

Emit: TypeAlias = "Callable[[Sequence[Fields | Delta]], None]"
"""Appends deltas to the log, in order; those of one call may be sent in one frame. It never blocks.

Fields are stripped and encoded (`encode_delta`); bytes are logged as they are. Raises ChatError (`upstream_malformed`) when
the answer becomes too large."""


class Upstream(Protocol):
    def resolve(self, model: str | None) -> str:
        """Return the model that answers a request for `model`, which is None if the request names none."""

    async def generate(self, request: Mapping[str, Any], emit: Emit, outcome: Outcome) -> None:
        """Produce one answer: pass each delta to `emit` the moment it arrives, and return at the end of the stream.

        `request` is the body of a chat-completions request (the OpenAI reference) with `model` set. `outcome` is filled in
        as soon as its fields are known; without a `finish_reason` the answer is incomplete. When cancelled, close what is
        open, then return.

        Raises ChatError (an `upstream_…` code) when the answer failed.
        """

    async def close(self) -> None:
        """Close the resources that requests share."""
