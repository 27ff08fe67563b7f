"""`ws-chat` in a process of its own that starts at once: forked from one that has imported everything already.

Starting Python and importing the program takes most of the time of such a test. A forked process has arguments, an
environment, signals, standard streams and an exit status of its own, like any other process. Other tests start the
command without forking.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = ("ws_chat.__main__", "ws_chat.terminal.main", "ws_chat.terminal.chat", "ws_chat.terminal.local")
PIPE = asyncio.subprocess.PIPE


class Process:
    """A process, with as much of `asyncio.subprocess.Process` as tests need."""

    def __init__(self, connection: socket.socket) -> None:
        self.pid = int(connection.recv(20))
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._connection = connection
        self._pipes: list[asyncio.BaseTransport] = []
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(connection, self._end)

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def communicate(self, given: bytes | None = None) -> tuple[bytes, bytes]:
        if self.stdin and given is not None:
            self.stdin.write(given)
        if self.stdin:
            self.stdin.close()
        out, err = await asyncio.gather(_rest(self.stdout), _rest(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self._ended.done():
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close what is left of its pipes."""
        for pipe in self._pipes:
            pipe.close()

    async def _attach(self, pipes: Sequence[int | None]) -> None:
        """Make streams of our ends of the pipes to its standard streams."""
        loop = asyncio.get_running_loop()
        stdin, *outputs = pipes
        if stdin is not None:
            writing, protocol = await loop.connect_write_pipe(
                asyncio.streams.FlowControlMixin, os.fdopen(stdin, "wb", 0)
            )
            self.stdin = asyncio.StreamWriter(writing, protocol, None, loop)
            self._pipes.append(writing)
        for name, pipe in zip(("stdout", "stderr"), outputs, strict=True):
            if pipe is not None:
                reader = asyncio.StreamReader()
                protocol = asyncio.StreamReaderProtocol(reader)
                reading, _ = await loop.connect_read_pipe(lambda protocol=protocol: protocol, os.fdopen(pipe, "rb", 0))
                setattr(self, name, reader)
                self._pipes.append(reading)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._connection)
        with self._connection:
            self._ended.set_result(int(self._connection.recv(20)))


async def start(
    *command: str | bytes, env: dict[str, str], stdin: int, stdout: int, stderr: int, in_terminal: bool = False
) -> Process:
    """Start `ws-chat …` as `asyncio.create_subprocess_exec` does. `in_terminal`: standard input controls it."""
    ends: list[tuple[int, int | None]] = []  # of each standard stream: the process's end, and ours of a pipe
    for number, given in enumerate((stdin, stdout, stderr)):
        reading, writing = os.pipe() if given == PIPE else (given, given)
        theirs, ours = (reading, writing) if number == 0 else (writing, reading)
        ends.append((theirs, ours if given == PIPE else None))
    argv = [os.fsdecode(part) for part in command]
    request = {"argv": argv, "env": env, "cwd": str(Path.cwd()), "in_terminal": in_terminal}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_origin())
    socket.send_fds(connection, [json.dumps(request).encode()], [theirs for theirs, _ in ends])
    process = Process(connection)
    for theirs, ours in ends:
        if ours is not None:
            os.close(theirs)
    await process._attach([ours for _, ours in ends])
    return process


async def _rest(stream: asyncio.StreamReader | None) -> bytes:
    return await stream.read() if stream else b""


@functools.cache
def _origin() -> str:
    """Start the process from which all others are forked; return the path of its socket."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/origin"
    origin = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pipes: list[IO[bytes] | None] = [origin.stdin, origin.stdout]
    assert pipes[1]
    assert pipes[1].readline() == b"ready\n", "tests/support/forked.py has not started"

    def end() -> None:
        for pipe in pipes:
            assert pipe
            pipe.close()  # which ends the process
        origin.wait()
        folder.cleanup()

    atexit.register(end)
    return path


# What follows runs in the process that is forked.


def _serve(path: str) -> None:
    """Fork a process for each connection, until standard input ends; return in each of those."""
    for module in MODULES:
        __import__(module)
    gc.freeze()  # else each process collects all of it at its end, which takes longer than its work
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(path)
    listening.listen(100)
    os.write(1, b"ready\n")
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            _keep(connection)
            return
        connection.close()
        with contextlib.suppress(ChildProcessError):  # there is none any more
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _keep(connection: socket.socket) -> None:
    """Fork the requested process and return in it; its parent sends the pid, and the status at the end."""
    request, streams, _, _ = socket.recv_fds(connection, 1_000_000, 3)
    pid = os.fork()
    if not pid:
        connection.close()
        _become(json.loads(request), streams)
        return
    for descriptor in (*streams, 0, 1):
        os.close(descriptor)
    connection.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Make this process one that was started with these arguments, this environment and these streams."""
    if request["in_terminal"]:
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, mode, errors in (
        ("stdin", "r", sys.stdin.errors),
        ("stdout", "w", sys.stdin.errors),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = open(getattr(sys, name).fileno(), mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]


def _main() -> NoReturn:
    _serve(sys.argv[1])
    from ws_chat.__main__ import main

    sys.exit(main())


if __name__ == "__main__":
    _main()
