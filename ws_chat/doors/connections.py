"""How many connections this process holds, over both doors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ws_chat.errors import ChatError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Connections:
    """Counts connections and refuses those above `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.open = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for a connection. Raises ChatError (`overloaded`) when there is none."""
        if self.open >= self._limit:
            raise ChatError("overloaded", "The server has as many connections as it can.", retry_after=1)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
