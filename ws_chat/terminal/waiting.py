"""What the client waits for: a server that cannot be reached, or that has no room for now. It logs that."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from ws_chat.client.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Telling(logging.Handler):
    def __init__(self, told: Callable[[ClientError], None]) -> None:
        super().__init__(logging.INFO)
        self._told = told
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        for reason in record.args or ():
            if isinstance(reason, ClientError) and str(reason) != self._last:
                self._last = str(reason)
                self._told(reason)


@contextlib.contextmanager
def telling_of_waits(told: Callable[[ClientError], None]) -> Iterator[None]:
    """Call `told` in any thread with what the client waits for, when that changes, until the block ends."""
    logger = logging.getLogger("ws_chat.client")
    handler, level, propagate = _Telling(told), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
