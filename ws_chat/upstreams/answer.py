"""One streamed chat completion (the OpenAI reference): the bytes of a response body becoming chunks. Pure.

Servers differ in what they send besides: empty and choice-less chunks, comments, no `[DONE]`, an error object in
mid-stream. All of it has its answer here; what is not the protocol at all raises.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json, to_json

from ws_chat.deltas import Chunk
from ws_chat.errors import ChatError
from ws_chat.event_stream import Splitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.upstreams.base import Emit

MESSAGE_LIMIT: Final = 1000
"""Characters of an upstream's own message that are passed on."""


class Answer:
    """One answer: bytes in, chunks to `emit`, those of one read together."""

    __slots__ = ("_emit", "_mask", "_splitter", "done", "finished")

    def __init__(self, emit: Emit, mask: Callable[[str], str]) -> None:
        self._emit = emit
        self._mask = mask
        self._splitter = Splitter()
        self.finished = False  # a finish_reason has come
        self.done = False  # [DONE] has come

    def feed(self, read: bytes) -> bool:
        """Take one read; return whether that was all: [DONE] has come.

        Raises ChatError and NotAnEventStreamError, after what came before the fault was emitted.
        """
        self._take(self._splitter.feed(read))
        return self.done

    def end(self) -> None:
        """Take the end of the stream. An event that was cut off in its middle was never sent."""
        if self.done:
            return
        whole = []
        for data in self._splitter.end():
            with contextlib.suppress(ValueError):
                from_json(data)
                whole.append(data)
        self._take(whole)

    def _take(self, events: Sequence[bytes]) -> None:
        chunks: list[Chunk] = []
        try:
            for data in events:
                if data == b"[DONE]":
                    self.done = True
                    return
                if data:
                    chunks.append(self._chunk(data))
        finally:
            # What came before an error in the same read was said, and is relayed.
            if chunks:
                self._emit(chunks)

    def _chunk(self, data: bytes) -> Chunk:
        try:
            value = from_json(data, allow_inf_nan=False)
        except ValueError:
            raise ChatError("upstream_malformed", "The upstream sent an event that is not JSON.") from None
        if not isinstance(value, dict):
            raise _not_a_chunk()
        if value.get("error"):
            message = error_message(value) or "The upstream reported an error."
            raise ChatError("upstream_unavailable", self._mask(message))
        usage, model = value.get("usage"), value.get("model")
        delta, finish_reason = _choice(value.get("choices") or [])
        if finish_reason:
            self.finished = True
        return Chunk(
            delta,
            finish_reason,
            usage if isinstance(usage, dict) else None,
            model if isinstance(model, str) else None,
        )


def _choice(choices: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return the delta, with its logprobs, and the finish_reason of the one choice that was asked for."""
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _not_a_chunk()
    for choice in choices:
        if choice.get("index", 0) == 0:
            break
    else:
        return None, None
    delta, finish_reason, logprobs = choice.get("delta"), choice.get("finish_reason"), choice.get("logprobs")
    if not isinstance(delta, dict | None) or not isinstance(finish_reason, str | None):
        raise _not_a_chunk()
    if isinstance(logprobs, dict) and any(logprobs.values()):
        delta = {**(delta or {}), "logprobs": logprobs}
    return delta, finish_reason


def _not_a_chunk() -> ChatError:
    return ChatError("upstream_malformed", "The upstream sent an event that is no chat completion chunk.")


def error_message(body: object) -> str | None:
    """Find the message in an error body: OpenAI's, a bare one, FastAPI's `detail`, or plain text."""
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    if isinstance(body, list):
        body = to_json(body).decode()
    if isinstance(body, str) and body.strip() and not body.lstrip().startswith("<"):
        return body.strip()[:MESSAGE_LIMIT]
    return None
