"""The OpenAPI document (SSE and the rest of HTTP) and the AsyncAPI document (WebSocket), served from JSON files.

`python -m ws_chat.server.describe` updates their schemas from the structs of the frames; the rest is written by hand.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ws_chat import __version__

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document, to which FastAPI adds the path that it is mounted at."""
    return _load("openapi")


def asyncapi(connection: HTTPConnection) -> dict[str, Any]:
    """Return the AsyncAPI document with the server of `connection`."""
    scope = connection.scope
    server = {
        "host": connection.headers.get("host", ""),
        "protocol": "wss" if scope["scheme"] == "https" else "ws",
        **({"pathname": scope["root_path"]} if scope.get("root_path") else {}),
    }
    return {**_load("asyncapi"), "servers": {"this": server}}


def path(name: str) -> Path:
    """Return the path of a document's file: `openapi` or `asyncapi`."""
    return Path(__file__).with_name(f"{name}.json")


@cache
def _load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path(name).read_text(encoding="utf-8"))
    document["info"]["version"] = __version__
    return document
