"""A server inside of this program, for `--local`: on a free port of 127.0.0.1, with a key that nobody else has.

It takes its model from the environment and `.env` as `ws-chat serve` does. Other users of the computer could reach
the port, and what they asked would be paid for with that environment's key: hence the key of its own.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import uvicorn

from ws_chat.server.app import create_app
from ws_chat.server.run import ServeOptions, Server, uvicorn_config
from ws_chat.server.settings import Settings
from ws_chat.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator


RETENTION: Final = 24 * 3600.0
"""Seconds that an answer is kept to go on from: there is nobody else whose memory it would take."""


class LocalServer(NamedTuple):
    """Where it is, the key for it, and what answers there."""

    url: str
    key: str
    answers: str


@contextlib.contextmanager
def local_server() -> Iterator[LocalServer]:
    """Run a server in a thread until the block ends. Raises SettingsError when the environment makes no sense."""
    key = secrets.token_urlsafe()
    # What the operator of a service sets for others does not concern the only user of this one.
    settings = Settings.load().model_copy(
        update={
            "api_keys": (key,),
            "requests_per_minute": None,
            "drain_timeout": 0.0,
        }
    )
    for name in ("ws_chat", "uvicorn.error"):  # its log would be written into the chat
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    listening = socket.create_server(("127.0.0.1", 0))  # who connects from here on waits until it has started
    chosen = uvicorn_config(settings, ServeOptions()) | {"log_config": None, "log_level": None, "access_log": False}
    server = Server(uvicorn.Config(create_app(settings, store=MemoryStore(retention=RETENTION)), **chosen))

    def serve() -> None:
        with listening:  # one that cannot start leaves nobody waiting
            server.run(sockets=[listening])

    thread = threading.Thread(target=serve, name="ws_chat server", daemon=True)
    thread.start()
    answers = (
        "the built-in demo" if settings.uses_demo else f"{settings.model} at {settings.openai_base_url or 'OpenAI'}"
    )
    try:
        yield LocalServer(f"ws://127.0.0.1:{listening.getsockname()[1]}", key, answers)
    finally:
        server.should_exit = True
        thread.join()
