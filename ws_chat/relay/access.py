"""API keys and their principals, allowed origins and hosts, rate limits.

A principal is the holder of one key. Its name is a part of the key's hash, which may be logged and is the same in every
replica. Without configured keys there is one anonymous principal.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from contextlib import asynccontextmanager, nullcontext, suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from ws_chat.protocol.errors import ChatError
from ws_chat.stores.base import GenerationKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from limits import RateLimitItem
    from limits.aio.storage import Storage

ROUTING_FIELDS: Final = frozenset(
    {
        *("models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "route", "preset", "plugins"),
        *("engine", "deployment_id", "model_list", "user_config", "custom_llm_provider", "extra_body"),
        *("api_base", "base_url", "api_key", "api_version"),
    }
)
"""Fields by which routers (OpenRouter, LiteLLM) choose other models, servers and keys. Refused with an allow-list of models."""
ANONYMOUS: Final = "anonymous"
"""The principal of every request when no keys are configured."""

SUBPROTOCOL: Final = "ws_chat.v1"
"""The WebSocket subprotocol that clients offer beside their key, and the only one that is ever selected."""

_KEY_SUBPROTOCOL: Final = "bearer."


BLOCK_TIME: Final = 1.0
"""Seconds for which requests are refused without counting them, once a Throttle's limit is reached."""
COUNTED_SIZE: Final = 64 * 1024


def name_of(key: str) -> str:
    """Return the principal of a key: enough of its SHA-256 to distinguish keys, too little to find a key with."""
    return f"key-{sha256(key.encode()).hexdigest()[:12]}"


class Caller(NamedTuple):
    """The sender of a request: principal, connection (a random token) and transport. None of them contains a `/`."""

    principal: str
    connection: str
    transport: str
    address: str = ""
    """The client's address, or its network."""

    def key(self, generation_id: str, *, named: bool) -> GenerationKey:
        owner = self.principal if named else f"{self.principal}/{self.connection}"
        return GenerationKey(owner, generation_id, named)

    @property
    def neighbour(self) -> str:
        """What distinguishes this client from others: its principal, or its address if all have the same principal."""
        return f"{ANONYMOUS}/{self.address}" if self.principal == ANONYMOUS else self.principal


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


@lru_cache(maxsize=4096)
def network(host: str | None) -> str:
    """Return the network of one client: the address, or the first 64 bits of an IPv6 address (RFC 6177)."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or ""
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


class Hosts:
    """The allowed hosts: loopback names, IP addresses, and names that match a pattern.

    A web page whose name was made to resolve to this server's address (DNS rebinding) has that name as its origin and as
    its host, so it passes the origin rule. It cannot have a loopback name or an IP address.
    """

    def __init__(self, patterns: Sequence[str], *, any_by_default: bool) -> None:
        """Allow every host if there are no patterns and `any_by_default` is true."""
        self._any = any_by_default and not patterns
        self._patterns = patterns

    def check(self, host: str | None) -> None:
        """Raise ChatError (`host_not_allowed`). `host` is the Host header, with its port."""
        if self._any:
            return
        host = (host or "").lower()
        name, colon, port = host.rpartition(":")
        if not (colon and port.isdecimal()):
            name = host
        name = name.removesuffix(".")
        if not name or not (is_loopback(name) or _is_address(name) or self._matches(name) or self._matches(host)):
            message = f"The host {name[:100]!r} is not allowed. The operator can add it to WS_CHAT_ALLOWED_HOSTS."
            raise ChatError("host_not_allowed", message)

    def _matches(self, host: str) -> bool:
        return any(fnmatchcase(host, pattern) for pattern in self._patterns)


def is_loopback(host: str) -> bool:
    """Whether a host without its port can only be this machine: `localhost` and below (RFC 6761), 127.0.0.1, ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ip_address(host.strip("[]")).is_loopback


def _is_address(host: str) -> bool:
    try:
        ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True


class Origins:
    """The allowed origins of web pages: the request's own (RFC 6454), and those on the list (`*`: all)."""

    def __init__(self, allowed: Sequence[str], hosts: Hosts | None = None) -> None:
        """Check `hosts` first; None: every host is allowed."""
        self._allowed = frozenset(allowed)
        self._hosts = hosts or Hosts((), any_by_default=True)

    def check(self, origin: str | None, host: str | None, scheme: str) -> None:
        """Raise ChatError (`host_not_allowed`, `origin_not_allowed`). Only browsers send an origin."""
        if origin is None:
            return
        self._hosts.check(host)
        if "*" in self._allowed or origin.lower().rstrip("/") in self._allowed:
            return
        if not host or not _is_own(origin.lower(), host.lower(), secure=scheme in {"https", "wss"}):
            raise ChatError("origin_not_allowed", "This origin is not allowed.")


def _is_own(origin: str, host: str, *, secure: bool) -> bool:
    """Whether a page of `origin` is one of the server that a request to `host` reached, with TLS if `secure`.

    An http page, which anyone on the network path can change, is never one of an https server. An https page may be one of
    a server that sees http: a proxy that ends TLS may send no X-Forwarded-Proto, or may not be trusted.
    """
    scheme, _, place = origin.partition("://")
    if scheme not in _PORTS or (secure and scheme == "http"):
        return False
    return place.removesuffix(_PORTS[scheme]) == host.removesuffix(_PORTS[scheme])


_PORTS: Final = {"http": ":80", "https": ":443"}


class Quota:
    """The rate limit: how many generations a principal may start in a minute."""

    def __init__(self, per_minute: int | None, storage: Storage | None = None) -> None:
        """Count in `storage`, which replicas may share; None: in memory."""
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        # Stores two counters per principal, however many requests there are.
        self._limiter = SlidingWindowCounterRateLimiter(storage or MemoryStorage())
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())

    def counted(self, principal: str) -> AbstractAsyncContextManager[None]:
        """Count one generation, unless the block raises.

        Raises ChatError (`rate_limited`) with the seconds until the next one is allowed.
        """
        return self._counted(self._item, principal) if self._item else nullcontext()

    @asynccontextmanager
    async def _counted(self, item: RateLimitItem, principal: str) -> AsyncIterator[None]:
        limiter = self._limiter
        try:
            await _hit(limiter, item, principal)
        except StorageError:  # the shared counters cannot be reached: count in this process
            limiter = self._own
            await _hit(limiter, item, principal)
        try:
            yield
        except BaseException:
            with suppress(StorageError):
                await limiter.hit(item, principal, cost=-1)
            raise


async def _hit(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, principal: str) -> None:
    if not await limiter.hit(item, principal):
        window = await limiter.get_window_stats(item, principal)
        wait = max(1.0, window.reset_time - time.time())
        raise ChatError("rate_limited", "Too many requests in a minute.", retry_after=wait, limit="requests_per_minute")


class Throttle:
    """The rate limit of requests that start no generation: they follow one, repeat its request, or are refused.

    They cost nothing at the upstream: the limit only protects this process.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._blocked: set[str] = set()

    def check(self, caller: Caller) -> None:
        """Raise ThrottledError for BLOCK_TIME after the limit was reached. This must cost nearly nothing."""
        if caller.neighbour in self._blocked:
            raise ThrottledError

    async def count(self, caller: Caller, size: int = 0) -> None:
        """Count a request of `size` bytes; each COUNTED_SIZE bytes count as another request. Raises ThrottledError."""
        if self._item is None:
            return
        self.check(caller)
        neighbour = caller.neighbour
        cost = min(1 + size // COUNTED_SIZE, self._item.amount)
        if not await self._limiter.hit(self._item, neighbour, cost=cost):
            self._blocked.add(neighbour)
            asyncio.get_running_loop().call_later(BLOCK_TIME, self._blocked.discard, neighbour)
            raise ThrottledError


class ThrottledError(ChatError):
    """Raised where a Throttle's limit is reached."""

    def __init__(self) -> None:
        super().__init__(
            "rate_limited",
            "Too many requests that start no generation in a minute.",
            retry_after=BLOCK_TIME,
            limit="free_requests_per_minute",
        )
