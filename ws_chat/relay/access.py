"""API keys and their principals, allowed origins, rate limits.

A principal is the holder of one key. Its name is a part of the key's hash, which may be logged and is the same in every
replica. Without configured keys there is one anonymous principal.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from ws_chat.protocol.errors import ChatError
from ws_chat.stores.base import GenerationKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from limits import RateLimitItem
    from limits.aio.storage import Storage

ANONYMOUS: Final = "anonymous"
"""The principal of every request when no keys are configured."""

SUBPROTOCOL: Final = "ws_chat.v1"
"""The WebSocket subprotocol that clients offer beside their key, and the only one that is ever selected."""

_KEY_SUBPROTOCOL: Final = "bearer."


def name_of(key: str) -> str:
    """Return the principal of a key: enough of its SHA-256 to distinguish keys, too little to find a key with."""
    return f"key-{sha256(key.encode()).hexdigest()[:12]}"


class Caller(NamedTuple):
    """Who makes a request: a principal, one connection (a random token), a transport. None contains a `/`."""

    principal: str
    connection: str
    transport: str

    def key(self, generation_id: str, *, named: bool) -> GenerationKey:
        return GenerationKey(self.principal if named else self.connection, generation_id, named)


class Keys:
    """The valid API keys; with none, every request is accepted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [(key.encode(), name_of(key)) for key in keys]

    def principal(self, key: str | None) -> str:
        """Return the principal of a key. Raises ChatError (`unauthorized`)."""
        if not self._keys:
            return ANONYMOUS
        if key is None:
            raise ChatError("unauthorized", "An API key is required: Authorization: Bearer <key>.")
        # Compare with every key, each in constant time: the time must not depend on any key.
        given = key.encode(errors="surrogateescape")
        found = [name for known, name in self._keys if hmac.compare_digest(known, given)]
        if not found:
            raise ChatError("unauthorized", "Invalid API key.")
        return found[0]


def bearer(authorization: str | None, subprotocols: Sequence[str] = ()) -> str | None:
    """Return the key of a request: from its Authorization header (RFC 6750), or from its WebSocket subprotocols.

    Browsers cannot set headers; they offer `bearer.<base64url of the key>`.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for offered in subprotocols:
        if offered.startswith(_KEY_SUBPROTOCOL):
            encoded = offered.removeprefix(_KEY_SUBPROTOCOL)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, ValueError):
                return ""
    return None


class Origins:
    """The allowed origins of web pages: the same host, and those on the list (`*`: all)."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    def check(self, origin: str | None, host: str | None) -> None:
        """Raise ChatError (`origin_not_allowed`) for a page of another host. Only browsers send an origin."""
        if origin is None or "*" in self._allowed or origin.lower().rstrip("/") in self._allowed:
            return
        if not host or origin.lower().partition("://")[2] != host.lower():
            raise ChatError("origin_not_allowed", "This origin is not allowed.")


class Quota:
    """The rate limit: how many generations a principal may start in a minute."""

    def __init__(self, per_minute: int | None, storage: Storage | None = None) -> None:
        """Count in `storage`, which replicas may share; None: in memory."""
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        # Stores two counters per principal, however many requests there are.
        self._limiter = SlidingWindowCounterRateLimiter(storage or MemoryStorage())
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())

    @asynccontextmanager
    async def counted(self, principal: str) -> AsyncIterator[None]:
        """Count one generation, unless the block raises.

        Raises ChatError (`rate_limited`) with the seconds until the next one is allowed.
        """
        if self._item is None:
            yield
            return
        limiter = self._limiter
        try:
            await _hit(limiter, self._item, principal)
        except StorageError:  # the shared counters cannot be reached: count in this process
            limiter = self._own
            await _hit(limiter, self._item, principal)
        try:
            yield
        except BaseException:
            with suppress(StorageError):
                await limiter.hit(self._item, principal, cost=-1)
            raise


async def _hit(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, principal: str) -> None:
    if not await limiter.hit(item, principal):
        window = await limiter.get_window_stats(item, principal)
        wait = max(1.0, window.reset_time - time.time())
        raise ChatError("rate_limited", "Too many requests in a minute.", retry_after=wait)
