"""How fast an answer came, in one line: time to the first token, tokens a second, and usage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ws_chat.client.reply import Known


class Stopwatch:
    """Runs from when it is made, which is when the question is asked."""

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._first: float | None = None

    def token(self) -> None:
        """Note that a token has come."""
        if self._first is None:
            self._first = time.monotonic()

    def line(self, reply: Known) -> str:
        """Tell of an answer that has ended.

        The first token is timed here, network and all; the speed is the server's, as from there the network counts for
        nothing. Without usage from the upstream, its deltas are counted.
        """
        parts = []
        if self._first is not None:
            parts.append(f"{self._first - self._asked:.2f} s to the first token")
        usage = reply.usage or {}
        said = usage.get("completion_tokens")
        count, unit = (said, "tokens") if said is not None else (max(reply.seq - 1, 0), "deltas")
        if reply.timing and (first := reply.timing["ttft_ms"]) is not None:
            seconds = (reply.timing["total_ms"] - first) / 1000
            if seconds > 0:
                parts.append(f"{count / seconds:.1f} {unit}/s")
        asked = usage.get("prompt_tokens")
        parts.append(
            f"{count} {unit}" if asked is None else f"{asked} token{'' if asked == 1 else 's'} in, {count} out"
        )
        if reply.model:
            parts.append(reply.model)
        return " · ".join(parts)
