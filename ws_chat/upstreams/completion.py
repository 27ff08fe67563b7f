"""The parser of a streamed chat completion (the OpenAI reference): a response body in, deltas out. Pure.

Compatible servers differ in details: chunks without choices or with an empty delta, comments, no `[DONE]`, an error
object in mid-stream. All of these are accepted here; anything else raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from pydantic_core import from_json

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import check_depth
from ws_chat.protocol.sse import SSEDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.deltas import Delta, Outcome
    from ws_chat.upstreams.base import Emit

MESSAGE_LIMIT: Final = 1000
"""Characters of an upstream's message that are passed on."""
NAME_LIMIT: Final = 256
"""Characters of a model or finish_reason of an upstream. They are logged, and sent in each terminal frame."""
USAGE_LIMIT: Final = 64 * 1024
"""Bytes of an event with usage, which is sent in the terminal frame."""
VALUES_LIMIT: Final = 100_000
"""Values inside an event, roughly: 15 MB of `[],[],…` would take a second, and a gigabyte."""
LARGE_EVENT: Final = 16 * 1024
"""Bytes of an event from which its values are counted."""
_LF: Final = 10
_CR: Final = 13


class _Text(msgspec.Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """A delta of nothing but text."""

    role: Any = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _Text
    index: Literal[0] = 0
    finish_reason: str | None = None
    logprobs: None = None


class _TextEvent(msgspec.Struct, gc=False):
    """What nearly all chunks are, decoded without a dict: one choice, whose delta is text, and no usage."""

    choices: tuple[_TextChoice]
    usage: None = None
    model: Annotated[str, msgspec.Meta(max_length=NAME_LIMIT)] | None = None
    error: None = None
    object: Literal["chat.completion.chunk"] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Event(msgspec.Struct, gc=False):
    """A chat completion chunk, or the error object in its place: the fields that are used."""

    choices: list[_Choice] | None = None
    usage: Any = None
    model: Any = None
    error: Any = None
    object: Any = None
    message: Any = None


_decode_text: Final = msgspec.json.Decoder(_TextEvent).decode
_decode: Final = msgspec.json.Decoder(_Event).decode
_encode: Final = msgspec.json.Encoder().encode


class CompletionParser:
    """The parser of one streamed completion: deltas go to `emit`, those of one read together, the rest to `outcome`.

    `mask` masks the operator's secrets in a message of the upstream. `on_tail`, if set, is called at the finish_reason, and
    after each read with deltas that comes between it and [DONE] (comments are no reason to wait longer).
    """

    __slots__ = ("_decoder", "_emit", "_in_tail", "_mask", "_outcome", "done", "finished", "on_tail")

    def __init__(self, emit: Emit, outcome: Outcome, mask: Callable[[str], str]) -> None:
        self._emit = emit
        self._outcome = outcome
        self._mask = mask
        self._decoder = SSEDecoder()
        self.finished = False  # the finish_reason was received
        self.done = False  # [DONE] was received
        self._in_tail = False  # `on_tail` was called, and no delta came after it
        self.on_tail: Callable[[], None] | None = None

    def feed(self, read: bytes) -> bool:
        """Parse one read; return whether [DONE] was received.

        Raises ChatError and NotAnEventStreamError, after emitting the deltas before the fault.
        """
        # At a typing pace nearly every read is one whole event, for which the decoder is not needed.
        data = read[6:-2]
        if (
            self._decoder.between
            and _LF not in data  # ten times faster than a search for bytes
            and _CR not in data
            and read[:7] == b"data: {"
            and read[-2:] == b"\n\n"
        ):
            if delta := self._parse(data):
                self._emit((delta,))
                self._in_tail = False
        else:
            self._parse_all(self._decoder.feed(read))
        if self.finished and not (self._in_tail or self.done):
            self._in_tail = True
            if self.on_tail:
                self.on_tail()
        return self.done

    def end(self) -> None:
        """Parse the rest at the end of the stream, except for an event that was cut off.

        Raises ChatError and NotAnEventStreamError.
        """
        if not self.done:
            self._parse_all([data for data in self._decoder.end() if _is_whole(data)])

    def _parse_all(self, events: Sequence[bytes]) -> None:
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
                if delta := self._parse(data):
                    deltas.append(delta)
        finally:
            if deltas:
                self._emit(deltas)
                self._in_tail = False

    def _parse(self, data: bytes) -> Delta | None:
        """Return an event's delta without its empty fields, and record the rest."""
        if len(data) > LARGE_EVENT and sum(map(data.count, (b",", b"[", b"{"))) > VALUES_LIMIT:
            raise ChatError("upstream_malformed", f"The upstream sent an event of more than {VALUES_LIMIT} values.")
        try:
            event = _decode_text(data)
        except (ValueError, RecursionError):
            return self._parse_any(data)
        if event.model:
            self._outcome.model = event.model
        (choice,) = event.choices
        if choice.finish_reason:
            self._finish(choice.finish_reason)
        delta = choice.delta
        if delta.content and delta.role is delta.reasoning_content is delta.reasoning is delta.refusal is None:
            return _encode(delta)
        return encode_delta(msgspec.structs.asdict(delta))

    def _parse_any(self, data: bytes) -> Delta | None:
        try:
            event = _decode(data)
            check_depth(data)
        except msgspec.ValidationError:
            raise ChatError("upstream_malformed", "The upstream sent an event that is not a chat completion.") from None
        except (ValueError, RecursionError):
            raise ChatError("upstream_malformed", "The upstream sent an event that is not JSON.") from None
        if event.error or event.object == "error":
            message = error_message(event.error or event.message, self._mask)
            raise ChatError("upstream_unavailable", message or "The upstream reported an error.")
        outcome = self._outcome
        if type(event.model) is str and event.model:
            outcome.model = event.model[:NAME_LIMIT]
        if event.usage and type(event.usage) is dict:
            if len(data) > USAGE_LIMIT and len(msgspec.json.encode(event.usage)) > USAGE_LIMIT:
                raise ChatError("upstream_malformed", f"The upstream's usage has more than {USAGE_LIMIT} bytes.")
            outcome.usage = event.usage
        for choice in event.choices or ():
            if not choice.index:
                if choice.finish_reason:
                    self._finish(choice.finish_reason)
                fields = choice.delta or {}
                if isinstance(choice.logprobs, dict) and any(choice.logprobs.values()):
                    fields["logprobs"] = choice.logprobs
                return encode_delta(fields)
        return None

    def _finish(self, reason: str) -> None:
        self._outcome.finish_reason = reason[:NAME_LIMIT]
        self.finished = True


def _is_whole(data: bytes) -> bool:
    try:
        return data.strip() == b"[DONE]" or from_json(data) is not None
    except ValueError:
        return False


def error_message(body: object, mask: Callable[[str], str]) -> str | None:
    """Return the masked message of an error body (OpenAI's, a bare one, FastAPI's `detail`, or plain text).

    Lone surrogates, which the SDK's parser lets through and no JSON can hold, are replaced.
    """
    while isinstance(body, dict | list):
        if isinstance(body, list):
            body = body[0] if body else None
        else:
            body = body.get("error") or body.get("message") or body.get("msg") or body.get("detail")
    if not isinstance(body, str) or not body.strip() or body.lstrip().startswith("<"):
        return None
    return shorten(body.strip(), mask).encode(errors="replace").decode() or None


def shorten(message: str, mask: Callable[[str], str]) -> str:
    """Return the first MESSAGE_LIMIT characters of a message, masked."""
    if len(message) > 2 * MESSAGE_LIMIT:
        # Cut between words: half a key would not be masked.
        message = message[: 2 * MESSAGE_LIMIT].rpartition(" ")[0]
    return mask(message)[:MESSAGE_LIMIT]
