"""Every example, run by its real program against a running server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest
from support.processes import ROOT, environment, need, output
from support.service import joined

from ws_chat.testing import Hang, Reply, chunk, sse, text

pytestmark = pytest.mark.anyio


async def test_curl(service):
    need("curl")
    status, out, _ = await output(str(ROOT / "examples/curl.sh"), URL=service.stream_url)

    assert (status, out) == (0, b"data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n")


@pytest.mark.parametrize("program", ["websocat", "wscat"])
async def test_terminal_clients(program, service, fake):
    need(program)
    status, out, err = await output(str(ROOT / f"examples/{program}.sh"), URL=service.ws_url)

    frames = [json.loads(line) for line in out.splitlines()]
    assert status == 0, err
    assert [frame["type"] for frame in frames] == ["start", "token", "token", "done"]
    assert joined(frames) == "Hello"

    fake.default = Reply(text("a", finish_reason=None))
    status, out, _ = await output(str(ROOT / f"examples/{program}.sh"), URL=service.ws_url)
    assert status == 1


async def test_python(service, fake):
    status, out, err = await output(
        sys.executable, str(ROOT / "examples/chat.py"), "why?", "--url", service.ws_url, "--model", "m-1"
    )

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


async def test_python_over_a_network_tells_errors(serve, fake):
    script = str(ROOT / "examples/survive.py")
    status, out, err = await output(sys.executable, script, "--url", "ws://127.0.0.1:1")
    assert (status, out, err) == (1, b"", b"ws://127.0.0.1:1 cannot be reached\n")

    service = await serve()
    fake.default = Reply(text("a", finish_reason=None))
    status, out, err = await output(sys.executable, script, "--url", service.ws_url)
    assert (status, out) == (1, b"a")
    assert err.startswith(b"\nupstream_incomplete: ")
    assert err.count(b"\n") == 2


async def test_python_tells_errors(service, fake):
    fake.default = Reply(text("a", finish_reason=None))
    status, out, err = await output(sys.executable, str(ROOT / "examples/chat.py"), "--url", service.ws_url)

    assert (status, out) == (1, b"a")
    assert b"upstream_incomplete" in err


async def test_python_is_interrupted_with_control_c(service, fake):
    fake.default = Reply([sse(chunk({"content": "typing"})), Hang()])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples/chat.py"), "--url", service.ws_url),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert await process.stdout.readexactly(6) == b"typing"
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    await fake.requests[0].closed.wait()

    assert (process.returncode, out, err) == (0, b"\n", b"(cancelled after 1 deltas)\n")
