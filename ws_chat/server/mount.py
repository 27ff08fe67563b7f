"""A part of an application that is there already: `mount(app, "/chat", principal=current_user)`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ws_chat.server.app import create_app
from ws_chat.server.auth import Dependency
from ws_chat.server.chat.sender import DRAIN, WRITE_TIMEOUT, hide_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

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
    """Serve both doors below `path` (`{path}/v1/chat/ws`, `{path}/v1/chat/stream`); return what was mounted.

    `principal` is a dependency of the application's own, as for `Depends`: it returns who asks, as a str, int or UUID,
    or raises an HTTPException. None: the keys of the settings, or with none of these everybody. The rest is as for
    `create_app`.

    It starts and stops with `app`, also where that has a lifespan of its own: Starlette runs none of what is mounted.
    Raises SettingsError, and RuntimeError when `app` runs already.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("ws_chat is mounted before the application starts, not while it runs.")
    chat = create_app(
        settings,
        upstream=upstream,
        store=store,
        observers=observers,
        principal=Dependency(app, principal) if principal else None,
    )
    around = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(outer: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with around(outer) as state, chat.router.lifespan_context(chat) as ours:
            yield _together(state or {}, ours or {})

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        hide_wire(scope, app)
        await chat(scope, receive, send)

    app.router.lifespan_context = lifespan
    app.mount(path, inside)
    return chat


def _together(state: Mapping[str, Any], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of both. Where two are mounted, both drain, at the same time."""
    if DRAIN not in state:
        return {**state, **ours}

    async def drain() -> None:
        await asyncio.gather(state[DRAIN](), ours[DRAIN]())

    return {**state, DRAIN: drain, WRITE_TIMEOUT: min(state[WRITE_TIMEOUT], ours[WRITE_TIMEOUT])}
