"""What the WebSocket says and takes, as an AsyncAPI 3.1 document. "Receive" and "send" are the server's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ws_chat.protocol.frames import Cancel, ChatRequest, Done, Failed, GoAway, Ping, Pong, Refused, Resume, Start
from ws_chat.relay.access import SUBPROTOCOL
from ws_chat.server.describe.schemas import CLIENT_FRAMES, SCHEMAS, SERVER_FRAMES, reference

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

_CHANNEL: Final = "#/channels/chat"
_ANSWER: Final = (Start.__name__, "TokenFrame", Done.__name__, Failed.__name__, Refused.__name__)
_EXAMPLES: Final[dict[str, Any]] = {
    ChatRequest.__name__: {"messages": [{"role": "user", "content": "hi"}]},
    "Messages": [{"role": "user", "content": "hi"}],
    Resume.__name__: {"type": "resume", "id": "r1", "after": 41},
    Cancel.__name__: {"type": "cancel", "id": "r1"},
    Ping.__name__: {"type": "ping"},
}


def _message(name: str) -> dict[str, Any]:
    summary = SCHEMAS[name].get("description", "A bare list of messages: a chat with nothing else in it.")
    examples = {"examples": [{"payload": _EXAMPLES[name]}]} if name in _EXAMPLES else {}
    return {"name": name, "summary": summary, "payload": reference(name), **examples}


def _operation(action: str, summary: str, names: tuple[str, ...], replies: tuple[str, ...] = ()) -> dict[str, Any]:
    def messages(given: tuple[str, ...]) -> list[dict[str, str]]:
        return [{"$ref": f"{_CHANNEL}/messages/{name}"} for name in given]

    channel = {"$ref": _CHANNEL}
    reply = {"reply": {"channel": channel, "messages": messages(replies)}} if replies else {}
    return {"action": action, "channel": channel, "summary": summary, "messages": messages(names), **reply}


_NAMES: Final = (*(frame.__name__ for frame in (*CLIENT_FRAMES, *SERVER_FRAMES)), "Messages", "TokenFrame")
_HEADERS: Final = {
    "type": "object",
    "properties": {
        "Authorization": {"type": "string", "description": "Bearer and the API key, where one is needed."},
        "Sec-WebSocket-Protocol": {
            "type": "string",
            "description": f"{SUBPROTOCOL}, bearer.<base64url of the key>: for browsers, which cannot set headers.",
        },
    },
}
_DOCUMENT: Final[dict[str, Any]] = {
    "asyncapi": "3.1.0",
    "defaultContentType": "application/json",
    "channels": {
        "chat": {
            "address": "/v1/chat/ws",
            "title": "Chat",
            "description": "One JSON object a message. Many generations run at once; their frames interleave.",
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _NAMES},
            "bindings": {"ws": {"method": "GET", "headers": _HEADERS, "bindingVersion": "0.1.0"}},
        }
    },
    "operations": {
        "chat": _operation(
            "receive", "Start a generation, or attach to a named one.", (ChatRequest.__name__, "Messages"), _ANSWER
        ),
        "resume": _operation("receive", "Follow a named generation.", (Resume.__name__,), _ANSWER),
        "cancel": _operation("receive", "Stop a generation.", (Cancel.__name__,), (Done.__name__, Refused.__name__)),
        "ping": _operation("receive", "Ask whether the server is there.", (Ping.__name__,), (Pong.__name__,)),
        "goaway": _operation("send", "Tell that the server is about to stop.", (GoAway.__name__,)),
    },
    "components": {"schemas": SCHEMAS, "messages": {name: _message(name) for name in _NAMES}},
}


def document(connection: HTTPConnection, title: str, version: str) -> dict[str, Any]:
    """Return the document, for the server that was asked."""
    scope = connection.scope
    server = {
        "host": connection.headers.get("host", ""),
        "protocol": "wss" if scope["scheme"] == "https" else "ws",
        **({"pathname": scope["root_path"]} if scope.get("root_path") else {}),
    }
    return {**_DOCUMENT, "info": {"title": title, "version": version}, "servers": {"this": server}}
