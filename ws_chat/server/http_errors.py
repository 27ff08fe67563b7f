"""Errors as HTTP responses: the error object, its status, and `Retry-After` where it is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from ws_chat.protocol.errors import INTERNAL_ERROR, ChatError, ErrorBody, ErrorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.requests import Request


def error_response(error: ErrorInfo, headers: Mapping[str, str] | None = None) -> Response:
    """Build the response `{"error": …}`, with `headers` and those of the error."""
    headers = {**(headers or {}), "X-Content-Type-Options": "nosniff"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if error.code == "too_large":
        headers["Connection"] = "close"  # the rest of the body is not read
    return Response(msgspec.json.encode(ErrorBody(error)), error.status, headers, "application/json")


def _api_paths(app: FastAPI) -> list[str]:
    """Return the paths under /v1/, each with its methods."""
    methods: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route | WebSocketRoute) and route.path.startswith("/v1/"):
            named = {"WebSocket"} if isinstance(route, WebSocketRoute) else {*(route.methods or ())} - {"HEAD"}
            methods.setdefault(route.path, set()).update(named)
    for named in methods.values():
        if "WebSocket" in named:
            named.discard("GET")  # answers only that the path needs an upgrade
    return [f"{path} ({', '.join(sorted(named))})" for path, named in methods.items()]


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of an application with the error object, including FastAPI's own errors."""

    @app.exception_handler(ChatError)
    async def _(_: Request, error: ChatError) -> Response:
        return error_response(error.info)

    @app.exception_handler(404)
    async def _(request: Request, __: HTTPException) -> Response:
        message = "There is no resource at this path."
        if request.scope["path"].removeprefix(request.scope.get("root_path", "")).startswith("/v1/"):
            message += f" There are: {', '.join(_api_paths(app))}."
        return error_response(ErrorInfo.of("not_found", message))

    @app.exception_handler(405)
    async def _(_: Request, error: HTTPException) -> Response:
        message = "This path does not allow the method."
        response = error_response(ErrorInfo.of("invalid_request", message, status=405))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def _(_: Request, __: Exception) -> Response:
        # The server logs the traceback: Starlette raises it again after this response.
        return error_response(INTERNAL_ERROR)
