"""The client's patience without the machine's clock: time stands still until a test moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ws_chat.client.backoff import Backoff

if TYPE_CHECKING:
    import pytest

FOREVER = (600.0, 600.0)


class Clock:
    """Stands in for the client's `time` module. `now` is in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._monkeypatch = monkeypatch
        for module in ("chat", "connection", "backoff"):
            monkeypatch.setattr(f"ws_chat.client.{module}.time", self)
        self.looks_for_life_every(FOREVER[0])
        monkeypatch.setattr("ws_chat.client.network.HANDSHAKE_TIMEOUT", FOREVER)

    def monotonic(self) -> float:
        return self.now

    def looks_for_life_every(self, seconds: float) -> None:
        """Let the client ping its next sockets so often; a peer is lost after twice that, in real time."""
        self._monkeypatch.setattr("ws_chat.client.chat.HEARTBEAT_INTERVAL", (seconds, seconds))

    def handshakes_take_at_most(self, seconds: float) -> None:
        """Let the client give up the next handshakes after so many seconds of real time."""
        self._monkeypatch.setattr("ws_chat.client.network.HANDSHAKE_TIMEOUT", (seconds, seconds))


def recorded_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of the pauses that the client makes from now on, each of which it then leaves out."""
    pauses: list[float] = []
    pause = Backoff.pause

    def left_out(*given):
        pauses.append(pause(*given))
        return 0

    monkeypatch.setattr(Backoff, "pause", left_out)
    return pauses
