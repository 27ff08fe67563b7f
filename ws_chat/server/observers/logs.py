"""What the log says of a generation: one line at its end. Its content only where the operator has switched that on."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import Any

import msgspec

from ws_chat.relay.events import Event, GenerationEnded

logger = logging.getLogger("ws_chat.generations")


class Logs:
    """Logs the ends of generations; `content`: with their messages."""

    def __init__(self, *, content: bool = False) -> None:
        self._content = content

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if not isinstance(event, GenerationEnded):
            return
        level = logging.WARNING if event.status == "failed" else logging.INFO
        if not logger.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "id": event.id,
            "principal": event.principal,
            "door": event.transport,
            "model": event.model,
            "status": event.status,
            "code": event.code,
            "deltas": event.deltas,
            "ttft_ms": None if event.first is None else round(event.first * 1000, 1),
            "total_ms": round(event.total * 1000, 1),
            "bytes": event.size,
        }
        if self._content:
            fields["messages"] = event.content()
        told = f"{event.code}, " if event.code else ""
        logger.log(
            level,
            "Generation %s %s: %s%d deltas in %.0f ms",
            *(event.id, event.status, told, event.deltas, event.total * 1000),
            extra={"fields": fields},
        )


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON: `time` (UTC), `level`, `logger`, `message`, and what it has of fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(told, enc_hook=str).decode()


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
