"""What the server says, as types: the parts of an answer (docs/protocol.md, the OpenAI chat-completions reference)."""

from __future__ import annotations

from typing import Literal, Required, TypeAlias, TypedDict

from ws_chat.protocol.types import TokenFrame, ToolCall

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed"]
Frame: TypeAlias = TokenFrame
"""A token frame."""


class Message(TypedDict, total=False):
    """What was said, as an assistant's message for a message list."""

    role: Required[Literal["assistant"]]
    content: Required[str | None]
    refusal: str
    tool_calls: list[ToolCall]
