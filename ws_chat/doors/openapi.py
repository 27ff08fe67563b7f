"""What the OpenAPI document says of requests whose bodies are read here and not by the framework."""

from __future__ import annotations

from typing import Any, Final

_FORMAT: Final = {
    "name": "format",
    "in": "query",
    "schema": {"type": "string", "enum": ["text", "frames"], "default": "text"},
    "description": "What an event is: the answer's text, or a frame as on the WebSocket.",
}
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}
_ERROR: Final = {"description": 'An error before the answer: `{"error": …}`', "content": {"application/json": {}}}

CHAT_OPERATION: Final[dict[str, Any]] = {
    "summary": "Stream one answer as server-sent events",
    "operationId": "chat",
    "parameters": [_FORMAT],
    "requestBody": {
        "required": True,
        "description": "A chat: `messages` and any parameter of the OpenAI chat-completions reference.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["messages"],
                    "properties": {
                        "messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}},
                        "model": {"type": "string"},
                        "id": {"type": "string", "description": "Names the generation, so that it can be resumed."},
                        "previous_id": {"type": "string", "description": "The generation to continue from."},
                    },
                    "additionalProperties": True,
                },
                "example": {"messages": [{"role": "user", "content": "hi"}]},
            }
        },
    },
    "responses": {
        "200": {"description": "The answer, as it comes", "content": {"text/event-stream": {}}},
        "default": _ERROR,
    },
}
FOLLOW_OPERATION: Final[dict[str, Any]] = {
    "summary": "Follow a named generation, from the start or from after a seq",
    "operationId": "follow",
    "parameters": [
        _ID,
        _FORMAT,
        {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0, "default": 0}},
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "The same, as an EventSource says it. It wins over the query.",
        },
    ],
    "responses": {
        "200": {"description": "What comes after, as it comes", "content": {"text/event-stream": {}}},
        "204": {"description": "Nothing comes after"},
        "default": _ERROR,
    },
}
CANCEL_OPERATION: Final[dict[str, Any]] = {
    "summary": "Cancel a named generation",
    "operationId": "cancel",
    "parameters": [_ID],
    "responses": {"204": {"description": "It has ended, or is about to"}, "default": _ERROR},
}
