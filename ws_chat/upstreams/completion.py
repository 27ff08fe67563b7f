"""One streamed chat completion (the OpenAI reference): the bytes of a response body becoming deltas. Pure.

Servers differ in what they send besides: empty and choice-less chunks, comments, no `[DONE]`, an error object in
mid-stream. All of it has its answer here; what is not the protocol at all raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic_core import from_json

from ws_chat.protocol.deltas import substance
from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.sse import Splitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta, Outcome
    from ws_chat.upstreams.base import Emit

MESSAGE_LIMIT: Final = 1000
"""Characters of an upstream's own message that are passed on."""
_LF: Final = 10
DEEP: Final = 150
"""An event with more opening brackets than this may be nested too deeply to be encoded again."""


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Event(msgspec.Struct, gc=False):
    """What is of use in a chat completion chunk, and in what stands in its place when something went wrong."""

    choices: list[_Choice] | None = None
    usage: Any = None
    model: Any = None
    error: Any = None
    object: Any = None
    message: Any = None


_decode: Final = msgspec.json.Decoder(_Event).decode


class Answer:
    """One answer: bytes in, deltas to `emit`, those of one read together, and all else into `outcome`.

    `on_more`, where it is set, is called after every read that leaves it finished and not done.
    """

    __slots__ = ("_emit", "_mask", "_outcome", "_splitter", "done", "finished", "on_more")

    def __init__(self, emit: Emit, outcome: Outcome, mask: Callable[[str], str]) -> None:
        self._emit = emit
        self._outcome = outcome
        self._mask = mask
        self._splitter = Splitter()
        self.finished = False  # a finish_reason has come
        self.done = False  # [DONE] has come
        self.on_more: Callable[[], None] | None = None

    def feed(self, read: bytes) -> bool:
        """Take one read; return whether that was all: [DONE] has come.

        Raises ChatError, and NotAnEventStreamError, after what came before the fault was emitted.
        """
        # One whole event, as in nearly every read of an answer that is being typed, needs no splitting.
        if (
            self._splitter.between
            and read.startswith(b"data: {")
            and read.find(b"\n") == len(read) - 2
            and read[-1] == _LF
            and b"\r" not in read
        ):
            if delta := self._delta(read[6:-2]):
                self._emit((delta,))
        else:
            self._take(self._splitter.feed(read))
        if self.finished and not self.done and self.on_more:
            self.on_more()
        return self.done

    def end(self) -> None:
        """Take the end of the stream. An event that was cut off in its middle was never sent.

        Raises ChatError and NotAnEventStreamError.
        """
        if not self.done:
            self._take([data for data in self._splitter.end() if _is_whole(data)])

    def _take(self, events: Sequence[bytes]) -> None:
        deltas: list[Delta] = []
        try:
            for data in events:
                if not data.startswith(b"{"):
                    data = data.strip()
                    if data == b"[DONE]":
                        self.done = True
                        return
                    if not data:
                        continue
                if delta := self._delta(data):
                    deltas.append(delta)
        finally:
            # What came before an error in the same read was said, and is relayed.
            if deltas:
                self._emit(deltas)

    def _delta(self, data: bytes) -> Delta | None:
        """Return what is worth sending of an event's delta, if there is something, and note the rest."""
        try:
            event = _decode(data)
            if len(data) > 2 * DEEP and data.count(b"[") + data.count(b"{") > DEEP:
                from_json(data)  # refuses deep nesting
        except msgspec.ValidationError:
            raise ChatError("upstream_malformed", "The upstream sent an event that is no chat completion.") from None
        except (ValueError, RecursionError):
            raise ChatError("upstream_malformed", "The upstream sent an event that is not JSON.") from None
        if event.error or event.object == "error":
            message = error_message(event.error or event.message, self._mask)
            raise ChatError("upstream_unavailable", message or "The upstream reported an error.")
        outcome = self._outcome
        if type(event.model) is str and event.model:
            outcome.model = event.model
        if event.usage and type(event.usage) is dict:
            outcome.usage = event.usage
        for choice in event.choices or ():
            if not choice.index:
                if choice.finish_reason:
                    outcome.finish_reason = choice.finish_reason
                    self.finished = True
                delta = _with_logprobs(choice) if choice.logprobs else choice.delta
                if not delta or (len(delta) == 1 and delta.get("content")):
                    return delta  # as nearly always, and as `substance` would
                return substance(delta)
        return None


def _with_logprobs(choice: _Choice) -> Delta | None:
    if isinstance(choice.logprobs, dict) and any(choice.logprobs.values()):
        return {**(choice.delta or {}), "logprobs": choice.logprobs}
    return choice.delta


def _is_whole(data: bytes) -> bool:
    try:
        return data.strip() == b"[DONE]" or from_json(data) is not None
    except ValueError:
        return False


def error_message(body: object, mask: Callable[[str], str]) -> str | None:
    """Find the message in an error body (OpenAI's, a bare one, FastAPI's `detail`, or plain text), masked.

    The SDK's parser lets through what no JSON can hold, such as half a surrogate pair: that is replaced.
    """
    while isinstance(body, dict | list):
        if isinstance(body, list):
            body = body[0] if body else None
        else:
            body = body.get("error") or body.get("message") or body.get("msg") or body.get("detail")
    if not isinstance(body, str) or not body.strip() or body.lstrip().startswith("<"):
        return None
    message = body.strip()
    if len(message) > 2 * MESSAGE_LIMIT:
        # Cut between words: a key that is cut in two is no longer recognised.
        message = message[: 2 * MESSAGE_LIMIT].rpartition(" ")[0]
    return mask(message).encode(errors="replace").decode()[:MESSAGE_LIMIT] or None
