"""A server in a thread of this process: for tests of applications, and for `ws-chat chat --local`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import uvicorn

from ws_chat.server.run import ServeOptions, Server, uvicorn_config
from ws_chat.server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

POLL_INTERVAL: Final = 0.01
"""Seconds between two checks whether the server has started, which uvicorn does not announce."""


@contextlib.contextmanager
def serving(app: ASGIApp, settings: Settings | None = None) -> Iterator[str]:
    """Serve an application as `ws-chat serve` does, on a free port of 127.0.0.1, until the block ends; yield its URL.

    `settings` are those that the application was created with; by default those of an empty environment. Leaving the
    block drains the server: with `drain_timeout=0` in the application's settings it does not wait. Logging is not
    configured. Raises RuntimeError when the application does not start.
    """
    config = uvicorn_config(settings or Settings.from_environment({}), ServeOptions())
    config |= {"log_config": None, "log_level": None, "access_log": False, "lifespan": "on"}
    server = Server(uvicorn.Config(app, **config))

    def run() -> None:
        with contextlib.suppress(SystemExit):  # a failed start is noticed below, by the end of the thread
            server.run([listening])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, name="ws_chat server", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("The application did not start: see its log.")
                time.sleep(POLL_INTERVAL)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
