"""Run the application under uvicorn: our protocol classes, a drain before connections close, replacement of workers.

uvicorn itself closes every WebSocket with 1012 as soon as a signal arrives. `Server` drains first; `Supervisor` and
`_Worker` do that for several workers, and replace them without an interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from ws_chat.relay.access import is_loopback
from ws_chat.server.chat.sender import DRAIN, UNPROTECTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from ws_chat.server.settings import Settings

logger = logging.getLogger("ws_chat.server")

SHUTDOWN_TIMEOUT: Final = 5
"""Seconds to send the last frames after the drain. A second signal does not wait for them."""

REPEAT_INTERVAL: Final = 1.0
"""A repeat within this many seconds is a duplicate of the same signal: workers get one to the process group twice."""

LAST_REQUEST_TIMEOUT: Final = 0.5
"""Seconds for the first request of a connection that was accepted just before its worker retires."""

WORKER_TIMEOUT: Final = 30
"""Seconds for a new worker to start serving, and for any worker to answer its parent's health check."""

RETIRE: Final = signal.SIGUSR1
"""Stops one worker of several; SIGTERM stops all of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command-line options of `ws-chat serve`."""

    app: str = "ws_chat.app:app"
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    uds_mode: int = 0o600
    workers: int = 1
    log_level: str = "info"
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    forwarded_allow_ips: str | None = None
    root_path: str = ""


def run(settings: Settings, options: ServeOptions) -> None:
    """Serve until a signal. Exits the process with uvicorn's status when it cannot listen."""
    _check_certificate(options)
    _check_address(options)
    _raise_file_limit()
    config = uvicorn.Config(options.app, **uvicorn_config(settings, options))
    with _socket_file(options) as sockets:
        if config.workers > 1:
            if not settings.redis_urls:
                logger.warning(
                    "Workers do not share generations: each can be resumed on its own worker only. "
                    "Set WS_CHAT_REDIS_URL to share them."
                )
            with tempfile.TemporaryDirectory(prefix="ws_chat-") as folder:
                os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
                Supervisor(config, sockets or [config.bind_socket()]).run()
            return
        server = Server(config)
        server.run(sockets)
        if not server.started:
            sys.exit(STARTUP_FAILURE)


class Server(uvicorn.Server):
    """Drains before it closes connections. Meanwhile it keeps listening, to refuse new requests with `draining`.

    The same signal again, more than REPEAT_INTERVAL later, stops it at once.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._signals: dict[int, float] = {}  # the time of the first of each

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        forced = self.force_exit
        super().handle_exit(sig, frame)  # sets force_exit for any SIGINT after another signal
        now = time.monotonic()
        self.force_exit = forced or now - self._signals.setdefault(sig, now) > REPEAT_INTERVAL

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.workers > 1:
            signal.signal(RETIRE, self.handle_exit)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for the parent; a terminal sends it to the whole group
        await super().startup(sockets)
        if self.lifespan.state.get(UNPROTECTED) and not (self.config.uds or is_loopback(self.config.host)):
            logger.warning(
                "NO API KEYS: everybody who can connect to %s can use the model, at your expense. "
                "Set WS_CHAT_API_KEYS, or listen on 127.0.0.1.",
                self.config.host,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if RETIRE in self._signals and self.config.workers > 1:
            for server in self.servers:  # the other workers accept the connections
                server.close()
            await asyncio.sleep(LAST_REQUEST_TIMEOUT)
        if drain := self.lifespan.state.get(DRAIN):
            logger.info("Shutting down: waiting for running answers. Send the signal again to stop now.")
            draining = asyncio.ensure_future(drain())
            while not draining.done() and not self.force_exit:
                await asyncio.wait({draining}, timeout=0.1)
            draining.cancel()
            await asyncio.wait({draining}, timeout=1)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would cancel the lifespan instead, with a traceback
            await self.lifespan.shutdown()
        self._captured_signals.clear()  # uvicorn would raise them again: the exit status would be a failure


class _Worker(multiprocess.Process):
    """One of several processes that listen on the same address."""

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        # Before uvicorn starts the thread that answers health checks: it makes a server when there is none yet, and would
        # then report that one, which never starts, while another one serves.
        self._server = Server(self.config)
        super().target(sockets)

    def terminate(self) -> None:
        """Stop this worker while the others go on: it accepts no new connections."""
        self.send(RETIRE)

    def send(self, number: int) -> None:
        """Send a signal to the process if it is alive."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)


class Supervisor(multiprocess.Multiprocess):
    """Runs workers. SIGHUP replaces them one by one; SIGTERM drains them all, and stops them when sent again."""

    processes: list[_Worker]  # type: ignore[assignment]  # narrower than uvicorn's

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        multiprocess.Process = _Worker  # type: ignore[misc]  # the only way to run another Server in them
        self._retired: list[_Worker] = []

    @property
    def _stopping(self) -> bool:
        """Whether a signal that stops everything is in the queue."""
        return bool({signal.SIGTERM, signal.SIGINT} & set(self.signal_queue))

    def restart_all(self) -> None:
        """Replace each worker once its successor serves. The old ones drain meanwhile; signals are handled."""
        for place, old in enumerate(self.processes):
            if self._stopping:
                return
            new = _Worker(self.config, self.sockets)
            new.start()
            deadline = time.monotonic() + WORKER_TIMEOUT
            while new.process.is_alive() and not self._stopping and time.monotonic() < deadline:
                if new.wait_until_ready(1):
                    break
            else:
                new.kill()
                new.join()
                if not self._stopping:
                    logger.error("The new worker did not start; the old workers keep running.")
                return
            self.processes[place] = new
            old.terminate()
            self._retired = [worker for worker in (*self._retired, old) if worker.process.is_alive()]

    def terminate_all(self) -> None:
        for worker in (*self.processes, *self._retired):
            worker.send(signal.SIGTERM)

    def join_all(self) -> None:
        """Wait until all workers have ended; pass signals on to them meanwhile."""
        while any(worker.process.is_alive() for worker in (*self.processes, *self._retired)):
            time.sleep(0.05)
            if not any(worker.process.is_alive() for worker in self.processes):
                for listening in self.sockets:  # refuse connections that no worker would accept
                    listening.close()
            if self.signal_queue:
                self.signal_queue.clear()
                self.terminate_all()


def uvicorn_config(settings: Settings, options: ServeOptions) -> dict[str, Any]:
    """Return the keyword arguments of `uvicorn.Config`."""
    log_config = copy.deepcopy(LOGGING_CONFIG)
    log_config["loggers"]["ws_chat"] = {
        "handlers": ["default"],
        "level": options.log_level.upper(),
        "propagate": False,
    }
    log_config["filters"] = {"redact": {"()": "ws_chat.server.observers.logs.RedactQueries"}}
    for name in ("uvicorn.access", "uvicorn.error"):
        log_config["loggers"][name]["filters"] = ["redact"]
    if not sys.stderr.isatty():
        factory = "ws_chat.server.observers.logs.JSONFormatter"
        log_config["formatters"] = {name: {"()": factory} for name in log_config["formatters"]}
    given = dataclasses.asdict(options)
    del given["app"], given["uds_mode"]
    return {
        **given,
        "log_config": log_config,
        "http": "ws_chat.server.uvicorn_protocols.http:DirectHTTPProtocol",
        "ws": "ws_chat.server.uvicorn_protocols.websocket:DirectWebSocketProtocol",
        "ws_max_size": settings.max_frame_bytes,
        # Tokens are a few bytes each: compressing them costs more CPU and memory than it saves on the wire.
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": SHUTDOWN_TIMEOUT,
        "timeout_worker_healthcheck": WORKER_TIMEOUT,  # a worker that misses it is killed with its generations
    }


def _check_certificate(options: ServeOptions) -> None:
    """Exit with a message when the certificate cannot be loaded. uvicorn asks for the password of an encrypted key."""
    if options.ssl_certfile is None:
        if options.ssl_keyfile is not None:
            sys.exit("ws-chat: --ssl-keyfile needs --ssl-certfile, the file of the certificate")
        return
    for option, file in (("--ssl-certfile", options.ssl_certfile), ("--ssl-keyfile", options.ssl_keyfile)):
        if file is not None and not Path(file).is_file():
            sys.exit(f"ws-chat: there is no file {file} ({option})")
    encrypted = False

    def password() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password)
    except OSError as error:  # as ssl.SSLError is; none of them names the file
        if not encrypted:
            files = f"--ssl-certfile {options.ssl_certfile}"
            files += f" with --ssl-keyfile {options.ssl_keyfile}" if options.ssl_keyfile else ""
            sys.exit(f"ws-chat: cannot use {files}: {error}")


_ADDRESS_HINTS: Final = {
    errno.EADDRINUSE: "Choose another port with --port; `ss -ltnp sport = :{port}` shows the program that uses it",
    errno.EACCES: "Ports below 1024 need a privilege: choose another one with --port, or put a proxy in front",
    errno.EADDRNOTAVAIL: "--host must be an address of this machine",
    socket.EAI_NONAME: "--host must be an address of this machine",
}


def _check_address(options: ServeOptions) -> None:
    """Exit with a message and a hint when nothing can listen on the address; uvicorn gives no hint."""
    if options.uds is not None:
        return
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen()
    except OSError as error:
        if hint := _ADDRESS_HINTS.get(error.errno or 0):  # else uvicorn tries, and names the error
            place, hint = f"{options.host}:{options.port}", hint.format(port=options.port)
            sys.stderr.write(f"ws-chat: cannot listen on {place}: {error.strerror}. {hint}.\n")
            sys.exit(STARTUP_FAILURE)


@contextlib.contextmanager
def _socket_file(options: ServeOptions) -> Iterator[list[socket.socket] | None]:
    """Listen on the socket file, and remove it at the end; None if there is none.

    uvicorn would let every user of the machine connect to it, and replace that of a running server. Exits with a message
    if it cannot be used.
    """
    if (path := options.uds) is None:
        yield None
        return
    if not (parent := Path(path).absolute().parent).is_dir():
        sys.exit(f"ws-chat: cannot listen on --uds {path}: there is no folder {parent}")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe, contextlib.suppress(OSError):
        probe.connect(path)
        sys.exit(f"ws-chat: cannot listen on --uds {path}: a server is running there")
    listening = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o777 & ~options.uds_mode)  # not a chmod afterwards: meanwhile anybody could connect
    try:
        if Path(path).is_socket():
            Path(path).unlink()
        listening.bind(path)
        listening.listen()  # from now on a client waits, until the application has started
    except OSError as error:
        sys.exit(f"ws-chat: cannot listen on --uds {path}: {error}")
    finally:
        os.umask(umask)
    listening.set_inheritable(True)
    logging.getLogger("uvicorn.error").info("Uvicorn running on unix socket %s (Press CTRL+C to quit)", path)
    try:
        yield [listening]
    finally:
        Path(path).unlink(missing_ok=True)


def _raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: a generation may need two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not permitted: keep the lower limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
