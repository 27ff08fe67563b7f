"""What a generation was asked, kept beside its log: to know the same request again, and to continue from its answer.

Pure functions over JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Chat
    from ws_chat.stores.base import Log

Message = dict[str, Any]


class Asked(msgspec.Struct):
    """A request as it was given, and the messages that its `previous_id` put in front."""

    given: dict[str, Any]
    before: list[Any]


def write(chat: Chat, before: Sequence[Any]) -> bytes:
    """Return what is kept of a request."""
    return msgspec.json.encode({"given": _given(chat), "before": before})


def is_same(request: bytes, chat: Chat) -> bool:
    """Whether a chat asks for what a kept request asked for: equal as JSON values."""
    return _equal(_read(request).given, msgspec.json.decode(msgspec.json.encode(_given(chat))))


def conversation(request: bytes, deltas: Sequence[Delta]) -> list[Any]:
    """Return the messages of a kept request, those before it, and what `deltas` said as the assistant's message."""
    asked = _read(request)
    answer = said(deltas)
    return [*asked.before, *asked.given["messages"], *([answer] if answer else [])]


def conversation_of(log: Log) -> list[Any]:
    """Return the messages of a log, as far as it has come."""
    deltas: list[Delta] = []
    while part := log.after(len(deltas), log.last):
        deltas += part
    return conversation(log.request, deltas)


def said(deltas: Sequence[Delta]) -> Message | None:
    """Return deltas as one assistant message (text and tool calls), None when there is nothing in them."""
    texts: list[str] = []
    calls: list[_Call] = []
    open_calls: dict[Any, _Call] = {}  # by index: the last one that was begun under it
    for delta in deltas:
        content, pieces = delta.get("content"), delta.get("tool_calls")
        if isinstance(content, str):
            texts.append(content)
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                index = piece.get("index")
                call = open_calls.get(index) if isinstance(index, int) else None
                if call is None or not call.add(piece):
                    calls.append(_Call(piece))
                    if isinstance(index, int):
                        open_calls[index] = calls[-1]
    text = "".join(texts)
    if not (text or calls):
        return None
    message: Message = {"role": "assistant", "content": text or None}
    return {**message, "tool_calls": [call.result() for call in calls]} if calls else message


class _Call:
    """A tool call being joined from its pieces (the OpenAI streaming reference)."""

    def __init__(self, piece: dict[str, Any]) -> None:
        self._fields: dict[str, Any] = {}
        self._function: dict[str, Any] = {}
        self._arguments: list[str] = []
        self.add(piece)

    def add(self, piece: dict[str, Any]) -> bool:
        """Join one more piece; False when it is of another call."""
        known, given = self._fields.get("id"), piece.get("id")
        if known and given and known != given:
            return False
        # What is given once may be repeated, or sent empty; `index` is of the stream's business only.
        self._fields |= {key: value for key, value in piece.items() if value and key not in {"index", "function"}}
        function = piece.get("function")
        if isinstance(function, dict):
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                self._arguments.append(arguments)
            self._function |= {key: value for key, value in function.items() if value and key != "arguments"}
        return True

    def result(self) -> dict[str, Any]:
        """Return the call as a message has it."""
        if self._function or self._arguments:
            return {**self._fields, "function": {**self._function, "arguments": "".join(self._arguments)}}
        return self._fields


def _given(chat: Chat) -> dict[str, Any]:
    given = dict(chat.body)
    if chat.model is not None:
        given["model"] = chat.model
    if chat.previous_id is not None:
        given["previous_id"] = chat.previous_id
    return given


def _read(request: bytes) -> Asked:
    return msgspec.json.decode(request, type=Asked)


def _equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: for Python, True is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
