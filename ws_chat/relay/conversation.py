"""Stored requests, beside the logs of their answers: to recognise an equal request, and to continue a conversation.

Pure functions over JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ws_chat.protocol.deltas import MERGE_LIMIT, ToolCalls, decode_delta, merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Chat
    from ws_chat.stores.base import Log


class StoredRequest(msgspec.Struct):
    """A request as the client sent it, and the messages that its `previous_id` put in front."""

    request: dict[str, Any]
    before: list[Any]


def encode_request(chat: Chat, before: Sequence[Any]) -> bytes:
    return msgspec.json.encode({"request": _request(chat), "before": before})


def is_same_request(stored: bytes, chat: Chat) -> bool:
    """Return whether a chat equals a stored request as JSON values."""
    return _equal(_decode(stored).request, msgspec.json.decode(msgspec.json.encode(_request(chat))))


def conversation(stored: bytes, deltas: Sequence[Delta]) -> list[Any]:
    """Return the messages before a stored request, its own, and its answer, joined from `deltas`."""
    request = _decode(stored)
    answer = assistant_message(deltas)
    return [*request.before, *request.request["messages"], *([answer] if answer else [])]


def conversation_of(log: Log) -> list[Any]:
    """Return the messages of a log's conversation, with its answer so far."""
    deltas = []
    seq = 0
    while part := log.after(seq, MERGE_LIMIT):
        delta, count = merge(part)
        deltas.append(delta)
        seq += count
    return conversation(log.request, deltas)


def assistant_message(deltas: Sequence[Delta]) -> dict[str, Any] | None:
    """Join deltas to one message (text and tool calls); None if it would be empty."""
    texts: list[str] = []
    calls = ToolCalls()
    for delta in map(decode_delta, deltas):
        if isinstance(content := delta.get("content"), str):
            texts.append(content)
        if isinstance(pieces := delta.get("tool_calls"), list):
            calls.add(pieces)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if tool_calls := [{key: call[key] for key in call if key != "index"} for call in calls.result()]:
        message["tool_calls"] = tool_calls
    return message if message["content"] or tool_calls else None


def _request(chat: Chat) -> dict[str, Any]:
    request = dict(chat.body)
    if chat.model is not None:
        request["model"] = chat.model
    if chat.previous_id is not None:
        request["previous_id"] = chat.previous_id
    return request


def _decode(stored: bytes) -> StoredRequest:
    return msgspec.json.decode(stored, type=StoredRequest)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal. (For Python's `==`, True is 1.)"""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
