"""Who asks, told by a dependency of the application around: whatever FastAPI's `Depends` takes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final
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

logger = logging.getLogger("ws_chat.dependency")

_TOLD: Final = "ws_chat.principal"
_CODES: Final = {400: "invalid_request", 422: "invalid_request", 429: "rate_limited", 503: "overloaded"}


class Dependency:
    """Asks a dependency who is there, as a GET request at the same path with the same headers would.

    So whatever guards the other routes of `around` guards sockets too, and what the dependency holds (a database
    session) is let go of before the first frame, not after the hours of a socket. The key that a browser offers as a
    subprotocol is there as an Authorization header.
    """

    def __init__(self, around: FastAPI, dependency: Callable[..., Any]) -> None:
        async def who(request: Request, principal: Any = Depends(dependency)) -> Response:  # noqa: B008  (its own way)
            request.scope[_TOLD].append(principal)
            return Response()

        self._around = around
        # It sees the application around as `request.app`, and what it raises meets that one's exception handlers.
        # What all of its routes depend on is asked as well.
        everywhere = around.router.dependencies
        self._app = FastAPI(openapi_url=None, dependencies=everywhere, middleware=[Middleware(_In, around)])
        self._app.exception_handlers = around.exception_handlers
        self._app.add_api_route("/{ws_chat_path:path}", who, methods=["GET"], response_model=None)

    async def __call__(self, scope: Scope) -> str:
        """Return the principal of a request or handshake.

        Raises ChatError: `unauthorized` for what the dependency refuses, with its message; `invalid_request` where it
        misses something (400, 422), `rate_limited` (429), `overloaded` (503), and `internal_error`.
        """
        told: list[Any] = []
        answer = _Answer()
        self._app.dependency_overrides = self._around.dependency_overrides
        try:
            await self._app({**_as_get(scope), _TOLD: told}, _no_body, answer.send)
            if told:
                return _name(told[0])
        except Exception as error:
            logger.exception("The dependency that tells principals failed")
            raise ChatError("internal_error", "Something went wrong inside the server.") from error
        raise answer.error()


def _as_get(scope: Scope) -> dict[str, Any]:
    headers = list(scope["headers"])
    offered = bearer(None, scope.get("subprotocols", ()))
    if offered is not None and "authorization" not in Headers(scope=scope):
        headers.append((b"authorization", b"Bearer " + offered.encode()))
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    return {**scope, "type": "http", "method": "GET", "scheme": scheme, "headers": headers, "extensions": {}}


def _name(principal: Any) -> str:
    """Return a principal as one word of a key: a text or number, with what a key cannot hold percent-encoded."""
    if isinstance(principal, bool) or not isinstance(principal, str | int | UUID) or principal == "":
        raise TypeError(f"a principal is a str, int or UUID, and not empty, not {type(principal).__name__}")
    return quote(str(principal), safe="@:+,=")


class _In:
    """Lets a request be one of another application."""

    def __init__(self, app: ASGIApp, around: FastAPI) -> None:
        self._app = app
        self._around = around

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._around
        await self._app(scope, receive, send)


class _Answer:
    """What was answered in place of a principal."""

    def __init__(self) -> None:
        self._status = 500
        self._headers = Headers()
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = Headers(raw=message["headers"])
        else:
            self._body += message.get("body", b"")

    def error(self) -> ChatError:
        code = _CODES.get(self._status, "internal_error" if self._status >= 500 else "unauthorized")
        try:
            detail = json.loads(self._body)["detail"]
        except (ValueError, KeyError, TypeError):
            detail = None
        message = detail if isinstance(detail, str) and detail else "This request was not let in."
        wait = self._headers.get("retry-after", "")
        return ChatError(code, message, retry_after=float(wait) if wait.isdecimal() else None)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
