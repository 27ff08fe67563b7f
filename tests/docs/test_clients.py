"""docs/clients.md cannot rot, nor what the README shows of the clients: every block of them is run."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
import sys
import textwrap

import httpx
import pytest
from support.blocks import claim, claim_one, each
from support.dropping import dropping
from support.processes import ROOT, lacking, need, output
from support.service import events

from ws_chat.testing import Reply, text

pytestmark = pytest.mark.anyio

PYTHON = [*claim("docs/clients.md", "python"), *claim("README.md", "python", "connect(")]
MOUNTED = claim_one("README.md", "python", "mount(")
JAVASCRIPT = [*claim("docs/clients.md", "js"), *claim("README.md", "js")]
SHOWN = claim_one("docs/protocol.md", "", "event: done")
ANY_LANGUAGE = claim_one("docs/clients.md", "mjs")
CONNECTED = """
from ws_chat.client import ClientError, connect

async with connect("ws://127.0.0.1:8000") as chat:
{}
"""
INSIDE = """
import asyncio

async def main():
{}

asyncio.run(main())
"""


@each(PYTHON)
async def test_python(block, serve):
    code = block.text
    if "connect_sync" not in code and "asyncio.run" not in code:
        if "import connect" not in code:
            code = CONNECTED.format(textwrap.indent(code, " " * 4))
        code = INSIDE.format(textwrap.indent(code, " " * 4))
    service = await serve(openai_api_key=None, openai_base_url=None)
    code = re.sub(r"(ws|http)://127\.0\.0\.1:8000", service.url, code)
    if block == PYTHON[0]:
        status, out, err = await output(sys.executable, "-c", code)
        assert (status, err) == (0, b"")
    else:
        out = await asyncio.to_thread(printed, code)
    assert out or "print" not in code


def printed(code):
    """Run a program in this process; return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "__main__"})
    return out.getvalue()


def test_mounting(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WS_CHAT_UPSTREAM", "demo")
    code = f"from fastapi import FastAPI\napp, current_user = FastAPI(), lambda: 'alice'\n{MOUNTED}"
    names: dict = {}
    exec(code, names)

    assert [route.path for route in names["app"].routes][-1] == "/chat"


@each(JAVASCRIPT)
async def test_javascript(block, serve):
    """It is run with what a page has: an element to write to, and the module's own address."""
    if (await output(need("node"), "--experimental-websocket", "-e", "WebSocket"))[0]:
        lacking("node is too old for the browser client")
    service = await serve(openai_api_key=None, openai_base_url=None)
    module = (ROOT / "ws_chat/server/page/static/ws-chat.js").as_uri()
    code = block.text.replace('"/static/ws-chat.js"', f'"{module}"').replace('connect("/"', f'connect("{service.url}"')
    code = code.replace('apiKey: "…"', 'apiKey: "k"')
    page = """
globalThis.addEventListener = globalThis.removeEventListener = () => {};
globalThis.output = { append: (text) => process.stdout.write(text) };
globalThis.document = { body: globalThis.output, addEventListener() {}, removeEventListener() {} };
"""
    command = ("--experimental-websocket", "--input-type=module", "-e")
    status, out, err = await output(need("node"), *command, f"{page}\n{code}\nchat.close();")

    assert status == 0, err.decode()
    assert "characters" in out.decode()


async def test_any_other_language(serve, fake, tmp_path):
    node = need("node")
    script = tmp_path / "chat.mjs"
    script.write_text(ANY_LANGUAGE)
    words = [f"{number} " for number in range(400)]
    fake.default = Reply(text(*words))
    service = await serve()
    rng = random.Random(1)
    async with dropping(service.url, lambda: rng.randrange(300, 9000)) as proxy:
        status, out, err = await output(node, str(script), proxy.url.replace("ws", "http"), "Count.")
    fake.default = Reply(text("a", finish_reason=None))
    failed, _, errors = await output(node, str(script), service.url, "Count.")

    assert (status, out.decode()) == (0, "".join(words)), err.decode()
    assert proxy.drops > 1, "the network did break"
    assert len(fake.requests) == 2, "each was paid for once"
    assert (failed, b"ended before it was complete" in errors) == (1, True)
    assert len([line for line in ANY_LANGUAGE.splitlines() if line]) <= 32


async def test_the_text_format_is_as_the_protocol_shows_it(service):
    async with httpx.AsyncClient(timeout=None) as client:
        answered = await client.post(service.stream_url, json=[{"role": "user", "content": "hi"}])

    assert answered.text == SHOWN
    assert [event["data"] for event in events(SHOWN.encode())] == ["Hel", "lo", "[DONE]"]
    assert re.search(r"data: \[DONE\]\n\n$", SHOWN)
