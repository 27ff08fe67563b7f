"""Stream chat-model answers over WebSocket and SSE, from any OpenAI-compatible server.

From the command line: `ws-chat serve`. As an ASGI application with the settings of the environment (docs/settings.md):

    app = ws_chat.create_app()

In another FastAPI application (docs/embedding.md):

    ws_chat.mount(app, "/chat", principal=current_user)

- `create_app(settings, *, upstream, store, observers, principal)` returns the application.
- `mount(app, path, *, principal, …)` serves it below a path of another application.
- `Settings` has one field for each environment variable; `SettingsError` names the variable that is wrong.
- `ChatError(code, message)` is raised by upstreams, stores and authentication, with a code of docs/protocol.md.

`ws_chat.client` is the Python client, `ws_chat.testing` helps to test what is built on ws_chat. To extend ws_chat,
implement `ws_chat.upstreams.base.Upstream`, `ws_chat.stores.base.Store` or `ws_chat.relay.events.Observer`.
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

# Imported on first use: a program that needs only the client must not load the server.
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
