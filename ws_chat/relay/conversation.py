"""Stored requests, beside the logs of their answers: to recognise an equal request, and to continue a conversation.

A stored request is the digest of its chat, and the messages of its conversation as JSON: those that `previous_id` put in
front, and its own. Nothing here decodes messages. Pure functions over JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ws_chat.protocol.deltas import ToolCalls, decode_delta
from ws_chat.protocol.frames import DIGEST_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Chat


def encode_request(chat: Chat, before: bytes) -> bytes:
    """Return a stored request. `before`: the messages to put in front, as `conversation` returns them."""
    own = bytes(chat.body["messages"])
    return chat.digest.ljust(DIGEST_SIZE, b"\0") + (before[:-1] + b"," + own[1:] if before else own)


def is_same_request(stored: bytes, chat: Chat) -> bool:
    """Return whether a named chat equals a stored request as JSON values."""
    return stored[:DIGEST_SIZE] == chat.digest


def messages_of(stored: bytes) -> bytes:
    """Return the messages of a stored request, a JSON list. Empty if they were not kept: its answer never began."""
    return stored[DIGEST_SIZE:]


def conversation(messages: bytes, answer: dict[str, Any] | None) -> bytes:
    """Return messages and the answer to them, a JSON list."""
    return messages[:-1] + b"," + msgspec.json.encode(answer) + b"]" if answer else messages


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
        if tool_calls := [{key: call[key] for key in call if key != "index"} for call in self._calls.result()]:
            message["tool_calls"] = tool_calls
        return message if message["content"] or tool_calls else None
