"""The Dockerfile, as far as it goes without Docker: what it copies is there, its commands are run outside of an image.

They are run as they stand, with paths below a temporary folder, and in the order of the file. Only pip is replaced by
uv where that is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import httpx
import pytest
from support.processes import ROOT, STARTED_WITH, Running, environment, free_port, lacking
from support.service import HELLO

pytestmark = pytest.mark.anyio

TEXT = (ROOT / "Dockerfile").read_text()
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text().split()
ENVIRONMENT = {**STARTED_WITH, "UV_SYSTEM_CERTS": "1"}
if ENVIRONMENT.get("SSL_CERT_DIR") == str(ROOT / "tests/support"):
    # A worker of pytest-xdist is started with what processes.py has set: a folder without certificates.
    del ENVIRONMENT["SSL_CERT_DIR"]


def the(instruction: str) -> list[str]:
    """Return the arguments of all instructions of that name."""
    return [given for name, given in STEPS if name == instruction]


def command(given: str) -> list[str]:
    """Return a command in exec form: without a shell, which would keep signals for itself."""
    words = json.loads(given[given.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return words


def test_it_is_slim_and_does_not_run_as_root():
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}
    assert {name for name, _ in STEPS} <= known
    assert all(re.fullmatch(r"python:3\.\d+-slim( AS build)?", image) for image in the("FROM"))
    last = STEPS[max(place for place, (name, _) in enumerate(STEPS) if name == "FROM") :]
    (user,) = [given for name, given in last if name == "USER"]
    assert int(user.split(":")[0]) > 0, "Kubernetes's runAsNonRoot needs a number"
    assert (the("STOPSIGNAL"), the("EXPOSE")) == (["SIGTERM"], ["8000"])
    assert not [given for name, given in last if name == "RUN"]


def test_what_is_copied_is_there_and_not_ignored():
    allowed = {entry.removeprefix("!") for entry in IGNORED if entry.startswith("!")}
    copied = {source for given in the("COPY") if "--from" not in given for source in given.split()[:-1]}

    assert IGNORED[0] == "*"
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


async def run(words: list[str], folder: Path) -> str:
    """Run a command that must succeed; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if b"Temporary failure in name resolution" in out or b"Network is unreachable" in out:
        lacking("no package index can be reached")
    text = out.decode()
    assert process.returncode == 0, "\n".join([" ".join(words), *text.splitlines()[-30:]])
    return text


async def build(words: list[str], folder: Path) -> None:
    """Run a command of the build, by uv where it is installed: pip needs twenty seconds for the same."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    match words:
        case ["python", "-m", "venv", path] if uv:
            words = [sys.executable, "-m", "venv", "--without-pip", path]
        case ["python", *arguments]:
            words = [sys.executable, *arguments]
        case [pip, "install", "--no-cache-dir", *arguments] if uv and pip.endswith("/bin/pip"):
            words = [uv, "pip", "install", "--python", str(Path(pip).with_name("python")), *arguments]
    printed = await run(words, folder)
    for warning in ("does not provide the extra", "does not have an extra"):  # pip's, uv's
        assert warning not in printed


@pytest.fixture
async def opt(tmp_path):
    """Run the build; return what stands for /opt in it."""
    opt, source = tmp_path / "opt", tmp_path / "src"
    source.mkdir()
    for given in the("COPY"):
        if "--from" not in given:
            *copied, target = given.split()
            for name in copied:
                path = ROOT / name
                if path.is_dir():
                    shutil.copytree(path, source / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, source / target)
    for given in the("RUN"):
        await build([word.replace("/opt/", f"{opt}/") for word in command(given)], source)
    return opt


async def test_what_it_builds_serves_is_healthy_and_drains(opt, tmp_path):
    port = free_port()
    (path,) = [given.removeprefix("PATH=").removesuffix(":$PATH") for given in the("ENV")]
    folder = path.replace("/opt/", f"{opt}/")
    program, *arguments = command(the("ENTRYPOINT")[0])
    asked, *how = command(the("HEALTHCHECK")[0])
    assert how[-1].count("timeout=2") == 1
    how[-1] = how[-1].replace("8000", str(port)).replace("timeout=2", "timeout=600")  # on a busy machine, 2 s may pass
    check = [f"{folder}/{asked}", *how]
    env = {**environment(), "PATH": f"{folder}:{os.environ['PATH']}", "WS_CHAT_UPSTREAM": "demo"}
    assert arguments[-2:] == ["--host", "0.0.0.0"], "in a container, the address of all"
    local = [*arguments[:-1], "127.0.0.1", "--port", str(port)]
    server = await asyncio.create_subprocess_exec(
        f"{folder}/{program}", *local, cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE
    )
    running = Running(server)
    try:
        await running.until_logged("Application startup complete")
        await run(check, tmp_path)
        async with httpx.AsyncClient(timeout=None) as client:
            url = f"http://127.0.0.1:{port}/v1/chat/stream"
            answered = await client.post(url, json={"messages": HELLO, "model": "demo-fast"})
        assert "[DONE]" in answered.text
        server.send_signal(signal.SIGTERM)
        await running.until_logged("waiting for running answers")
        assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()

    dead = await asyncio.create_subprocess_exec(*check, stderr=asyncio.subprocess.DEVNULL)
    assert await dead.wait() != 0, "a server that is gone is not healthy"
