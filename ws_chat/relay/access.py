"""Who comes in, and how much they may: keys and the principals they stand for, origins, quotas. Knows no socket.

A principal is whoever holds one key; its name is a part of the key's hash, so that it can be logged, and is the same in
every replica. Without configured keys there is one anonymous principal.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from ws_chat.protocol.errors import ChatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limits import RateLimitItem
    from limits.aio.storage import Storage

ANONYMOUS: Final = "anonymous"
"""The one principal there is without keys."""

SUBPROTOCOL: Final = "ws_chat.v1"
"""The WebSocket subprotocol that a client offers beside its key, and the only one that is ever chosen."""

_KEY_SUBPROTOCOL: Final = "bearer."


def name_of(key: str) -> str:
    """Return the principal of a key: enough of its SHA-256 to tell keys apart, and too little to find one by."""
    return f"key-{sha256(key.encode()).hexdigest()[:12]}"


class Caller(NamedTuple):
    """Who asks: a principal, on one connection (a random token), over a transport. No name holds a `/`."""

    principal: str
    connection: str
    transport: str

    def key(self, generation_id: str, *, named: bool) -> str:
        """Return the key of a generation's log: named ones belong to the principal, the others to the connection."""
        return f"named/{self.principal}/{generation_id}" if named else f"unnamed/{self.connection}/{generation_id}"


class Keys:
    """The API keys that are let in; with none, everybody is."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [(key.encode(), name_of(key)) for key in keys]

    def principal(self, key: str | None) -> str:
        """Return whom a key stands for. Raises ChatError (`unauthorized`)."""
        if not self._keys:
            return ANONYMOUS
        if key is None:
            raise ChatError("unauthorized", "A key is needed here: Authorization: Bearer <key>.")
        # All of them, each in constant time: how long it takes tells nothing about any.
        given = key.encode(errors="surrogateescape")
        found = [name for known, name in self._keys if hmac.compare_digest(known, given)]
        if not found:
            raise ChatError("unauthorized", "This key is not known here.")
        return found[0]


def bearer(authorization: str | None, subprotocols: Sequence[str] = ()) -> str | None:
    """Return the key of a request: from its Authorization header (RFC 6750), or from the subprotocols of a browser.

    The latter cannot set headers; it offers `bearer.<base64url of the key>`.
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
    """The web pages that are let in: those of the same host, and those whose origin is on the list (`*`: all)."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    def check(self, origin: str | None, host: str | None) -> None:
        """Raise ChatError (`origin_not_allowed`) for a page of another host. Whoever is no browser names no origin."""
        if origin is None or "*" in self._allowed or origin.lower().rstrip("/") in self._allowed:
            return
        if not host or origin.lower().partition("://")[2] != host.lower():
            raise ChatError("origin_not_allowed", "Pages of this origin are not allowed here.")


class Quota:
    """How many generations a principal may start in a minute."""

    def __init__(self, per_minute: int | None, storage: Storage | None = None) -> None:
        """Count in `storage`, which replicas may share; None: in memory."""
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        # Two counters a principal, however many requests a minute has.
        self._limiter = SlidingWindowCounterRateLimiter(storage or MemoryStorage())
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._item is not None

    async def take(self, principal: str) -> None:
        """Count one. Raises ChatError (`rate_limited`) with the seconds until the next one is allowed."""
        if self._item is None:
            return
        try:
            await self._take(self._limiter, self._item, principal)
        except StorageError:  # replicas cannot count together now, so each counts alone
            await self._take(self._own, self._item, principal)

    async def _take(self, limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, principal: str) -> None:
        if not await limiter.hit(item, principal):
            window = await limiter.get_window_stats(item, principal)
            wait = max(1.0, window.reset_time - time.time())
            raise ChatError("rate_limited", "Too many requests in a minute.", retry_after=wait)
