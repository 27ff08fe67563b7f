"""An application on a free port, for tests that talk to it as its users do."""

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

POLL: Final = 0.01


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Run an application until the block ends, as `ws-chat serve` does, in a thread of its own; yield its URL.

    Leaving the block drains it, for as long as its settings say: `drain_timeout=0` waits for nothing. Raises
    RuntimeError where it does not start.
    """
    settings = Settings.from_environment({})
    chosen = uvicorn_config(settings, ServeOptions()) | {"log_config": None, "access_log": False, "lifespan": "on"}
    server = Server(uvicorn.Config(app, **chosen))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_run, args=(server, listening), name="ws_chat server", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("The application did not start: its log tells why.")
                time.sleep(POLL)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _run(server: Server, listening: socket.socket) -> None:
    with contextlib.suppress(SystemExit):  # it did not start, which is seen by the end of the thread
        server.run([listening])
