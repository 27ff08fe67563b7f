"""The Responses protocol's JSON, as types: the response object, its items, and the events (Open Responses; docs/responses.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

if TYPE_CHECKING:
    from ws_chat.protocol.errors import ErrorInfo

RESPONSE_ID_PATTERN: Final = "resp_[0-9a-f]{40}"
"""The first eight digits are the second in which the response began, so that `created_at` needs no place in the log."""


StreamId: TypeAlias = Annotated[
    str, Meta(pattern="^[A-Za-z0-9_.-]{1,256}$", description="A lane: its requests run one after the other.")
]


class Echo(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The fields of a response that come from its request, as they are stored beside the log."""

    previous_response_id: str | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    truncation: Literal["disabled"] = "disabled"
    parallel_tool_calls: bool = True
    text: dict[str, Any] = field(default_factory=lambda: {"format": {"type": "text"}, "verbosity": None})
    top_p: float = 1
    temperature: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    top_logprobs: int = 0
    reasoning: dict[str, Any] = field(default_factory=lambda: {"effort": None, "summary": None})
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(Struct, frozen=True):
    code: Literal["rate_limit_exceeded", "invalid_prompt", "server_error"]
    message: str


class Response(Echo, kw_only=True, frozen=True, omit_defaults=False):
    """The response object."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "cancelled", "failed"] = "in_progress"
    incomplete_details: IncompleteDetails | None = None
    error: ResponseError | None = None
    model: str
    output: list[Item] = []
    usage: dict[str, Any] | None = None


# Items of the output, and their parts

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[dict[str, Any]] = []


class Refusal(Struct, tag_field="type", tag="refusal"):
    refusal: str = ""


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str = ""


Part: TypeAlias = OutputText | Refusal | ReasoningText


class OutputMessage(Struct, tag_field="type", tag="message"):
    id: str
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText | Refusal] = []


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    id: str
    status: Status = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class ToolCall(Struct, tag_field="type"):
    id: str
    call_id: str
    name: str
    status: Status = "in_progress"


class FunctionCall(ToolCall, tag="function_call"):
    arguments: str = ""


class CustomToolCall(ToolCall, tag="custom_tool_call"):
    input: str = ""


Item: TypeAlias = OutputMessage | ReasoningItem | FunctionCall | CustomToolCall


# Events


class Event(Struct, kw_only=True, tag_field="type"):
    """An event. Over a WebSocket, with the lane of its request, if that has one."""

    sequence_number: int
    stream_id: StreamId | UnsetType = UNSET


class ResponseEvent(Event):
    """An event with the whole response."""

    response: Response


class ResponseCreated(ResponseEvent, tag="response.created"):
    """The first event."""


class ResponseInProgress(ResponseEvent, tag="response.in_progress"):
    """The second event."""


class ResponseCompleted(ResponseEvent, tag="response.completed"):
    """The last event of a response that is complete."""


class ResponseIncomplete(ResponseEvent, tag="response.incomplete"):
    """The last event of a response that was cut short or cancelled."""


class ResponseFailed(ResponseEvent, tag="response.failed"):
    """The last event of a response that failed."""


class ItemAdded(Event, tag="response.output_item.added"):
    output_index: int
    item: Item


class ItemDone(Event, tag="response.output_item.done"):
    output_index: int
    item: Item


class ItemEvent(Event):
    """An event of an open item."""

    item_id: str
    output_index: int


class PartAdded(ItemEvent, tag="response.content_part.added"):
    content_index: int
    part: Part


class PartDone(ItemEvent, tag="response.content_part.done"):
    content_index: int
    part: Part


class DeltaEvent(ItemEvent):
    """A piece of text. Neighbouring ones of one part may be joined, under the last `sequence_number`."""

    delta: str


class TextDelta(DeltaEvent, tag="response.output_text.delta"):
    content_index: int
    logprobs: list[dict[str, Any]] = []


class TextDone(ItemEvent, tag="response.output_text.done"):
    content_index: int
    text: str
    logprobs: list[dict[str, Any]] = []


class RefusalDelta(DeltaEvent, tag="response.refusal.delta"):
    content_index: int


class RefusalDone(ItemEvent, tag="response.refusal.done"):
    content_index: int
    refusal: str


class ReasoningDelta(DeltaEvent, tag="response.reasoning_text.delta"):
    content_index: int


class ReasoningDone(ItemEvent, tag="response.reasoning_text.done"):
    content_index: int
    text: str


class ArgumentsDelta(DeltaEvent, tag="response.function_call_arguments.delta"):
    """A piece of a function's arguments, which are JSON, as text."""


class ArgumentsDone(ItemEvent, tag="response.function_call_arguments.done"):
    arguments: str


class InputDelta(DeltaEvent, tag="response.custom_tool_call_input.delta"):
    """The whole input of a custom tool."""


class InputDone(ItemEvent, tag="response.custom_tool_call_input.done"):
    input: str


# Client frames besides response.create, which is a request.CreateRequest


class ResponseCancel(Struct, frozen=True, tag_field="type", tag="response.cancel"):
    """Stop a response: `response_id`, or the only one that runs on the socket."""

    response_id: str | None = None


class Steer(Struct, frozen=True):
    input: Any
    previous_response_id: Any


class ResponseSteer(Steer, frozen=True, tag_field="type", tag="response.steer"):
    """Always answered by response.steer.failed."""


class ResponseProcessed(Struct, frozen=True, tag_field="type", tag="response.processed"):
    """Passed over."""


# Errors


class ErrorDetail(Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None
    headers: dict[str, str] | UnsetType = UNSET


class ErrorEvent(Struct, kw_only=True, frozen=True, tag_field="type", tag="error"):
    """A request was refused, or, with a `sequence_number`, failed before its first delta."""

    status: int
    error: ErrorDetail
    sequence_number: int | UnsetType = UNSET
    stream_id: StreamId | UnsetType = UNSET

    @classmethod
    def of(cls, info: ErrorInfo, *, number: int | None = None, stream_id: str | None = None) -> Self:
        headers: dict[str, str] | UnsetType = UNSET
        if info.status in (429, 503):
            headers = {"Retry-After": str(math.ceil(info.retry_after or 1))}
        return cls(
            status=info.status,
            error=ErrorDetail(info.type, info.code, info.message, info.param, headers),
            sequence_number=UNSET if number is None else number,
            stream_id=stream_id or UNSET,
        )


class SteerError(Struct, frozen=True):
    type: Literal["invalid_request_error"] = "invalid_request_error"
    code: Literal["steering_not_supported"] = "steering_not_supported"
    message: str = "This server does not support steering: send the input with the next response.create."


class SteerFailed(Struct, kw_only=True, frozen=True, tag_field="type", tag="response.steer.failed"):
    """The answer to every response.steer."""

    sequence_number: Literal[0] = 0
    error: SteerError = SteerError()
    steer: Steer


CLIENT_FRAMES: Final = (ResponseCancel, ResponseSteer, ResponseProcessed)
"""Those besides response.create."""
EVENTS: Final = (
    *(ResponseCreated, ResponseInProgress, ItemAdded, PartAdded, TextDelta, TextDone, RefusalDelta, RefusalDone),
    *(ReasoningDelta, ReasoningDone, PartDone, ArgumentsDelta, ArgumentsDone, InputDelta, InputDone, ItemDone),
    *(ResponseCompleted, ResponseIncomplete, ResponseFailed, ErrorEvent, SteerFailed),
)
