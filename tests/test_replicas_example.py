"""The example of replicas, by the two commands that are in it."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys

import pytest
from blocks import claim_one
from processes import ROOT, free_port, need, output, program

pytestmark = pytest.mark.anyio

HERE = ROOT / "examples/replicas"
SHOWN = claim_one("docs/deployment.md", "console", "examples/replicas")


async def test_answers_survive_replicas(tmp_path):
    for name in ("nginx", "redis-server"):
        need(name)
    site, one, other, redis = ports = [free_port() for _ in range(4)]
    folder = tmp_path / "run"
    variables = {"PORT": str(site), "REPLICAS": f"{one} {other}", "REDIS_PORT": str(redis), "FOLDER": str(folder)}
    async with program("bash", "-c", f'exec "{HERE}/run.sh" >&2', **variables) as running:
        told = await running.until_logged(r".* is ready: .*")
        shown = re.escape(SHOWN.splitlines()[1])
        assert re.fullmatch(re.sub(r"\d+", r"\\d+", shown).replace("/tmp/ws\\-chat\\-replicas", ".*"), told[0])
        status, out, err = await output("bash", str(HERE / "run.sh"), **variables)
        assert (status, out) == (1, b"")
        assert f"port {site} is in use" in err.decode()
        watching = (str(HERE / "watch.py"), "--url", f"http://127.0.0.1:{site}", "--folder", str(folder))
        status, out, err = await output(sys.executable, *watching, "--model", "demo-reasoning")
        assert status == 0, out.decode() + err.decode()
        assert out.decode().count("and a real model answers here.") == 2
        assert out.decode().count("is no more") == 2
        assert "generation_lost, retryable: True" in out.decode()
        running.process.send_signal(signal.SIGINT)
        assert await running.process.wait() == 0
    assert not folder.exists()
    for port in ports:
        with contextlib.closing(socket.socket()) as probe:
            assert probe.connect_ex(("127.0.0.1", port)), "nothing is left behind"
