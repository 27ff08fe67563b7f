"""What the server says, as types: the parts of an answer (docs/protocol.md, the OpenAI chat-completions reference)."""

from __future__ import annotations

from typing import Any, Literal, Required, TypeAlias, TypedDict

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed"]


class Function(TypedDict, total=False):
    """What a tool call calls; `arguments` is JSON, as text."""

    name: str
    arguments: str


class ToolCall(TypedDict, total=False):
    """A tool call, or a piece of one: pieces with the same `index` belong together."""

    index: int
    id: str
    type: str
    function: Function


class Frame(TypedDict, total=False):
    """A token frame: what has come since the one before. Servers may send more fields than these."""

    type: Required[str]
    id: Required[str]
    seq: Required[int]
    content: str
    reasoning_content: str
    refusal: str
    tool_calls: list[ToolCall]
    logprobs: dict[str, Any]


class Usage(TypedDict, total=False):
    """Tokens, as the upstream counts them. Servers may send more fields than these."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, Any]
    completion_tokens_details: dict[str, Any]


class Timing(TypedDict):
    """Milliseconds since the request was accepted: to the first delta (None when there was none), and to the end."""

    ttft_ms: float | None
    total_ms: float


class Message(TypedDict, total=False):
    """What was said, as an assistant's message for a message list."""

    role: Required[Literal["assistant"]]
    content: Required[str | None]
    refusal: str
    tool_calls: list[ToolCall]
