"""What the OpenAPI document says of the SSE door, whose requests are read here and not by the framework."""

from __future__ import annotations

from typing import Any, Final

from ws_chat.protocol.errors import CODES
from ws_chat.protocol.frames import ChatRequest, Done, Failed, Start
from ws_chat.server.describe.schemas import SCHEMAS, reference

_ID_SCHEMA: Final = SCHEMAS[Start.__name__]["properties"]["id"]
_UPSTREAM: Final = (*(code for code in CODES if code.startswith("upstream_")), "generation_lost")
_OURS: Final = ("unauthorized", "origin_not_allowed", "overloaded", "internal_error")
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "401": {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    "429": {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds, where they are known."}},
    "503": {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}},
}


def errors(*codes: str) -> dict[str, Any]:
    """Return the responses that are one of these errors, by status."""
    named: dict[str, list[str]] = {}
    for code in codes:
        # The status of this one is the upstream's.
        status = "4XX" if code == "upstream_rejected" else str(CODES[code].status)
        named.setdefault(status, []).append(f"`{code}`")
    return {
        status: {
            "description": ", ".join(names),
            "content": {"application/json": {"schema": reference("ErrorBody")}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status, names in sorted(named.items())
    }


# As FastAPI describes its own event streams: a keyword of OpenAPI 3.2, which tools for 3.1 pass over.
_SEQ_AS_TEXT: Final = {"type": "string", "pattern": "^[0-9]+$"}
_EVENTS: Final[dict[str, Any]] = {
    "anyOf": [
        {
            "title": "Text format",
            "type": "object",
            "required": ["data"],
            "properties": {
                "event": {"enum": ["message", "done", "error"], "description": "A message where none is named."},
                "id": {**_SEQ_AS_TEXT, "description": "The seq, where the generation is named."},
                "data": {"type": "string", "description": "Text; `[DONE]` or `[CANCELLED]`; an ErrorBody as JSON."},
            },
        },
        {
            "title": "Frames format",
            "type": "object",
            "required": ["event", "id", "data"],
            "properties": {
                "event": {"enum": ["start", "token", "done", "error"]},
                "id": _SEQ_AS_TEXT,
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {
                        "anyOf": [
                            reference(name) for name in (Start.__name__, "TokenFrame", Done.__name__, Failed.__name__)
                        ]
                    },
                },
            },
        },
    ]
}
_EXAMPLES: Final = {
    "text": {"value": "data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n"},
    "frames": {
        "value": 'event: start\nid: 0\ndata: {"type":"start","id":"r1","seq":0,"model":"m"}\n\n'
        'event: token\nid: 1\ndata: {"type":"token","id":"r1","seq":1,"content":"Hel"}\n\n',
    },
}


def _stream(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {
            "X-Generation-Id": {"schema": _ID_SCHEMA},
            "Cache-Control": {"schema": {"const": "no-cache"}},
            "X-Accel-Buffering": {"schema": {"const": "no"}},
        },
        "content": {"text/event-stream": {"itemSchema": _EVENTS, "examples": _EXAMPLES}},
    }


_FORMAT: Final = {
    "name": "format",
    "in": "query",
    "schema": {"type": "string", "enum": ["text", "frames"], "default": "text"},
    "description": "What an event is: the answer's text, or a frame as on the WebSocket.",
}
_ID: Final = {"name": "id", "in": "path", "required": True, "schema": _ID_SCHEMA}
_POSITION: Final = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_NAMED: Final = {"parameters": {"id": "$response.header.X-Generation-Id"}, "description": "If it was given an `id`."}
_SECURITY: Final[dict[str, Any]] = {"security": [{}, {"key": []}]}

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
                "schema": {"anyOf": [reference(ChatRequest.__name__), reference("Messages")]},
                "example": {"messages": [{"role": "user", "content": "hi"}]},
            }
        },
    },
    "responses": {
        "200": _stream("The answer, as it comes")
        | {"links": {name: {"operationId": name, **_NAMED} for name in ("follow", "cancel")}},
        **errors(
            *("invalid_json", "invalid_request", "model_not_allowed", "not_found", "id_conflict", "too_large"),
            *("rate_limited", "too_many_generations", "draining"),
            *_UPSTREAM,
            *_OURS,
        ),
    },
    **_SECURITY,
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
        **errors("invalid_request", "not_found", "draining", *_UPSTREAM, *_OURS),
    },
    **_SECURITY,
}
CANCEL_OPERATION: Final[dict[str, Any]] = {
    "summary": "Cancel a named generation, also while the server drains",
    "operationId": "cancel",
    "parameters": [_ID],
    "responses": {"204": {"description": "It has ended, or is about to"}, **errors("not_found", *_OURS)},
    **_SECURITY,
}


def describe(document: dict[str, Any]) -> None:
    """Put the SSE door into an application's OpenAPI document, and what the framework does not know of the rest."""
    paths = document["paths"]
    paths["/v1/chat/stream"] = {"post": CHAT_OPERATION}
    paths["/v1/chat/stream/{id}"] = {"get": FOLLOW_OPERATION, "delete": CANCEL_OPERATION}
    paths["/readyz"]["get"]["responses"] |= errors("draining", "overloaded")
    text = {"schema": {"type": "string"}}
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": text}
    bearer = {"type": "http", "scheme": "bearer", "description": "An API key, where the server asks for one."}
    document["components"] = {"schemas": SCHEMAS, "securitySchemes": {"key": bearer}}
