"""Programs that the tests run: found, or named and skipped aloud; with CI set, a missing one is an error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from redis.asyncio import Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[1]
STARTED_WITH = dict(os.environ)
"""The environment of the tests, as it was given."""

# To read the system's certificates takes 25 ms, twice a test and in each program that is started, which was half of all
# that the tests took. None of them meets a server that they are for.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


def need(program: str) -> str:
    """Return the path of a program."""
    path = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        lacking(f"{program} is not installed")
    return path


def lacking(message: str) -> NoReturn:
    """Skip a test aloud, because of a program; with CI set, fail it."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def environment(**variables: str) -> dict[str, str]:
    """Return an environment without any setting of ours but these, with the programs of this virtual environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WS_CHAT_", "OPENAI_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **variables}


async def output(*command: str, **variables: str) -> tuple[int, bytes, bytes]:
    """Run a program to its end; return its status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, out, err


class Running:
    """A server in a process of its own: its log so far, and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""

    async def until_logged(self, pattern: str) -> re.Match[str]:
        """Read the log until something in it matches."""
        assert self.process.stderr
        try:
            async with asyncio.timeout(60):
                while not (match := re.search(pattern, self.log)):
                    line = await self.process.stderr.readline()
                    assert line, self.log
                    self.log += line.decode()
        except TimeoutError:
            raise AssertionError(f"{pattern!r} was never logged:\n{self.log}") from None
        return match

    async def port(self) -> int:
        """Wait until it takes connections, and return the port."""
        port = int((await self.until_logged(r"running on https?://127\.0\.0\.1:(\d+)"))[1])
        await self.until_logged("Application startup complete")
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return port
                await asyncio.sleep(0.01)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


class RedisServer:
    """A Redis of its own, which keeps nothing on disk."""

    def __init__(self, *options: str) -> None:
        self._program = need("redis-server")
        self._options = options
        self._folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, empty, where it was before; wait until it answers."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", self._folder.name, "--repl-diskless-sync-delay", "0"]
        self.process = await asyncio.create_subprocess_exec(*command, *self._options, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.01)

    def pause(self, *, over: bool = False) -> None:
        """Let it answer nothing, or go on."""
        assert self.process
        self.process.send_signal(signal.SIGCONT if over else signal.SIGSTOP)

    async def stop(self) -> None:
        """Stop it, if it runs."""
        if self.process:
            self.process.kill()
            await self.process.wait()
            self.process = None

    async def remove(self) -> None:
        """Stop it for good."""
        await self.stop()
        self._folder.cleanup()


@contextlib.asynccontextmanager
async def redis_server(*options: str) -> AsyncIterator[RedisServer]:
    """Run a Redis with these options until the block ends."""
    server = RedisServer(*options)
    await server.start()
    try:
        yield server
    finally:
        await server.remove()


@contextlib.asynccontextmanager
async def redis_cluster(*, spares: int = 0) -> AsyncIterator[list[RedisServer]]:
    """Run a Redis Cluster of three primaries, with so many replicas each, until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for _ in range(3 * (1 + spares)):
            mode = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2500", "--cluster-port", str(free_port()))
            servers.append(await stack.enter_async_context(redis_server(*mode)))
        places = [f"127.0.0.1:{server.port}" for server in servers]
        options = ("--cluster-replicas", str(spares), "--cluster-yes")
        status, out, _ = await output(need("redis-cli"), "--cluster", "create", *places, *options)
        assert status == 0, out.decode()
        for server in servers:
            async with Redis.from_url(server.url) as node:
                while b"cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
                    await asyncio.sleep(0.05)
                while (await node.info("replication")).get("master_link_status", "up") != "up":
                    await asyncio.sleep(0.05)
        yield servers


@contextlib.asynccontextmanager
async def program(*command: str, **variables: str) -> AsyncIterator[Running]:
    """Run a server until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(**variables), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    running = Running(process)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(30):
            assert process.stderr
            running.log += (await process.stderr.read()).decode()
            await process.wait()
