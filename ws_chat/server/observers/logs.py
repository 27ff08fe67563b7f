"""The log: one line at the end of each generation, without its content unless the operator has enabled that."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import Any, Final

import msgspec

from ws_chat.relay.events import Event, GenerationEnded

logger = logging.getLogger("ws_chat.generations")


class Logs:
    """Logs the end of each generation, at level WARNING if it failed. `content`: with its messages."""

    def __init__(self, *, content: bool = False) -> None:
        self._content = content

    def __call__(self, event: Event) -> None:
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
        code = f"{event.code}, " if event.code else ""
        logger.log(
            level,
            "Generation %s %s: %s%d deltas in %.0f ms",
            *(event.id, event.status, code, event.deltas, event.total * 1000),
            extra={"fields": fields},
        )


class RedactQueries(logging.Filter):
    """Removes the values of queries from uvicorn's lines for requests: some clients put their key there."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


def _redacted(path: str) -> str:
    path, question, query = path.partition("?")
    parts = (part.partition("=") for part in query.split("&"))
    shown = (f"{name}={value if name in _SHOWN else '***'}" if equals else "***" for name, equals, value in parts)
    return f"{path}?{'&'.join(shown)}" if question else path


_SHOWN: Final = frozenset({"format", "after"})


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON: `time` (UTC), `level`, `logger`, `message`, and its `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
