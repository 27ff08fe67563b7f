"""Authentication: the principal of a request, by API key or by a dependency of the surrounding application."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote
from uuid import UUID

from fastapi import Depends, FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from ws_chat.protocol.errors import ChatError
from ws_chat.relay.access import bearer

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ws_chat.relay.access import Keys

logger = logging.getLogger("ws_chat.dependency")

_PRINCIPALS: Final = "ws_chat.principals"
_CODES: Final = {400: "invalid_request", 422: "invalid_request", 429: "rate_limited", 503: "overloaded"}


class Authenticate(Protocol):
    """Authenticates a request or a WebSocket handshake."""

    async def __call__(self, scope: Scope) -> str:
        """Return the principal: a name without `/`. Raises ChatError (`unauthorized`)."""


def by_key(keys: Keys) -> Authenticate:
    """Authenticate by the API key in the Authorization header, or in the subprotocols that a browser offers."""

    async def authenticate(scope: Scope) -> str:
        authorization = header(scope, b"authorization")
        return keys.principal(bearer(authorization, scope.get("subprotocols", ())))

    return authenticate


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of a request with a name in lower case. Much cheaper than Starlette's Headers."""
    for each, value in scope["headers"]:
        if each == name:
            return str(value, "latin-1")
    return None


class Dependency:
    """Authenticates by a FastAPI dependency, called as for a GET request with the same path and headers.

    So the dependencies of other routes of `app` work for WebSockets too. A resource that the dependency keeps open (a
    database session) is closed before the first frame, not with the socket. A key that a browser offers as a subprotocol
    is passed as an Authorization header.
    """

    def __init__(self, app: FastAPI, dependency: Callable[..., Any]) -> None:
        async def record(request: Request, principal: Any = Depends(dependency)) -> Response:  # noqa: B008  (FastAPI's way)
            request.scope[_PRINCIPALS].append(principal)
            return Response()

        self._outer = app
        # `request.app` is the outer application, whose exception handlers and global dependencies apply too.
        self._app = FastAPI(
            openapi_url=None, dependencies=app.router.dependencies, middleware=[Middleware(_SetApp, app)]
        )
        self._app.exception_handlers = app.exception_handlers
        self._app.add_api_route("/{ws_chat_path:path}", record, methods=["GET"], response_model=None)

    async def __call__(self, scope: Scope) -> str:
        """Return the principal.

        Raises ChatError with the message of the dependency's response: `invalid_request` (400, 422), `rate_limited`
        (429), `overloaded` (503), `internal_error` (other 5xx, and exceptions), else `unauthorized`.
        """
        principals: list[Any] = []
        response: list[Message] = []

        async def send(message: Message) -> None:
            response.append(message)

        self._app.dependency_overrides = self._outer.dependency_overrides
        try:
            await self._app({**_as_get(scope), _PRINCIPALS: principals}, _no_body, send)
            if principals:
                return _name(principals[0])
        except Exception as error:
            logger.exception("The principal= dependency failed")
            raise ChatError("internal_error", "Something went wrong inside the server.") from error
        raise _refusal(*response)


class _SetApp:
    """Middleware that sets `request.app` to the outer application."""

    def __init__(self, app: ASGIApp, outer: FastAPI) -> None:
        self._app = app
        self._outer = outer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._outer
        await self._app(scope, receive, send)


def _as_get(scope: Scope) -> dict[str, Any]:
    headers = list(scope["headers"])
    offered = bearer(None, scope.get("subprotocols", ()))
    if offered is not None and "authorization" not in Headers(scope=scope):
        headers.append((b"authorization", b"Bearer " + offered.encode()))
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    return {**scope, "type": "http", "method": "GET", "scheme": scheme, "headers": headers, "extensions": {}}


def _name(principal: Any) -> str:
    """Return a principal as text for the keys of logs, in which `/` is a separator: percent-encode special characters."""
    if isinstance(principal, bool) or not isinstance(principal, str | int | UUID) or principal == "":
        raise TypeError(
            f"the principal= dependency must return a non-empty str, an int or a UUID, got {type(principal).__name__}"
        )
    return quote(str(principal), safe="@:+,=")


def _refusal(start: Message, *rest: Message) -> ChatError:
    status = start["status"]
    code = _CODES.get(status, "internal_error" if status >= 500 else "unauthorized")
    try:
        detail = json.loads(b"".join(message.get("body", b"") for message in rest))["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    message = detail if isinstance(detail, str) and detail else "Authentication failed."
    wait = Headers(raw=start["headers"]).get("retry-after", "")
    return ChatError(code, message, retry_after=float(wait) if wait.isdecimal() else None)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
