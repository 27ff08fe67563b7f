"""The Python of docs/clients.md, as a user's type checker sees it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from docs.test_clients import PYTHON
from support.processes import ROOT, environment

IMPORTS = "import asyncio\n\nfrom ws_chat.client import ClientError, connect\n"
ALONE = """

def block_{line}() -> None:
    {code}
"""
CONNECTED = """

async def block_{line}() -> None:
    async with connect("ws://127.0.0.1:8000") as chat:
        {code}
"""


@pytest.mark.timeout(300)  # without a cache, mypy reads all that the client imports
def test_the_blocks_of_the_page_are_well_typed(tmp_path):
    source = IMPORTS
    for block in PYTHON:
        if block.page == "docs/clients.md":
            alone = "import connect" in block.text
            code = textwrap.indent(block.text, " " * (4 if alone else 8)).strip()
            code = code.replace("def main():", "def main() -> None:")
            source += (ALONE if alone else CONNECTED).format(line=block.line, code=code)
    path = tmp_path / "blocks.py"
    path.write_text(source)
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *config, str(path)]
    found = subprocess.run(command, env=environment(MYPYPATH=str(ROOT)), capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr + source
