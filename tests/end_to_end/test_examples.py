"""Every example, run by its real program against a running server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest
from support.processes import ROOT, environment, need, output
from support.service import events, joined

from ws_chat.testing import Hang, Reply, chunk, sse, text

pytestmark = pytest.mark.anyio

PROGRAMS = ("chat", "raw")


async def test_curl(service):
    need("curl")
    status, out, _ = await output(str(ROOT / "examples/curl.sh"), WS_CHAT_URL=service.url)

    assert (status, out) == (0, b"data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n")

    status, out, _ = await output(str(ROOT / "examples/curl.sh"), "why?", "frames", WS_CHAT_URL=service.url)

    assert status == 0
    assert [event["event"] for event in events(out)] == ["start", "token", "token", "done"]


@pytest.mark.parametrize("program", ["websocat", "wscat"])
async def test_terminal_clients(program, service, fake):
    need(program)
    status, out, err = await output(str(ROOT / f"examples/{program}.sh"), WS_CHAT_URL=service.url)

    frames = [json.loads(line) for line in out.splitlines()]
    assert status == 0, err
    assert [frame["type"] for frame in frames] == ["start", "token", "token", "done"]
    assert joined(frames) == "Hello"

    fake.default = Reply(text("a", finish_reason=None))
    status, out, _ = await output(str(ROOT / f"examples/{program}.sh"), WS_CHAT_URL=service.url)
    assert status == 1


@pytest.mark.parametrize("name", PROGRAMS)
async def test_python(name, service, fake):
    script = str(ROOT / f"examples/{name}.py")
    status, out, err = await output(sys.executable, script, "why?", "--model", "m-1", WS_CHAT_URL=service.url)

    assert (status, out, err) == (0, b"Hello\n", b"")
    assert fake.requests[0].body["messages"] == [{"role": "user", "content": "why?"}]
    assert fake.requests[0].body["model"] == "m-1"


async def test_python_over_a_network_that_breaks(serve):
    service = await serve(openai_api_key=None, openai_base_url=None)
    script = str(ROOT / "examples/survive.py")
    status, out, err = await output(sys.executable, script, "--url", service.ws_url, "--model", "demo", "why?")

    assert status == 0, err
    assert "You said: “why?”" in out.decode()
    assert out.decode().endswith("and a real model answers here.")
    assert b"broke" in err


async def test_python_over_a_network_shows_errors(serve, fake):
    script = str(ROOT / "examples/survive.py")
    status, out, err = await output(sys.executable, script, "--url", "ws://127.0.0.1:1")
    assert (status, out, err) == (1, b"", b"ws://127.0.0.1:1 cannot be reached\n")

    service = await serve()
    fake.default = Reply(text("a", finish_reason=None))
    status, out, err = await output(sys.executable, script, "--url", service.ws_url)
    assert (status, out) == (1, b"a")
    assert err.startswith(b"\nupstream_incomplete: ")
    assert err.count(b"\n") == 2


@pytest.mark.parametrize("name", PROGRAMS)
async def test_python_shows_errors(name, service, fake):
    fake.default = Reply(text("a", finish_reason=None))
    status, out, err = await output(sys.executable, str(ROOT / f"examples/{name}.py"), "--url", service.url)

    assert (status, out) == (1, b"a")
    assert b"upstream_incomplete" in err


@pytest.mark.parametrize("name", PROGRAMS)
async def test_python_is_interrupted_with_control_c(name, service, fake):
    fake.default = Reply([sse(chunk({"content": "typing"})), Hang()])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / f"examples/{name}.py"), "--url", service.url),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert await process.stdout.readexactly(6) == b"typing"
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    await fake.requests[0].closed.wait()

    assert (process.returncode, out) == (0, b"\n")
    assert err.startswith(b"(cancelled")
