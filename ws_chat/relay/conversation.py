"""The requests that are stored with logs: to recognise an equal request, and to continue a conversation.

A stored request consists of the digest of its chat, a line with its `echo` if it has one, and the messages of its
conversation as JSON: those that `previous_id` put in front, and its own. Messages are never decoded here. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ws_chat.protocol.deltas import ToolCalls, decode_delta
from ws_chat.protocol.frames import DIGEST_SIZE
from ws_chat.stores.base import head_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Chat


def encode_request(chat: Chat, before: bytes) -> bytes:
    """Return a stored request. `before`: the messages to put in front, as `conversation` returns them."""
    head = chat.digest.ljust(DIGEST_SIZE, b"\0") + (chat.echo + b"\n" if chat.echo else b"")
    return head + join_lists(before, bytes(chat.body["messages"]))


def is_same_request(stored: bytes, chat: Chat) -> bool:
    """Return whether a named chat equals a stored request as JSON values."""
    return stored[:DIGEST_SIZE] == chat.digest


def messages_of(stored: bytes) -> bytes:
    """Return the messages of a stored request, a JSON list. Empty if they were not kept: its answer never began."""
    return stored[len(head_of(stored)) :]


def echo_of(stored: bytes) -> bytes:
    """Return the `echo` of a stored request, which only Responses requests have; else empty."""
    return head_of(stored)[DIGEST_SIZE:-1]


def join_lists(one: bytes, other: bytes) -> bytes:
    """Join two JSON lists, each of which may be empty."""
    return one[:-1] + b"," + other[1:] if len(one) > 2 and len(other) > 2 else max(one, other, key=len)


def conversation(messages: bytes, answer: dict[str, Any] | None) -> bytes:
    """Return messages and the answer to them, a JSON list."""
    return join_lists(messages, msgspec.json.encode([answer])) if answer else messages


class Answer:
    """The message of an answer, joined from its deltas in any number of steps."""

    def __init__(self) -> None:
        self.size = 0
        """Characters of its text."""
        self._texts: list[str] = []
        self._calls = ToolCalls()

    def add(self, deltas: Sequence[Delta]) -> None:
        for delta in map(decode_delta, deltas):
            if isinstance(content := delta.get("content"), str):
                self._texts.append(content)
                self.size += len(content)
            if isinstance(pieces := delta.get("tool_calls"), list):
                self._calls.add(pieces)

    def message(self) -> dict[str, Any] | None:
        """Return the message (text and tool calls); None if it would be empty."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
        tool_calls = []
        for at, call in enumerate(self._calls.result()):
            index = call.pop("index", at)
            tool_calls.append({"id": f"call_{index}", **call})  # some upstreams send no id, and all require one
        if tool_calls:
            message["tool_calls"] = tool_calls
        return message if message["content"] or tool_calls else None
