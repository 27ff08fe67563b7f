"""An event loop whose time a test can advance, to test a window of 20 s without waiting, on a machine of any speed.

Real time passes too. So a window that must not pass by itself is long, and one `advance` ends it. All advances of a test
together stay below waiting.LIMIT, and below the timeouts of its clients.
"""

from __future__ import annotations

import asyncio

import pytest


class Clock(asyncio.SelectorEventLoop):
    """The loop. Timers of the server, the client and the test itself all follow its time."""

    advanced = 0.0

    def time(self) -> float:
        return super().time() + self.advanced

    def advance(self, seconds: float) -> None:
        """Make the timers of the next `seconds` due."""
        self.advanced += seconds


def advance(seconds: float) -> None:
    """Advance the time of a test that is marked `with_clock`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.advance(seconds)


with_clock = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"loop_factory": Clock}), id="with a clock")]
)
