"""Streams chat-model answers over WebSocket and SSE, from any OpenAI-compatible server.

As a program: `ws-chat serve`. As an ASGI application, configured by the environment (docs/settings.md):

    app = ws_chat.create_app()

As a part of a FastAPI application that is there already (docs/embedding.md):

    ws_chat.mount(app, "/chat", principal=current_user)

- `create_app(settings, *, upstream, store, observers, principal)` returns the application.
- `mount(app, path, *, principal, …)` serves it below a path of another one.
- `Settings` holds one value for each environment variable; `SettingsError` names the variable that makes no sense.
- `ChatError` is what an upstream, a store or an authentication function raises: a code of docs/protocol.md, a message.

`ws_chat.client` is the Python client, `ws_chat.testing` has what tests need. Seams for code of your own:
`ws_chat.upstreams.base.Upstream`, `ws_chat.stores.base.Store`, `ws_chat.relay.events.Observer`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ws_chat.protocol.errors import ChatError
    from ws_chat.server.app import create_app
    from ws_chat.server.mount import mount
    from ws_chat.server.settings import Settings, SettingsError

__all__ = ["ChatError", "Settings", "SettingsError", "__version__", "create_app", "mount"]
__version__ = version("ws-chat")

# Imported on first use: a program that needs only the client does not load the server.
_MODULES = {
    "ChatError": "ws_chat.protocol.errors",
    "Settings": "ws_chat.server.settings",
    "SettingsError": "ws_chat.server.settings",
    "create_app": "ws_chat.server.app",
    "mount": "ws_chat.server.mount",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ws_chat' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
