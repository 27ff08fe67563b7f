"""What a generation was asked, kept beside its log: to know the same request again, and to continue from its answer.

Pure functions over JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ws_chat.deltas import merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.deltas import Delta
    from ws_chat.frames import Chat
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
    text = ""
    calls: list[dict[str, Any]] = []
    while deltas:
        joined, count = merge(deltas)
        deltas = deltas[count:]
        content = joined.get("content")
        text += content if isinstance(content, str) else ""
        calls += _calls(joined.get("tool_calls"))
    if not (text or calls):
        return None
    message: Message = {"role": "assistant", "content": text or None}
    return {**message, "tool_calls": calls} if calls else message


def _calls(pieces: Any) -> list[dict[str, Any]]:
    """Return tool calls as a message has them: without the `index` that only a stream needs."""
    if not isinstance(pieces, list):
        return []
    calls = [call for call in pieces if isinstance(call, dict)]
    return [{key: value for key, value in call.items() if key != "index"} for call in calls]


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
