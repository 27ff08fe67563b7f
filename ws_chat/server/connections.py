"""The open connections of every transport: their admission (host, origin, key, limit), and goaway."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ws_chat.protocol.errors import CONNECTION_LIMIT, DRAINING, ChatError
from ws_chat.protocol.frames import GoAway
from ws_chat.relay.access import Caller, network
from ws_chat.relay.events import ConnectionClosed, ConnectionOpened, LimitReached, Observers, RequestRefused
from ws_chat.server.auth import header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Scope

    from ws_chat.relay.access import Origins
    from ws_chat.relay.events import Observer
    from ws_chat.server.auth import Authenticate
    from ws_chat.server.chat.sender import ConnectionSender


@dataclass(slots=True, eq=False)
class Connection:
    """An open connection: its caller, and its sender once it has one."""

    caller: Caller
    sender: ConnectionSender | None = None
    leave_running: Callable[[], None] | None = None
    """Stops reading generations that still run."""


class Connections:
    """The open connections, at most `limit`."""

    serving = False
    """Whether the application's lifespan runs."""
    leaving = False
    """Whether a drain is about to begin: requests are still served, but should go elsewhere."""

    def __init__(
        self, limit: int, authenticate: Authenticate, origins: Origins, observe: Observer | None = None
    ) -> None:
        self._limit = limit
        self._authenticate = authenticate
        self._origins = origins
        self.observe = observe or Observers()
        self._open: set[Connection] = set()
        self._authenticating = 0  # limited too: a dependency may take long
        self._draining = False

    @property
    def open(self) -> int:
        return len(self._open)

    async def caller(self, scope: Scope, transport: str) -> Caller:
        """Authenticate a request. Raises ChatError (`host_not_allowed`, `origin_not_allowed`, `unauthorized`, `overloaded`)."""
        if (origin := header(scope, b"origin")) is not None:
            self._origins.check(origin, header(scope, b"host"), scope.get("scheme", "http"))
        if self._authenticating >= self._limit:
            raise ChatError.of(CONNECTION_LIMIT, limit="max_connections")
        self._authenticating += 1
        try:
            principal = await self._authenticate(scope)
        finally:
            self._authenticating -= 1
        if not isinstance(principal, str) or not principal:
            raise TypeError(f"authenticate() must return a non-empty str, got {type(principal).__name__}")
        host, _ = scope.get("client") or (None, None)
        return Caller(principal, secrets.token_urlsafe(16), transport, network(host))

    @contextmanager
    def admit(self, caller: Caller) -> Iterator[Connection]:
        """Count a connection until the block ends. Raises ChatError (`draining`, `overloaded`)."""
        if not self.serving:
            raise RuntimeError(
                "The lifespan of ws_chat is not running: add it to an application with ws_chat.mount(), not app.mount()."
            )
        transport = caller.transport
        if self._draining:
            raise ChatError.of(DRAINING)
        if self.open >= self._limit:
            raise ChatError.of(CONNECTION_LIMIT, limit="max_connections")
        connection = Connection(caller)
        self._open.add(connection)
        self.observe(ConnectionOpened(transport))
        try:
            yield connection
        finally:
            self._open.remove(connection)
            sender = connection.sender
            self.observe(ConnectionClosed(transport, sender.sent if sender else 0, bool(sender and sender.dropped)))

    def refuse(self, transport: str, error: ChatError) -> None:
        self.observe(RequestRefused(transport, error.info.code))
        if error.limit:
            self.observe(LimitReached(error.limit))

    def drain(self, deadline: float, *, move: bool = False) -> None:
        """Refuse new connections, and send goaway on open WebSockets. `deadline`: the seconds that are left.

        `move`: running named generations can be resumed at another replica now.
        """
        self._draining = True
        frame = GoAway(round(deadline * 1000), move)
        for connection in self._open:
            # Not over SSE, which has no such event; its response may not have started.
            if connection.sender and connection.caller.transport == "websocket":
                connection.sender.announce(frame)

    def leave_running(self) -> None:
        """Stop reading the generations that still run, which are those of other replicas: readers resume there.

        An event stream ends in order, without a terminal event. Cut off, proxies would count it as a failure of this
        replica.
        """
        for connection in list(self._open):
            if connection.leave_running:
                connection.leave_running()
