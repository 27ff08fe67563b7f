"""The application: everything is created and connected here, and only here upstream and store are chosen."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import secrets
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute

from ws_chat.protocol.errors import DRAINING, ChatError, ErrorInfo
from ws_chat.protocol.urls import redact_url
from ws_chat.relay.access import Hosts, Keys, Origins, Quota, Throttle
from ws_chat.relay.events import LimitReached, Observers
from ws_chat.relay.relay import Relay
from ws_chat.server import describe
from ws_chat.server.auth import by_key
from ws_chat.server.chat.models import ModelsEndpoint
from ws_chat.server.chat.sender import DRAIN, LIMIT, UNPROTECTED, WRITE_TIMEOUT
from ws_chat.server.chat.sse import SSEEndpoint
from ws_chat.server.chat.websocket import ChatSocket
from ws_chat.server.connections import Connections
from ws_chat.server.http_errors import error_response, install_error_handlers
from ws_chat.server.observers.logs import Logs
from ws_chat.server.observers.metrics import Metrics
from ws_chat.server.page.page import FrontPage, Page, docs, service_worker
from ws_chat.server.responses.http import ResponsesEndpoint
from ws_chat.server.responses.responses import new_id
from ws_chat.server.responses.websocket import ResponseSocket
from ws_chat.server.settings import Settings, SettingsError, unknown_variables
from ws_chat.server.sockets import UPGRADE_REQUIRED, WebSocketEndpoint
from ws_chat.stores.memory import MemoryStore
from ws_chat.upstreams.demo import MODELS as DEMO_MODELS
from ws_chat.upstreams.demo import DemoUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from ws_chat.relay.events import Observer
    from ws_chat.server.auth import Authenticate
    from ws_chat.stores.base import Store
    from ws_chat.upstreams.base import Upstream

logger = logging.getLogger("ws_chat")

LAST_FRAMES_TIMEOUT: Final = 5.0
"""Seconds for slow readers to receive the rest of answers that ended with the drain timeout."""


def create_app(
    settings: Settings | None = None,
    *,
    upstream: Upstream | None = None,
    store: Store | None = None,
    observers: Sequence[Observer] = (),
    principal: Authenticate | None = None,
) -> FastAPI:
    """Return the ASGI application; `ws_chat.mount` adds it to another one. Raises SettingsError.

    `settings` are read from the environment by default, `upstream` and `store` chosen by the settings. `observers`
    receive events besides metrics and logs. `principal` authenticates requests in place of API keys.
    """
    if settings is None:
        settings = Settings.load()
        for warning in unknown_variables():
            logger.warning(warning)
    if principal and settings.api_keys:
        raise SettingsError("WS_CHAT_API_KEYS conflicts with the principal= argument: use one of the two")
    metrics = Metrics()
    observe = Observers([metrics, Logs(content=settings.log_content), *_tracing(), *observers])
    store = store or choose_store(settings)
    if isinstance(store, MemoryStore):
        store.on_evict = lambda: observe(LimitReached("kept_bytes"))
    answers = upstream or choose_upstream(settings)
    relay = Relay(
        answers,
        store,
        models=settings.models,
        max_generations=settings.max_generations,
        max_generations_per_principal=settings.max_generations_per_principal,
        quota=Quota(settings.requests_per_minute, store.counters),
        throttle=Throttle(settings.free_requests_per_minute),
        max_bytes=settings.max_frame_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        resume_window=settings.resume_window,
        observe=observe,
    )
    authenticate = principal or by_key(Keys(settings.api_keys))
    guarded = bool(principal or settings.api_keys)
    unprotected = not guarded and not isinstance(answers, DemoUpstream)
    hosts = Hosts(settings.allowed_hosts, any_by_default=guarded)
    origins = Origins(settings.allowed_origins, hosts)
    connections = Connections(settings.max_connections, authenticate, origins, observe)
    sockets = WebSocketEndpoint(
        ChatSocket,
        relay,
        connections,
        max_frame_bytes=settings.max_frame_bytes,
        max_generations=settings.max_generations_per_connection,
        new_id=_new_id,
    )
    streams = SSEEndpoint(relay, connections, max_body_bytes=settings.max_frame_bytes, new_id=_new_id)
    response_sockets = WebSocketEndpoint(
        ResponseSocket,
        relay,
        connections,
        max_frame_bytes=settings.max_frame_bytes,
        max_generations=settings.max_generations_per_connection,
        new_id=new_id,
    )
    responses = ResponsesEndpoint(relay, connections, max_body_bytes=settings.max_frame_bytes, new_id=new_id)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async def drain() -> None:
            connections.leaving = True
            try:
                await asyncio.sleep(settings.drain_delay)  # proxies ask /readyz meanwhile
                connections.drain(settings.drain_timeout, move=store.shared)
                await relay.drain(settings.drain_timeout)
                connections.leave_running()
                await relay.unread(LAST_FRAMES_TIMEOUT)
            finally:
                await relay.stop()

        await relay.open()
        connections.serving = True
        with metrics.measure(store):
            yield {
                DRAIN: drain,
                WRITE_TIMEOUT: settings.write_timeout,
                LIMIT: lambda limit: observe(LimitReached(limit)),
                UNPROTECTED: unprotected,
            }
        await relay.close()

    async def readyz(_: Request) -> Response:
        if connections.leaving:
            raise ChatError.of(DRAINING)
        relay.check_ready()
        return JSONResponse({"status": "ok"})

    async def export_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    named = [] if upstream else known_models(settings)
    front_page = FrontPage(named, hosts, needs_key=bool(settings.api_keys), max_bytes=settings.max_frame_bytes)
    models = ModelsEndpoint(connections, named=named, allowed=settings.models, fetch=getattr(answers, "models", None))
    app = FastAPI(
        title="ws_chat",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's loads scripts from another host
        redoc_url=None,
        # Plain ASGI: FastAPI's own handling would add half of the cost of a request.
        routes=[
            Route("/v1/chat/stream", streams, methods=["POST"]),  # first: it is matched for each answer
            WebSocketRoute("/v1/chat/ws", sockets),
            Route("/v1/chat/ws", _upgrade_required),
            Route("/v1/chat/stream/{id}", streams, methods=["GET", "DELETE"]),
            Route("/v1/chat/models", models, methods=["GET"]),
            WebSocketRoute("/v1/responses", response_sockets),
            Route("/v1/responses", responses, methods=["GET", "POST"]),
            Route("/v1/responses/{id}", responses, methods=["GET", "DELETE"]),
            Route("/v1/responses/{id}/cancel", responses, methods=["POST"]),
            WebSocketRoute("/{path:path}", _no_websocket),
            Route("/", front_page.answer),
            Route("/docs", docs),
            Mount("/static", Page()),
            Route("/service-worker.js", service_worker),
            Route("/healthz", _healthz),
            Route("/readyz", readyz),
            Route("/metrics", export_metrics),
            Route("/asyncapi.json", _asyncapi),
        ],
    )
    app.state.relay = relay
    app.state.connections = connections
    install_error_handlers(app)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["X-Generation-Id", "Retry-After"],
        )

    # FastAPI's documented way to replace the OpenAPI document.
    app.openapi = describe.openapi  # type: ignore[method-assign]
    return app


def choose_upstream(settings: Settings) -> Upstream:
    """Return the upstream that the settings name, and log which."""
    if settings.uses_demo:
        hint = "" if settings.upstream == "demo" else " Set OPENAI_API_KEY or OPENAI_BASE_URL to use a real model."
        logger.warning("Answers come from the built-in demo.%s", hint)
        return DemoUpstream(timeout=settings.upstream_timeout)
    from ws_chat.upstreams.openai import OpenAIUpstream

    server = redact_url(settings.openai_base_url or "OpenAI")
    logger.info("Answers come from %s. Default model: %s.", server, settings.model)
    return OpenAIUpstream(
        model=settings.model,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
        timeout=settings.upstream_timeout,
    )


def known_models(settings: Settings) -> list[str]:
    """Return the models for the page to offer, the default first. Patterns of WS_CHAT_MODELS may allow more."""
    if settings.uses_demo:
        return list(DEMO_MODELS)
    named = [model for model in settings.models if not set(model) & set("*?[")]
    return list(dict.fromkeys([settings.model, *named]))


def choose_store(settings: Settings) -> Store:
    if not settings.redis_urls:
        return MemoryStore(retention=settings.retention)
    try:
        from ws_chat.stores.redis.store import RedisStore
    except ImportError as error:
        raise SettingsError("WS_CHAT_REDIS_URL needs the redis package: pip install 'ws-chat[redis]'") from error
    try:
        return RedisStore(settings.redis_urls, retention=settings.retention)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"WS_CHAT_REDIS_URL: {error}") from error


def _tracing() -> list[Observer]:
    try:
        from ws_chat.server.observers.tracing import Tracing
    except ImportError:  # OpenTelemetry is not installed
        return []
    return [Tracing()]


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _asyncapi(request: Request) -> Response:
    return JSONResponse(describe.asyncapi(request))


async def _no_websocket(websocket: WebSocket) -> None:
    error = ErrorInfo.of("not_found", "There is no WebSocket at this path: it is /v1/chat/ws.")
    await websocket.send_denial_response(error_response(error))


async def _upgrade_required(_: Request) -> Response:
    return error_response(ErrorInfo.of("invalid_request", UPGRADE_REQUIRED))


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _tune_gc() -> None:
    """Tune the garbage collector for many long-lived objects, which are freed by reference counts."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


app: FastAPI


def __getattr__(name: str) -> FastAPI:
    # Created when `uvicorn ws_chat.app:app` looks it up: the import alone reads no environment and starts nothing.
    if name == "app":
        return _default_app()
    raise AttributeError(name)


@functools.cache  # uvicorn looks it up twice, and a module's __getattr__ is called each time
def _default_app() -> FastAPI:
    try:
        app = create_app()
    except SettingsError as error:
        sys.exit(f"ws-chat: {error}")
    _tune_gc()
    return app
