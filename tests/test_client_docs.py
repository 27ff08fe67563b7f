"""docs/clients.md cannot rot: every block of Python in it is run."""

from __future__ import annotations

import re
import sys
import textwrap

import pytest
from processes import ROOT, output

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/clients.md").read_text()
BLOCKS = re.findall(r"^### (.*?)\n|^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INSIDE = """
import asyncio
from ws_chat.client import ClientError, connect

async def main():
    async with connect("ws://127.0.0.1:8000") as chat:
{}

asyncio.run(main())
"""


def programs() -> list:
    found, heading = [], ""
    for title, block in BLOCKS:
        heading = title or heading
        if block:
            whole = "connect_sync" in block or "asyncio.run" in block
            found.append(pytest.param(block if whole else INSIDE.format(textwrap.indent(block, " " * 8)), id=heading))
    return found


@pytest.mark.parametrize("code", programs())
async def test_what_the_page_shows_runs(code, serve):
    service = await serve(openai_api_key=None, openai_base_url=None)
    status, out, err = await output(sys.executable, "-c", code.replace("ws://127.0.0.1:8000", service.url))

    assert (status, err) == (0, b"")
    assert out or "print" not in code


def test_every_file_that_is_linked_is_there():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert "://" in link or (ROOT / "docs" / link).exists(), link
