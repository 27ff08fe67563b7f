"""Connections to an upstream: many small pools instead of one large one.

httpx2's pool looks through all of its connections whenever a request begins or ends. With 5,000 of them that is
milliseconds for each request, on the event loop; with POOL_SIZE it does not show.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

if TYPE_CHECKING:
    from collections.abc import Iterator

POOL_SIZE: Final = 50
CONNECT_TIMEOUT: Final = 10.0
NO_KEY: Final = "none"
"""What is sent as a key when none is configured: the SDK insists on one, servers that need none ignore it."""


class Clients:
    """SDK clients that differ in nothing but their pool. `timeout` (seconds) is that of every read."""

    def __init__(self, api_key: str | None, base_url: str | None, timeout: float) -> None:
        self._api_key = api_key or NO_KEY
        self._base_url = base_url
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None)
        self._limits = httpx2.Limits(max_connections=None, max_keepalive_connections=POOL_SIZE)
        self._ssl = httpx2.create_ssl_context()  # reading the certificates once is enough
        self._clients: list[AsyncOpenAI] = []
        self._running: list[int] = []

    @contextlib.contextmanager
    def lease(self) -> Iterator[AsyncOpenAI]:
        """Hold a place for one request, in the first pool that has one: the first ones keep their connections warm."""
        place = next((place for place, running in enumerate(self._running) if running < POOL_SIZE), len(self._running))
        if place == len(self._running):
            self._clients.append(self._new())
            self._running.append(0)
        self._running[place] += 1
        try:
            yield self._clients[place]
        finally:
            self._running[place] -= 1

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            await client.close()

    def _new(self) -> AsyncOpenAI:
        http_client = DefaultAsyncHttpxClient(limits=self._limits, timeout=self._timeout, verify=self._ssl)
        return AsyncOpenAI(
            api_key=self._api_key, base_url=self._base_url, timeout=self._timeout, http_client=http_client
        )
