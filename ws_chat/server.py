"""Run the application under uvicorn, with the settings that suit long answers on many connections."""

from __future__ import annotations

import contextlib
import copy
import resource
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ws_chat.settings import Settings

SHUTDOWN_TIMEOUT: Final = 5
"""Seconds that running requests may take to end after the first signal; a second signal does not wait for them."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where and how to listen: what `ws-chat serve` takes as options."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    workers: int = 1
    log_level: str = "info"
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    forwarded_allow_ips: str | None = None
    root_path: str = ""


def run(settings: Settings, binding: Binding) -> None:
    """Serve until a signal ends it. Exits the process with a status of uvicorn's when it cannot listen."""
    _raise_file_limit()
    with _own_socket_file(binding.uds):
        uvicorn.run("ws_chat.app:app", **options(settings, binding))


def options(settings: Settings, binding: Binding) -> dict[str, Any]:
    """Return the keyword arguments of `uvicorn.run` and `uvicorn.Config`."""
    logging = copy.deepcopy(LOGGING_CONFIG)
    logging["loggers"]["ws_chat"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return {
        "host": binding.host,
        "port": binding.port,
        "uds": binding.uds,
        "workers": binding.workers,
        "log_level": binding.log_level,
        "log_config": logging,
        "ssl_keyfile": binding.ssl_keyfile,
        "ssl_certfile": binding.ssl_certfile,
        "forwarded_allow_ips": binding.forwarded_allow_ips,
        "root_path": binding.root_path,
        "http": "ws_chat.protocols:DirectHTTPProtocol",
        "ws": "ws_chat.protocols:DirectWebSocketProtocol",
        "ws_max_size": settings.max_frame_bytes,
        # Tokens are a few bytes each: compressing them costs more CPU and memory than it saves on the wire.
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": SHUTDOWN_TIMEOUT,
    }


@contextlib.contextmanager
def _own_socket_file(path: str | None) -> Iterator[None]:
    """Refuse a socket file that a running server listens on, which uvicorn would take from it; remove ours at the end.

    Exits with a message when it cannot be used.
    """
    if path is None:
        yield
        return
    if not Path(path).absolute().parent.is_dir():
        sys.exit(f"ws-chat: there is no folder for the socket {path}")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe, contextlib.suppress(OSError):
        probe.connect(path)
        sys.exit(f"ws-chat: a server is running on {path}")
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)


def _raise_file_limit() -> None:
    """Let this process have as many sockets as the system allows it: each generation may need two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a limit that cannot be raised is the operator's choice
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
