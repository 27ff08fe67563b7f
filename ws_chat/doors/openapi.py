"""What the OpenAPI document says of requests whose bodies are read here and not by the framework."""

from __future__ import annotations

from typing import Any, Final

CHAT_OPERATION: Final[dict[str, Any]] = {
    "summary": "Stream one answer as server-sent events",
    "operationId": "chat",
    "parameters": [
        {
            "name": "format",
            "in": "query",
            "schema": {"type": "string", "enum": ["text", "frames"], "default": "text"},
            "description": "What an event is: the answer's text, or a frame as on the WebSocket.",
        }
    ],
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
                    },
                    "additionalProperties": True,
                },
                "example": {"messages": [{"role": "user", "content": "hi"}]},
            }
        },
    },
    "responses": {
        "200": {"description": "The answer, as it comes", "content": {"text/event-stream": {}}},
        "default": {"description": 'An error before the answer: `{"error": …}`', "content": {"application/json": {}}},
    },
}
