"""The code blocks of README and docs/. Each is run by the test module that claims it here, or says why it is not.

A block that no test runs has a line `<!-- not run: the reason -->` before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import dataclass

import pytest
from support.processes import ROOT, environment

BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block. `heading` is the last one before it."""

    page: str
    line: int
    heading: str
    language: str
    text: str
    reason: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> list[Block]:
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page = path.read_text()
        for match in BLOCK.finditer(page):
            headings = re.findall(r"^#+ (.*)$", page[: match.start()], re.MULTILINE)
            line = page[: match.start(2)].count("\n") + 1
            reason, language, text = match.groups()
            found.append(Block(path.relative_to(ROOT).as_posix(), line, headings[-1], language, text, reason))
    return found


BLOCKS = _blocks()
CLAIMED: set[Block] = set()


def claim(page: str, language: str, containing: str = "") -> list[Block]:
    """Return the blocks of a page in a language, with a text in them: the caller's tests run them."""
    found = [
        block
        for block in BLOCKS
        if (block.page, block.language) == (page, language) and containing in block.text and not block.reason
    ]
    assert found, f"{page} has no such block any more"
    CLAIMED.update(found)
    return found


def claim_one(page: str, language: str, containing: str = "") -> str:
    """Return the text of the only such block."""
    (block,) = claim(page, language, containing)
    return block.text


def each(blocks: list[Block]) -> pytest.MarkDecorator:
    """Run a test for each of these blocks."""
    return pytest.mark.parametrize("block", blocks, ids=[block.where for block in blocks])


async def output_until(wanted: bytes, command: str) -> bytes:
    """Run a command of bash until `wanted` is in what it prints; end it, and return all of that."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-ec", command),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    out = b""
    try:
        while wanted not in out:
            more = await process.stdout.read(65536)
            assert more, f"it ended before it printed {wanted!r}:\n{out.decode()}"
            out += more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
    return out
