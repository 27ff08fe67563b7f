"""Responses requests as chat-completions requests. Pure.

Only the fields of docs/responses.md are read; unlike in a chat, unknown ones do not reach the upstream.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.types import Model
from ws_chat.server.responses.types import Echo, StreamId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STREAM_ID: Final = re.compile("[A-Za-z0-9_.-]{1,256}")
_LOGPROBS: Final = "message.output_text.logprobs"
_REFUSED: Final = ("conversation", "prompt", "context_management")
_SAME: Final = (
    "temperature",
    "top_p",
    "metadata",
    "user",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""Fields that chat completions have under the same name."""
_CUSTOM_PARAMETERS: Final = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


class ReasoningConfig(Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Plain text."""


class JsonObject(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, frozen=True):
    format: TextFormat | JsonObject | JsonSchema = TextFormat()
    verbosity: str | None = None


class FunctionTool(Struct, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="custom"):
    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class CreateRequest(Struct, frozen=True, kw_only=True):
    """Start a response. Fields that are null or unknown are passed over; the others of docs/responses.md are passed on."""

    type: Literal["response.create"] = "response.create"
    model: Model | None = None
    instructions: str | None = None
    input: str | list[dict[str, Any]] = []
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    reasoning: ReasoningConfig = ReasoningConfig()
    text: TextConfig = TextConfig()
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    top_logprobs: int = 0
    include: list[str] = []
    parallel_tool_calls: bool = True
    temperature: float = 1
    top_p: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    metadata: dict[str, str] = {}
    service_tier: str = "default"
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool = True
    background: bool = False
    generate: bool = True
    stream: bool = False
    stream_id: StreamId | None = None


_ECHOED: Final = [name for name in Echo.__struct_fields__ if name in CreateRequest.__struct_fields__]


class Request(Struct, frozen=True):
    """A request as it is handled. `body` is the chat-completions request: `messages` and parameters."""

    body: dict[str, Any]
    model: str | None
    echo: Echo
    generate: bool
    stream: bool

    @property
    def has_outputs(self) -> bool:
        """Whether it has outputs of tool calls."""
        return any(message["role"] == "tool" for message in self.body["messages"])


def stream_id(fields: Mapping[str, Any]) -> str | None:
    """Return the lane of a request. Raises ChatError (`invalid_stream_id`)."""
    value = fields.get("stream_id")
    if value is not None and not (isinstance(value, str) and _STREAM_ID.fullmatch(value)):
        message = '"stream_id" must be 1 to 256 characters of A-Z a-z 0-9 _ . -'
        raise ChatError("invalid_stream_id", message, param="stream_id")
    return value


def translate(fields: Mapping[str, Any]) -> Request:
    """Return the chat-completions request for a Responses request. Raises ChatError (`invalid_request`)."""
    fields = {name: value for name, value in fields.items() if value is not None and name != "type"}
    for name in _REFUSED:
        if name in fields:
            raise _invalid(name, f'"{name}" is not supported by this server')
    given = _convert(fields, CreateRequest)
    if given.background and not given.store:
        raise _invalid("background", '"background" needs a response that is stored')
    messages = _messages(given.input)
    if not messages and given.generate and given.previous_response_id is None:
        raise _invalid("input", '"input" must be text or a list of at least one item')
    tools = _tools(given.tools)
    body: dict[str, Any] = {"messages": messages, **{name: fields[name] for name in _SAME if name in fields}}
    body |= _without_nulls(
        max_completion_tokens=given.max_output_tokens,
        reasoning_effort=given.reasoning.effort,
        verbosity=given.text.verbosity,
        response_format=_response_format(given.text.format),
        top_logprobs=given.top_logprobs or None,
        logprobs=True if given.top_logprobs or _LOGPROBS in given.include else None,
    )
    sent, choice = _choose(tools, given.tool_choice)
    if sent:
        body["tools"] = [_chat_tool(tool) for tool in sent]
        if "tool_choice" in fields:
            body["tool_choice"] = choice
        if "parallel_tool_calls" in fields:
            body["parallel_tool_calls"] = given.parallel_tool_calls
    echoed = {name: getattr(given, name) for name in _ECHOED}
    echoed |= msgspec.to_builtins({"tools": tools, "reasoning": given.reasoning, "text": given.text})
    return Request(body, given.model, Echo(**echoed), given.generate, given.stream)


def _response_format(given: TextFormat | JsonObject | JsonSchema) -> dict[str, Any] | None:
    match given:
        case TextFormat():
            return None
        case JsonObject():
            return {"type": "json_object"}
        case JsonSchema():
            return {"type": "json_schema", "json_schema": _without_nulls(**msgspec.structs.asdict(given))}


def _without_nulls(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def check_outputs(before: Iterable[Any], messages: Sequence[Any]) -> None:
    """Raise ChatError if one of `messages` is the output of a tool call that no message before it made."""
    known = [call_id for message in before for call_id in _call_ids(message)]
    for message in messages:
        known += _call_ids(message)
        if message["role"] == "tool" and message.get("tool_call_id") not in known:
            raise _invalid("input", f"No tool call before it has the call_id {message.get('tool_call_id')!r}")


def _call_ids(message: Mapping[str, Any]) -> list[Any]:
    return [call.get("id") for call in message.get("tool_calls") or ()]


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given else []
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        at = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                role = _text(item, "role", at)
                content = _content(item.get("content"), at)
                messages.append({"role": "system" if role == "developer" else role, "content": content})
            case "function_call":
                _add_call(messages, item, _text(item, "arguments", at), at)
            case "custom_tool_call":
                arguments = json.dumps({"input": _text(item, "input", at)}, ensure_ascii=False)
                _add_call(messages, item, arguments, at)
            case "function_call_output" | "custom_tool_call_output":
                content = _content(item.get("output"), at)
                messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", at), "content": content})
            case "reasoning":
                pass
            case other:
                raise _invalid("input", f"{at}: items of type {other!r} are not supported")
    return messages


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], arguments: str, at: str) -> None:
    function = {"name": _text(item, "name", at), "arguments": arguments}
    call = {"id": _text(item, "call_id", at), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _content(content: Any, at: str) -> str | list[dict[str, Any]]:
    """Return a message's content: one string if there is only text, else parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _invalid("input", f"{at}: the content must be text or a list of parts")
    parts = [_part(part, f"{at}, part {index}") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, at: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "input_text" | "output_text":
            return {"type": "text", "text": _text(part, "text", at)}
        case "refusal":
            return {"type": "text", "text": _text(part, "refusal", at)}
        case "input_image":
            image = {"url": _text(part, "image_url", at)}
            if part.get("detail") is not None:
                image["detail"] = _text(part, "detail", at)
            return {"type": "image_url", "image_url": image}
        case "input_file":
            names = ("file_data", "file_id", "filename")
            file = {name: _text(part, name, at) for name in names if part.get(name) is not None}
            if not file.keys() & {"file_data", "file_id"}:
                raise _invalid("input", f'{at}: a file must have "file_data" or "file_id"')
            return {"type": "file", "file": file}
        case "input_audio":
            return dict(part)
    raise _invalid("input", f"{at}: parts of type {kind!r} are not supported")


def _text(value: Mapping[str, Any], name: str, at: str) -> str:
    if not isinstance(text := value.get(name), str):
        raise _invalid("input", f'{at}: "{name}" must be a string')
    return text


def _tools(given: Sequence[Mapping[str, Any]]) -> list[FunctionTool | CustomTool]:
    return [
        _convert(tool, CustomTool if tool["type"] == "custom" else FunctionTool, "tools")
        for tool in given
        if tool.get("type") in ("function", "custom")
    ]


def _chat_tool(tool: FunctionTool | CustomTool) -> dict[str, Any]:
    if isinstance(tool, CustomTool):
        function = _without_nulls(name=tool.name, description=tool.description, parameters=_CUSTOM_PARAMETERS)
    else:
        function = _without_nulls(**msgspec.structs.asdict(tool))
    return {"type": "function", "function": function}


def _choose(
    tools: list[FunctionTool | CustomTool], choice: str | dict[str, Any]
) -> tuple[list[FunctionTool | CustomTool], str | dict[str, Any]]:
    """Return the tools that are sent, and the chat-completions tool_choice."""
    if isinstance(choice, str):
        return tools, choice
    named = [tool.name for tool in tools]
    match choice:
        case {"type": "function" | "custom", "name": str(name)} if name in named:
            return tools, {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": str(mode), "tools": [*allowed]}:
            names = [entry["name"] for entry in allowed if isinstance(entry, dict) and "name" in entry]
            if all(name in named for name in names):
                return [tool for tool in tools if tool.name in names], mode
    raise _invalid("tool_choice", '"tool_choice" must be a string, or name a tool of "tools"')


def _convert(value: Any, kind: Any, field: str = "") -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        path = path.strip(".`")
        field = field or re.split(r"[.\[]", path, maxsplit=1)[0]
        raise _invalid(field, f'"{path or field}": {fault[:1].lower()}{fault[1:].replace("`", "")}') from None


def _invalid(field: str, message: str) -> ChatError:
    return ChatError("invalid_request", f"{message}.", param=field)
