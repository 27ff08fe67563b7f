"""The models that clients may choose from: `GET /v1/chat/models`."""

from __future__ import annotations

import asyncio
import logging
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse

from ws_chat.protocol.errors import ChatError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from ws_chat.server.connections import Connections

logger = logging.getLogger("ws_chat.models")

TRANSPORT: Final = "sse"  # for the metrics of refused requests
FRESH: Final = 300.0
"""Seconds for which a list of the upstream is used again."""
RETRY_INTERVAL: Final = 30.0
"""Seconds after which an upstream that gave no list is asked again."""
TIMEOUT: Final = 5.0
MAX_MODELS: Final = 1000


class ModelsEndpoint:
    """Serves the upstream's models that `allowed` (shell patterns, none: any) lets through, after `named`.

    `fetch` asks the upstream, which may have no list: then there are the `named` ones only.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        named: Sequence[str],
        allowed: Sequence[str],
        fetch: Callable[[], Awaitable[Sequence[str]]] | None,
    ) -> None:
        self._connections = connections
        self._named = list(named)
        self._allowed = allowed
        self._fetch = fetch
        self._models = self._named
        self._due = 0.0
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the shape of OpenAI's list of models."""
        try:
            await self._connections.caller(scope, TRANSPORT)
        except ChatError as error:
            self._connections.refuse(TRANSPORT, error)
            raise
        models = [{"id": model, "object": "model"} for model in await self._list()]
        response = JSONResponse({"object": "list", "data": models}, headers={"Cache-Control": "no-store"})
        await response(scope, receive, send)

    async def _list(self) -> list[str]:
        async with self._lock:  # many clients at once are one request to the upstream
            if self._fetch and time.monotonic() >= self._due:
                try:
                    async with asyncio.timeout(TIMEOUT):
                        found = await self._fetch()
                except (ChatError, TimeoutError) as error:
                    logger.info("The upstream gave no list of models: %s", error or "it took too long")
                    self._due = time.monotonic() + RETRY_INTERVAL
                else:
                    self._models = list(dict.fromkeys([*self._named, *filter(self._allows, found)]))[:MAX_MODELS]
                    self._due = time.monotonic() + FRESH
        return self._models

    def _allows(self, model: str) -> bool:
        return not self._allowed or any(fnmatchcase(model, pattern) for pattern in self._allowed)
