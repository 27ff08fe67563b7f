"""Programs that the tests run. A missing one skips its tests with a message; with CI set, it fails them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
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
from support.waiting import LIMIT, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
STARTED_WITH = dict(os.environ)
"""The environment of the tests, as it was given."""

# Reading the system's certificates takes 25 ms, twice in each test and in each program: half of the tests' time. No test
# needs them.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


def need(program: str) -> str:
    """Return the path of a program."""
    path = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        lacking(f"{program} is not installed")
    return path


def lacking(message: str) -> NoReturn:
    """Skip a test with this message; with CI set, fail it."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


_STATE = tempfile.TemporaryDirectory(prefix="ws-chat-tests-")  # for what programs keep between two runs


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with only these settings of ours, and with the programs of this virtual environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WS_CHAT_", "OPENAI_"))}
    own = {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "XDG_STATE_HOME": _STATE.name}
    return {**kept, **own, **variables}


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
        """Read the log until something in it matches. A test that is ended meanwhile prints the log so far."""
        assert self.process.stderr
        try:
            while not (match := re.search(pattern, self.log)):
                line = await self.process.stderr.readline()
                assert line, f"the program ended before it logged {pattern!r}. Its log:\n{self.log}"
                self.log += line.decode()
        except asyncio.CancelledError:
            print(f"{pattern!r} has not been logged. The log so far:\n{self.log}")
            raise
        return match

    async def port(self) -> int:
        """Wait until it accepts connections, and return the port."""
        port = int((await self.until_logged(r"running on https?://127\.0\.0\.1:(\d+)"))[1])
        await self.until_logged("Application startup complete")
        await until(lambda: listens(port), f"a server to listen on port {port}")
        return port


async def listens(port: int) -> bool:
    """Return whether a server accepts connections on a port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def free_port() -> int:
    """Return a port that is not in use, outside the range from which the system takes the ports of connections.

    From that range, another connection could take it before the server is started on it, or while it is restarted.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class RedisServer:
    """A Redis of its own, which keeps nothing on disk unless an option says so."""

    def __init__(self, *options: str) -> None:
        self._program = need("redis-server")
        self._options = options
        self._folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: asyncio.subprocess.Process | None = None
        self.environment: dict[str, str] = {}
        """Variables that it gets besides those of this process."""

    async def start(self) -> None:
        """Start it on the same port, with what is on its disk; wait until it answers."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", self._folder.name, "--repl-diskless-sync-delay", "0"]
        process = await asyncio.create_subprocess_exec(
            *command, *self._options, env={**os.environ, **self.environment}, stdout=asyncio.subprocess.DEVNULL
        )
        self.process = process

        async def started() -> bool:
            assert process.returncode is None, f"redis-server has ended with status {process.returncode}: {command}"
            return await listens(self.port)

        await until(started, f"Redis to listen on port {self.port}")

    def pause(self, *, over: bool = False) -> None:
        """Stop answering, or continue (`over`)."""
        assert self.process
        self.process.send_signal(signal.SIGCONT if over else signal.SIGSTOP)

    async def stop(self) -> None:
        """Stop it, if it runs."""
        if self.process:
            self.process.kill()
            await self.process.wait()
            self.process = None

    def empty(self) -> None:
        """Remove what is on its disk, while it does not run."""
        for entry in Path(self._folder.name).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

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
    """Run a Redis Cluster of three primaries, with so many replicas each, until the block ends.

    It never fails over by itself: a busy machine could make it take a node for dead that lives.
    """
    never = ("--cluster-replica-no-failover", "yes", "--cluster-node-timeout", "600000")
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for _ in range(3 * (1 + spares)):
            mode = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *never)
            servers.append(await stack.enter_async_context(redis_server(*mode)))
        places = [f"127.0.0.1:{server.port}" for server in servers]
        options = ("--cluster-replicas", str(spares), "--cluster-yes")
        status, out, _ = await output(need("redis-cli"), "--cluster", "create", *places, *options)
        assert status == 0, out.decode()
        for server in servers:
            async with Redis.from_url(server.url) as node:

                async def ready(node: Redis = node) -> bool:
                    link = (await node.info("replication")).get("master_link_status", "up")
                    return link == "up" and b"cluster_state:ok" in await node.execute_command("CLUSTER", "INFO")

                await until(ready, f"the node on port {server.port} to be part of the cluster")
        yield servers


async def take_over(dead: RedisServer, nodes: list[RedisServer]) -> None:
    """Make the replica of a primary that was stopped a primary, as an election in the cluster would."""
    for node in nodes:
        if node is not dead:
            async with Redis.from_url(node.url) as redis:
                role = await redis.info("replication")
                if role.get("master_port") == dead.port:
                    await redis.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
                    return
    raise AssertionError(f"no node is a replica of the one on port {dead.port}")


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
        try:
            async with asyncio.timeout(LIMIT):
                assert process.stderr
                running.log += (await process.stderr.read()).decode()
                await process.wait()
        except TimeoutError:
            process.kill()
            raise AssertionError(f"{command} does not end after SIGTERM. Its log:\n{running.log}") from None
        print(f"The log of {command[0]}:\n{running.log}")  # shown with a test that fails
