"""The JSON inside of frames, as types (the OpenAI chat-completions reference). The schemas are generated from them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Required, TypeAlias, TypedDict

from msgspec import Meta

ID_PATTERN: Final = "[A-Za-z0-9._:-]{1,128}"
EPOCH_PATTERN: Final = "[A-Za-z0-9_]{1,32}"
MAX_MODEL: Final = 256
"""Characters. A limit because the model's name is logged."""

Id: TypeAlias = Annotated[str, Meta(pattern=f"^{ID_PATTERN}$", description="The id of a generation.")]
Seq: TypeAlias = Annotated[int, Meta(ge=0, description="A position: 0 at the start; deltas count from 1.")]
Epoch: TypeAlias = Annotated[
    str,
    Meta(
        pattern=f"^{EPOCH_PATTERN}$",
        description="Random, of one named generation: distinguishes it from earlier ones with the same id.",
    ),
]
Model: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]


class Message(TypedDict, total=False):
    """One message. Everything besides `role` is passed on to the upstream: text, images, tool results, audio."""

    role: Required[str]


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


class TokenFrame(TypedDict, total=False):
    """The deltas after the previous frame's seq, joined. Servers may send more fields than these."""

    type: Required[Literal["token"]]
    id: Required[Id]
    seq: Required[Seq]
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
