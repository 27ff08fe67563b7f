"""The commands of docs/terminal.md, as they are pasted."""

from __future__ import annotations

import pytest
from support.blocks import claim_one
from support.processes import ROOT, output

pytestmark = pytest.mark.anyio

INTERACTIVE = claim_one("docs/terminal.md", "sh", "--local")
IN_PIPES = claim_one("docs/terminal.md", "sh", "git log")


async def test_a_chat_that_needs_no_server():
    status, out, err = await output("bash", "-c", f"echo hello | {INTERACTIVE}")
    assert (status, b"hello" in out) == (0, True), err.decode()


@pytest.mark.parametrize("command", IN_PIPES.splitlines())
async def test_in_pipes(command, serve, monkeypatch):
    monkeypatch.chdir(ROOT)
    service = await serve(openai_api_key=None, openai_base_url=None)
    status, out, err = await output("bash", "-c", command, WS_CHAT_URL=service.url)
    assert status == 0, err.decode()
    assert (b'"type":"start"' if "--json" in command else b"You said:") in out
