"""The server of `ws-chat chat --local`: in this process, on a free port of 127.0.0.1, with a random key.

It reads the environment and `.env` as `ws-chat serve` does. Other users of the computer can connect to the port, and
their requests would be paid for with the environment's API key: hence the random one.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from ws_chat.protocol.urls import redact_url
from ws_chat.server.app import create_app
from ws_chat.server.settings import Settings
from ws_chat.server.thread import serving
from ws_chat.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

RETENTION: Final = 24 * 3600.0
"""Seconds that an answer is kept to continue from. Long, because the memory is that of the only user."""


class LocalServer(NamedTuple):
    """The server's URL and key, and a description of its model for people."""

    url: str
    key: str
    description: str


@contextlib.contextmanager
def local_server() -> Iterator[LocalServer]:
    """Run the server until the block ends. Raises SettingsError, RuntimeError when it does not start."""
    key = secrets.token_urlsafe()
    # Limits that protect an operator from users do not apply to the only user.
    own = {"api_keys": (key,), "requests_per_minute": None, "drain_timeout": 0.0}
    settings = Settings.load().model_copy(update=own)
    for name in ("ws_chat", "uvicorn.error"):  # log lines would be printed into the chat
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    model = f"{settings.model} at {redact_url(settings.openai_base_url or 'OpenAI')}"
    with serving(create_app(settings, store=MemoryStore(retention=RETENTION)), settings) as url:
        yield LocalServer(url, key, "the built-in demo" if settings.uses_demo else model)
