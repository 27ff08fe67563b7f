"""The example of replicas, by the two commands that are in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import sys

import pytest
from redis.asyncio import Redis
from support.blocks import claim_one
from support.processes import ROOT, environment, free_port, need, output, program
from support.replicas import setting
from support.waiting import until

from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

HERE = ROOT / "examples/replicas"
SHOWN = claim_one("docs/deployment.md", "console", "examples/replicas")
LEASE = 600_000
HELD = {
    "redis.connection.TIMEOUT": 600,
    "redis.log.END_TIMEOUT": 600,
    "redis.store.GET_TIMEOUT": 600,
    "redis.store.LEASE": LEASE,
    "redis.store.RENEWAL": 0.2,
    "redis.store.STEADY": 0.0,
}
"""No replica is taken for dead because the machine is slow."""
WORDS = [f"{number} " for number in range(20)]  # more than are read before a replica is killed


async def test_answers_survive_replicas(tmp_path, fake):
    for name in ("nginx", "redis-server"):
        need(name)
    go = asyncio.Event()
    beginning = text(*WORDS)[:-3]
    fake.reply([*beginning, Wait(go), *text("The end.")])
    fake.reply([*beginning, Hang()])
    fake.default = Reply(text("The end."))
    site, one, other, redis_port = ports = [free_port() for _ in range(4)]
    folder = tmp_path / "run"
    variables = {"PORT": str(site), "REPLICAS": f"{one} {other}", "REDIS_PORT": str(redis_port), "FOLDER": str(folder)}
    variables |= {"WS_CHAT_UPSTREAM": "openai", "OPENAI_BASE_URL": fake.base_url, **setting(HELD)}
    async with program("bash", "-c", f'exec "{HERE}/run.sh" >&2', **variables) as running:
        logged = await running.until_logged(r".* is ready: .*")
        shown = re.escape(SHOWN.splitlines()[1])
        assert re.fullmatch(re.sub(r"\d+", r"\\d+", shown).replace("/tmp/ws\\-chat\\-replicas", ".*"), logged[0])
        status, out, err = await output("bash", str(HERE / "run.sh"), **variables)
        assert (status, out) == (1, b"")
        assert f"port {site} is in use" in err.decode()
        watching = (str(HERE / "watch.py"), "--url", f"http://127.0.0.1:{site}", "--folder", str(folder))
        status, said = await watched(*watching, go=go, redis_port=redis_port)
        assert status == 0, said
        assert said.count("The end.") == 2, said
        assert "generation_lost, retryable: True" in said
        running.process.send_signal(signal.SIGINT)
        assert await running.process.wait() == 0
    assert not folder.exists()
    for port in ports:
        with contextlib.closing(socket.socket()) as probe:
            assert probe.connect_ex(("127.0.0.1", port)), "nothing is left behind"


async def watched(*watching: str, go: asyncio.Event, redis_port: int) -> tuple[int, str]:
    """Watch; return the exit status and what was printed.

    The first kill lets the answer go on; with the second, the lease of the replica lapses.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *watching),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    said = ""
    try:
        while line := (await process.stdout.readline()).decode():
            said += line
            if said.count("is no more") == 1:
                go.set()
            elif "is no more" in line:
                await lapse(redis_port)
        return await process.wait(), said
    finally:
        if process.returncode is None:
            process.kill()


async def lapse(redis_port: int) -> None:
    """Let the leases of those replicas lapse that do not renew them."""
    async with Redis.from_url(f"redis://127.0.0.1:{redis_port}") as redis:
        for name in await redis.keys("*:lease"):
            await redis.pexpire(name, LEASE // 2)

        async def both_live() -> list[bytes]:
            """Return the leases of the dead, once those of two replicas have been renewed."""
            leases = await redis.keys("*:lease")
            dead = [name for name in leases if await redis.pttl(name) <= LEASE // 2]
            return dead if len(leases) - len(dead) == 2 else []

        await redis.delete(*await until(both_live, "two replicas to renew their leases"))
