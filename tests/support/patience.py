"""The client's patience without the machine's clock: time stands still until a test sets it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ws_chat.client.backoff import Backoff

if TYPE_CHECKING:
    import pytest

FOREVER = (600.0, 600.0)
SHORT = (0.1, 0.1)


class Clock:
    """Stands in for the client's `time` module. `now` is in seconds.

    The client pings no server before `look_for_life`, and gives up no handshake before `hurry_handshakes`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._monkeypatch = monkeypatch
        self._looking = asyncio.Event()
        for module in ("chat", "connection", "backoff"):
            monkeypatch.setattr(f"ws_chat.client.{module}.time", self)
        monkeypatch.setattr("ws_chat.client.connection.asyncio", _Sleeping(self._looking))
        monkeypatch.setattr("ws_chat.client.chat.HEARTBEAT_INTERVAL", SHORT)
        monkeypatch.setattr("ws_chat.client.network.HANDSHAKE_TIMEOUT", FOREVER)

    def monotonic(self) -> float:
        return self.now

    def look_for_life(self) -> None:
        """Let the client ping its servers. One that is silent is found soon; so may one be that is only slow."""
        self._looking.set()

    def hurry_handshakes(self) -> None:
        """Let the client give up the next handshakes soon, even if the server is only slow."""
        self._monkeypatch.setattr("ws_chat.client.network.HANDSHAKE_TIMEOUT", SHORT)


class _Sleeping:
    """The asyncio module, whose `sleep` waits for an event first."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await self._event.wait()
        await asyncio.sleep(seconds)  # it is the client that sleeps


def recorded_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that records the client's pauses from now on; the client does not wait for them."""
    pauses: list[float] = []
    pause = Backoff.pause

    def left_out(*given: Any) -> float:
        pauses.append(pause(*given))
        return 0.0

    monkeypatch.setattr(Backoff, "pause", left_out)
    return pauses
