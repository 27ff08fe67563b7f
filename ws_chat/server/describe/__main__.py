"""Update the schemas in both documents from the structs that decode and encode frames."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_args

import msgspec

from ws_chat.protocol.errors import ErrorBody
from ws_chat.protocol.frames import Cancel, ChatRequest, Ping, Resume, ServerFrame
from ws_chat.protocol.types import TokenFrame
from ws_chat.server.describe import path
from ws_chat.server.responses.request import CreateRequest
from ws_chat.server.responses.types import CLIENT_FRAMES, EVENTS

TYPES = (
    *(ChatRequest, Cancel, Resume, Ping, *get_args(ServerFrame), TokenFrame, ErrorBody),
    *(CreateRequest, *CLIENT_FRAMES, *EVENTS),
)


def updated(name: str) -> str:
    """Return the text of a document's file with the schemas as they should be."""
    _, schemas = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    messages = schemas[ChatRequest.__name__]["properties"]["messages"]
    schemas["Messages"] = {"description": "A bare list of messages: a chat without parameters.", **messages}
    document = json.loads(path(name).read_text(encoding="utf-8"))
    document["components"]["schemas"] = schemas = _tidy(schemas)
    for message, described in document["components"].get("messages", {}).items():
        if summary := schemas[message].get("description"):
            described["summary"] = summary
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _tidy(value: Any) -> Any:
    """Leave out OpenAPI's discriminators, and the indentation of docstrings, which they have before Python 3.13.

    Discriminators have another form in AsyncAPI, and each alternative names its `type`.
    """
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    if isinstance(value, dict):
        return {key: _tidy(each) for key, each in value.items() if key != "discriminator"}
    return inspect.cleandoc(value) if isinstance(value, str) else value


if __name__ == "__main__":
    for name in ("openapi", "asyncapi"):
        path(name).write_text(updated(name), encoding="utf-8")
