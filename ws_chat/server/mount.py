"""ws_chat inside another FastAPI application: `mount(app, "/chat", principal=current_user)`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ws_chat.server.app import create_app
from ws_chat.server.auth import Dependency
from ws_chat.server.chat.sender import DRAIN, UNPROTECTED, WRITE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from fastapi import FastAPI

    from ws_chat.relay.events import Observer
    from ws_chat.server.settings import Settings
    from ws_chat.stores.base import Store
    from ws_chat.upstreams.base import Upstream


def mount(
    app: FastAPI,
    path: str,
    *,
    principal: Callable[..., Any] | None,
    settings: Settings | None = None,
    upstream: Upstream | None = None,
    store: Store | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """Serve WebSocket and SSE below `path` (`{path}/v1/chat/ws`, `{path}/v1/chat/stream`); return the mounted application.

    `principal` is a dependency, as for `Depends`: it returns the user's name or number (str, int or UUID), or raises
    HTTPException. None: the API keys of the settings, or no authentication without any. The rest is as for
    `create_app`.

    ws_chat's lifespan becomes part of that of `app`, because Starlette runs no lifespan of a mounted application.
    Raises SettingsError, and RuntimeError when `app` is already running.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("ws_chat.mount() must be called before the application starts.")
    chat = create_app(
        settings,
        upstream=upstream,
        store=store,
        observers=observers,
        principal=Dependency(app, principal) if principal else None,
    )
    outer_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(outer: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with outer_lifespan(outer) as state, chat.router.lifespan_context(chat) as ours:
            yield _merged(state or {}, ours or {})

    app.router.lifespan_context = lifespan
    app.mount(path, chat)
    return chat


def _merged(state: Mapping[str, Any], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge the lifespan states. Two mounted applications drain at the same time."""
    if DRAIN not in state:
        return {**state, **ours}

    async def drain() -> None:
        await asyncio.gather(state[DRAIN](), ours[DRAIN]())

    timeout = min(state[WRITE_TIMEOUT], ours[WRITE_TIMEOUT])
    unprotected = state[UNPROTECTED] or ours[UNPROTECTED]
    return {**state, DRAIN: drain, WRITE_TIMEOUT: timeout, UNPROTECTED: unprotected}
