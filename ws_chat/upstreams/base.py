"""The interface of upstreams, which produce answers. docs/embedding.md shows one in ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ws_chat.protocol.deltas import Delta, Fields, Outcome

Emit: TypeAlias = "Callable[[Sequence[Fields | Delta]], None]"
"""Appends deltas to the log, in order; those of one call may be sent in one frame. It never blocks.

Fields are stripped and encoded (`encode_delta`); bytes are logged as they are. Raises ChatError (`upstream_malformed`) when
the answer becomes too large."""


class Request(Mapping[str, Any]):
    """The body of a chat-completions request. A field is decoded when it is looked up: `raw` has them as JSON."""

    __slots__ = ("_decoded", "raw")

    def __init__(self, raw: Mapping[str, Any]) -> None:
        """`raw` may also have values that are no JSON."""
        self.raw = raw
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            value = self.raw[key]
            self._decoded[key] = msgspec.json.decode(value) if type(value) is Raw else value
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


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
