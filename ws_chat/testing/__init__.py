"""For tests of applications that are built on ws_chat: an OpenAI-compatible server that a test scripts.

`FakeOpenAI` is that server; `text` and the other functions make steps of its replies; `Cut`, `Hang` and others break
them. `serving` runs an application on a free port. With pytest, the fixtures `fake_openai` and `ws_chat_url` are
available without an import (`ws_chat.testing.pytest_plugin`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ws_chat.server.thread import serving
    from ws_chat.testing.fake_openai import FakeOpenAI, Recorded
    from ws_chat.testing.replies import (
        DONE,
        Cut,
        Garbage,
        Hang,
        Pause,
        Reply,
        Reset,
        Step,
        Wait,
        chunk,
        error_body,
        sse,
        text,
        usage_chunk,
    )

__all__ = [
    "DONE",
    "Cut",
    "FakeOpenAI",
    "Garbage",
    "Hang",
    "Pause",
    "Recorded",
    "Reply",
    "Reset",
    "Step",
    "Wait",
    "chunk",
    "error_body",
    "serving",
    "sse",
    "text",
    "usage_chunk",
]

_MODULES = {
    "FakeOpenAI": "ws_chat.testing.fake_openai",
    "Recorded": "ws_chat.testing.fake_openai",
    "serving": "ws_chat.server.thread",
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest loads this package in every project where ws_chat is installed."""
    if name not in __all__:
        raise AttributeError(f"module 'ws_chat.testing' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "ws_chat.testing.replies")), name)
