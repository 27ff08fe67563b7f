"""The frames as JSON Schema (2020-12), for both documents: made from their types, so that they cannot differ."""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec

from ws_chat.protocol.errors import ErrorBody, ErrorInfo
from ws_chat.protocol.frames import Chat, ClientFrame, ServerFrame
from ws_chat.protocol.types import ChatRequest, TokenFrame

REFERENCE: Final = "#/components/schemas/{name}"
CLIENT_FRAMES: Final[tuple[Any, ...]] = get_args(ClientFrame)
SERVER_FRAMES: Final[tuple[Any, ...]] = get_args(ServerFrame)


def reference(name: str) -> dict[str, str]:
    """Return a reference to one of SCHEMAS."""
    return {"$ref": REFERENCE.format(name=name)}


def _schemas() -> dict[str, Any]:
    frames = (*CLIENT_FRAMES, *SERVER_FRAMES)
    types = (*frames, TokenFrame, ChatRequest, ErrorBody)
    _, found = msgspec.json.schema_components(types, ref_template=REFERENCE)
    del found[ErrorInfo.__name__]
    for frame in frames:
        schema = found[frame.__name__]
        schema["properties"] = {"type": {"const": frame.type}} | {
            name: _as_sent(value) for name, value in schema["properties"].items()
        }
        schema["required"] = ["type", *schema["required"]]
    # A chat is a chat-completions request and what we add; its type may be left out.
    request, chat = found.pop(ChatRequest.__name__), found[Chat.__name__]
    del chat["properties"]["body"]
    chat["properties"] |= request["properties"]
    chat["required"] = request["required"]
    chat["description"] = f"Start a generation. {request['description']}"
    found["Messages"] = request["properties"]["messages"]
    return found


def _as_sent(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what goes over the wire: an ErrorInfo as its object; what is None by default is left out, not null."""
    if schema.get("$ref") == REFERENCE.format(name=ErrorInfo.__name__):
        return reference("ErrorObject")
    if "default" in schema and schema["default"] is None:
        return next(kind for kind in schema["anyOf"] if kind != {"type": "null"})
    return schema


SCHEMAS: Final = _schemas()
"""Of every frame (`Chat`, `TokenFrame`, …), of `Messages` alone, and of an error as the body of a response."""
