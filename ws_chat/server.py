"""Run the application under uvicorn, with the settings that suit long answers on many connections."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from ws_chat.doors.outlet import DRAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from ws_chat.settings import Settings

logger = logging.getLogger("ws_chat.server")

SHUTDOWN_TIMEOUT: Final = 5
"""Seconds in which the last frames must leave when what ran has ended; a second signal does not wait for them."""

TWICE: Final = 1.0
"""Seconds after which a signal that comes again is meant: one to the whole group of processes reaches workers twice."""

ACCEPTED: Final = 0.5
"""Seconds in which the first request of a connection comes that was accepted just before a worker retires."""

STARTED: Final = 30
"""Seconds in which a new worker serves, and in which any worker answers to its parent that it does not hang."""

RETIRE: Final = signal.SIGUSR1
"""Ends one worker of several. SIGTERM ends them all."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where and how to listen: what `ws-chat serve` takes as options."""

    app: str = "ws_chat.app:app"
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
    config = uvicorn.Config(binding.app, **options(settings, binding))
    with _own_socket_file(binding.uds):
        if config.workers > 1:
            if not settings.redis_urls:
                logger.warning(
                    "Each worker keeps its own generations: one that is named is resumed only where it runs."
                )
            with tempfile.TemporaryDirectory(prefix="ws_chat-") as folder:
                os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
                Supervisor(config, [config.bind_socket()]).run()
            return
        server = Server(config)
        server.run()
        if not server.started:
            sys.exit(STARTUP_FAILURE)


class Server(uvicorn.Server):
    """Ends what runs before its connections are closed: uvicorn would close them at once.

    Until then it goes on listening, so that who comes is told to go elsewhere. The same signal again ends it at once.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._signals: dict[int, float] = {}  # when each came first

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        forced = self.force_exit
        super().handle_exit(sig, frame)  # for which any SIGINT after another signal is meant
        now = time.monotonic()
        self.force_exit = forced or now - self._signals.setdefault(sig, now) > TWICE

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        if self.config.workers > 1:
            signal.signal(RETIRE, self.handle_exit)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # meant for the parent, though the whole group may get it
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        if RETIRE in self._signals and self.config.workers > 1:
            for server in self.servers:  # the others serve the address
                server.close()
            await asyncio.sleep(ACCEPTED)
        if drain := self.lifespan.state.get(DRAIN):
            logger.info("Draining: what runs may end, nothing new is taken. The same signal again ends it at once.")
            draining = asyncio.ensure_future(drain())
            while not draining.done() and not self.force_exit:
                await asyncio.wait({draining}, timeout=0.1)
            draining.cancel()
            await asyncio.wait({draining}, timeout=1)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would break off the application instead, with a traceback
            await self.lifespan.shutdown()
        self._captured_signals.clear()  # to have done what they asked for is no failure


class _Worker(multiprocess.Process):
    """One of several processes that serve one address."""

    @property
    def server(self) -> uvicorn.Server:
        """The server that runs in it."""
        if self._server is None:
            self._server = Server(self.config)
        return self._server

    def terminate(self) -> None:
        """End it while others go on: it takes no new connections."""
        self.send(RETIRE)

    def send(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)


class Supervisor(multiprocess.Multiprocess):
    """Runs workers. SIGHUP replaces them one by one; SIGTERM drains them all, and again ends them at once."""

    processes: list[_Worker]  # type: ignore[assignment]  # more than uvicorn's

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        multiprocess.Process = _Worker  # type: ignore[misc]  # the only way to run another Server in them
        self._retired: list[_Worker] = []

    @property
    def _ending(self) -> bool:
        """Whether a signal waits that ends everything."""
        return bool({signal.SIGTERM, signal.SIGINT} & set(self.signal_queue))

    def restart_all(self) -> None:
        """Replace each worker by one that serves already. The old ones drain meanwhile, and no signal waits."""
        for place, old in enumerate(self.processes):
            if self._ending:
                return
            new = _Worker(self.config, self.sockets)
            new.start()
            deadline = time.monotonic() + STARTED
            while new.process.is_alive() and not self._ending and time.monotonic() < deadline:
                if new.wait_until_ready(1):
                    break
            else:
                new.kill()
                new.join()
                if not self._ending:
                    logger.error("A new worker did not start: the old ones go on.")
                return
            self.processes[place] = new
            old.terminate()
            self._retired = [worker for worker in (*self._retired, old) if worker.process.is_alive()]

    def terminate_all(self) -> None:
        """Let all of them drain."""
        for worker in (*self.processes, *self._retired):
            worker.send(signal.SIGTERM)

    def join_all(self) -> None:
        """Wait for their ends, and pass on what signals come meanwhile."""
        while any(worker.process.is_alive() for worker in (*self.processes, *self._retired)):
            time.sleep(0.05)
            if not any(worker.process.is_alive() for worker in self.processes):
                for listening in self.sockets:  # nobody takes connections any more: they shall not wait for it
                    listening.close()
            if self.signal_queue:
                self.signal_queue.clear()
                self.terminate_all()


def options(settings: Settings, binding: Binding) -> dict[str, Any]:
    """Return the keyword arguments of `uvicorn.run` and `uvicorn.Config`."""
    log_config = copy.deepcopy(LOGGING_CONFIG)
    log_config["loggers"]["ws_chat"] = {
        "handlers": ["default"],
        "level": binding.log_level.upper(),
        "propagate": False,
    }
    if not sys.stderr.isatty():  # a program reads it
        formatter = {"()": "ws_chat.observers.logs.JSONFormatter"}
        log_config["formatters"] = {name: formatter for name in log_config["formatters"]}  # noqa: C420
    return {
        "host": binding.host,
        "port": binding.port,
        "uds": binding.uds,
        "workers": binding.workers,
        "log_level": binding.log_level,
        "log_config": log_config,
        "ssl_keyfile": binding.ssl_keyfile,
        "ssl_certfile": binding.ssl_certfile,
        "forwarded_allow_ips": binding.forwarded_allow_ips,
        "root_path": binding.root_path,
        "http": "ws_chat.protocols.http:DirectHTTPProtocol",
        "ws": "ws_chat.protocols.websocket:DirectWebSocketProtocol",
        "ws_max_size": settings.max_frame_bytes,
        # Tokens are a few bytes each: compressing them costs more CPU and memory than it saves on the wire.
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": SHUTDOWN_TIMEOUT,
        # A worker that does not answer in time is killed, with all that runs in it.
        "timeout_worker_healthcheck": STARTED,
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
