"""What the OpenAPI document says of requests whose bodies are read here and not by the framework."""

from __future__ import annotations

from typing import Any, Final

from ws_chat.errors import CODES

_ID_PATTERN: Final = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_MESSAGES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}
SCHEMAS: Final[dict[str, Any]] = {
    "Chat": {
        "type": "object",
        "required": ["messages"],
        "properties": {
            "type": {"const": "chat"},
            "messages": _MESSAGES,
            "model": {"type": "string", "minLength": 1},
            "id": {**_ID_PATTERN, "description": "Names the generation, so that it can be resumed."},
            "previous_id": {**_ID_PATTERN, "description": "The generation to continue from."},
            "stream": {"const": True},
            "n": {"maximum": 1},
        },
        "additionalProperties": True,
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["type", "code", "message", "param", "status", "retryable"],
                "properties": {
                    "type": {"enum": sorted({kind.type for kind in CODES.values()})},
                    "code": {"enum": list(CODES)},
                    "message": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "status": {"type": "integer"},
                    "retryable": {"type": "boolean"},
                },
            }
        },
    },
}


def _errors(*codes: str) -> dict[str, Any]:
    """Return the responses that are one of these errors, by status."""
    named: dict[str, list[str]] = {}
    for code in codes:
        # The status of this one is the upstream's.
        status = "4XX" if code == "upstream_rejected" else str(CODES[code].status)
        named.setdefault(status, []).append(f"`{code}`")
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": ", ".join(names), "content": content} for status, names in sorted(named.items())}


def _stream(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Generation-Id": {"schema": _ID_PATTERN}},
        "content": {"text/event-stream": {}},
    }


_UPSTREAM: Final = tuple(code for code in CODES if code.startswith("upstream_"))
_OURS: Final = ("unauthorized", "origin_not_allowed", "overloaded", "draining", "internal_error")
_FORMAT: Final = {
    "name": "format",
    "in": "query",
    "schema": {"type": "string", "enum": ["text", "frames"], "default": "text"},
    "description": "What an event is: the answer's text, or a frame as on the WebSocket.",
}
_ID: Final = {"name": "id", "in": "path", "required": True, "schema": _ID_PATTERN}
_POSITION: Final = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_NAMED: Final = {"parameters": {"id": "$response.header.X-Generation-Id"}, "description": "If it was given an `id`."}

CHAT_OPERATION: Final[dict[str, Any]] = {
    "summary": "Stream one answer as server-sent events",
    "operationId": "chat",
    "parameters": [_FORMAT],
    "requestBody": {
        "required": True,
        "description": "A chat: `messages` and any parameter of the OpenAI chat-completions reference; or only a list"
        " of messages. It is read as JSON whatever its media type.",
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"$ref": "#/components/schemas/Chat"}, _MESSAGES]},
                "example": {"messages": [{"role": "user", "content": "hi"}]},
            }
        },
    },
    "responses": {
        "200": _stream("The answer, as it comes")
        | {"links": {name: {"operationId": name, **_NAMED} for name in ("follow", "cancel")}},
        **_errors(
            *("invalid_json", "invalid_request", "model_not_allowed", "not_found", "id_conflict", "too_large"),
            "rate_limited",
            *_UPSTREAM,
            *_OURS,
        ),
    },
}
FOLLOW_OPERATION: Final[dict[str, Any]] = {
    "summary": "Follow a named generation, from the start or from after a seq",
    "operationId": "follow",
    "parameters": [
        _ID,
        _FORMAT,
        {"name": "after", "in": "query", "schema": {**_POSITION, "default": 0}},
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": _POSITION,
            "description": "The same, as an EventSource says it. It wins over the query.",
        },
    ],
    "responses": {
        "200": _stream("What comes after, as it comes"),
        "204": {"description": "Nothing comes after"},
        **_errors("invalid_request", "not_found", *_UPSTREAM, *_OURS),
    },
}
CANCEL_OPERATION: Final[dict[str, Any]] = {
    "summary": "Cancel a named generation",
    "operationId": "cancel",
    "parameters": [_ID],
    "responses": {"204": {"description": "It has ended, or is about to"}, **_errors("not_found", *_OURS)},
}
