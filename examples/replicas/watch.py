#!/usr/bin/env python3
"""Watch an answer survive: first the replica that a reader is on is killed, then the one that produces it.

python examples/replicas/watch.py, while examples/replicas/run.sh runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

QUESTION = [{"role": "user", "content": "Who says this?"}]
MIDDLE = 15
"""After so many deltas the blow falls."""
PATIENCE = 60
"""Seconds for a replica to be there (again)."""


class Site:
    """What stands behind nginx: sockets to it, and the replicas' process ids."""

    def __init__(self, url: str, folder: Path, model: str) -> None:
        self._url = url.replace("http", "ws", 1) + "/v1/chat/ws"
        self._folder = folder
        self.model = model

    async def socket(self, *, besides: str | None = None) -> tuple[ClientConnection, str]:
        """Return a socket, and the replica that nginx has chosen for it; with `besides` another one than that."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    socket = await connect(self._url, max_queue=None)  # that of the asker is not read
                except (OSError, WebSocketException):
                    await asyncio.sleep(0.1)
                    continue
                headers = socket.response.headers if socket.response else {}
                replica = headers["X-Replica"].split(", ")[-1]  # those before did not answer
                if replica != besides:
                    return socket, replica
                await socket.close()
                await asyncio.sleep(0.1)

    async def both(self) -> tuple[tuple[ClientConnection, str], tuple[ClientConnection, str]]:
        """Return a socket to each replica, when both are there."""
        one, replica = await self.socket()
        return (one, replica), await self.socket(besides=replica)

    def kill(self, replica: str) -> None:
        """Kill a replica: it has no time to say anything."""
        if self._folder.stat().st_uid != os.getuid():
            sys.exit(f"{self._folder} is somebody else's")
        pid = int((self._folder / f"{replica.rpartition(':')[2]}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        tell(f"kill -9 {pid}: the replica {replica} is no more")


@dataclass
class Answer:
    """An answer as its reader has it: after `seq`, to its end or the refusal to go on."""

    site: Site
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    seq: int = 0
    epoch: str | None = None
    end: dict[str, Any] | None = None

    async def ask(self, socket: ClientConnection, replica: str) -> None:
        """Ask for it."""
        await socket.send(json.dumps({"messages": QUESTION, "id": self.id, "model": self.site.model}))
        self.epoch = json.loads(await socket.recv()).get("epoch")
        tell(f"{replica} produces {self.id}")

    async def follow(self, socket: ClientConnection, replica: str) -> None:
        """Ask for the rest of it."""
        frame = {"type": "resume", "id": self.id, "after": self.seq, "epoch": self.epoch}
        await socket.send(json.dumps(frame))
        tell(f"a reader on {replica}, after seq {self.seq}")

    async def read(self, socket: ClientConnection, until: int | None = None) -> None:
        """Print text as it comes, to the seq `until`, the end, or that of the connection."""
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                frame = json.loads(message)
                if frame["type"] == "token":
                    self.seq = frame["seq"]
                    print(frame.get("content", ""), end="", flush=True)
                    if until and self.seq >= until:
                        return
                elif frame["type"] in {"done", "error"}:
                    self.end = frame
                    return


def tell(text: str) -> None:
    """Print what happens, apart from what is answered."""
    print(f"\n\033[2m[{text}]\033[0m", flush=True)


async def kill_the_readers_replica(site: Site) -> bool:
    """Kill the replica that a reader is on, and read on at the other one."""
    print("\n1. The replica that a reader is on is killed.")
    (asked, producer), (socket, replica) = await site.both()
    answer = Answer(site)
    await answer.ask(asked, producer)
    await answer.follow(socket, replica)
    await answer.read(socket, MIDDLE)
    site.kill(replica)
    await answer.read(socket)
    while answer.end is None:
        socket, replica = await site.socket()
        await answer.follow(socket, replica)
        await answer.read(socket)
    tell(f"{answer.end['type']}: {answer.seq} deltas, each once")
    await asked.close()
    return answer.end["type"] == "done" and answer.end["seq"] == answer.seq + 1


async def kill_the_producer(site: Site) -> bool:
    """Kill the replica that produces an answer: what it had logged is read, the loss is told, and it is asked again."""
    print("\n2. The replica that produces the answer is killed.")
    (asked, producer), (socket, replica) = await site.both()
    lost = Answer(site)
    await lost.ask(asked, producer)
    await lost.follow(socket, replica)
    await lost.read(socket, MIDDLE)
    site.kill(producer)
    await lost.read(socket)
    error = (lost.end or {}).get("error", {})
    tell(f"{error.get('code')}, retryable: {error.get('retryable')}. So it is asked for once more, under another id")
    again = Answer(site)
    await again.ask(socket, replica)
    await again.read(socket)
    return error.get("code") == "generation_lost" and again.end is not None and again.end["type"] == "done"


async def watch(site: Site) -> int:
    """Play both acts; return the exit status."""
    survived = await kill_the_readers_replica(site) and await kill_the_producer(site)
    tell("that was all" if survived else "that is not how it should end")
    return 0 if survived else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir(), "ws-chat-replicas"), help="that of run.sh"
    )
    parser.add_argument("--model", default="demo-slow", help="a demo model that takes its time")
    options = parser.parse_args()
    try:
        return asyncio.run(watch(Site(options.url, options.folder, options.model)))
    except (TimeoutError, FileNotFoundError):
        print(f"{options.url} does not answer, or was not started by run.sh", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    return 1


if __name__ == "__main__":
    sys.exit(main())
