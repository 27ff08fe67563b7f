"""Record the terminal chat as an animated SVG.

PYTHONPATH=tests .venv/bin/python docs/picture_terminal.py

The real program in a pseudo-terminal; the answers come from the tests' OpenAI-compatible server, at a model's pace.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.terminals import Terminal

from ws_chat.testing import FakeOpenAI, Hang, Pause, Reply, text

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS, ROWS = 80, 31
CELL, LINE, MARGIN = 8.4, 18, 14
"""Pixels: the width of a cell, the height of a line, and what is left free around them."""
RATE = 8  # pictures a second
COLOURS = {"default": "#d4d4d4", "cyan": "#4ec9b0", "blue": "#569cd6", "green": "#6a9955", "brown": "#dcdcaa"}
COLOURS |= {"magenta": "#c586c0", "red": "#f48771", "brightblack": "#808080", "white": "#d4d4d4", "black": "#808080"}
COLOURS |= {"brightgreen": "#8fce6a", "brightblue": "#79b8ff", "brightmagenta": "#d8a0df", "brightcyan": "#7fdbca"}
FIRST = """Sunlight is scattered by the air, short waves most: **Rayleigh scattering**.

```python
def scattered(wavelength: float) -> float:
    \"\"\"How much more than red light.\"\"\"
    return (700e-9 / wavelength) ** 4
```

| colour | wavelength | scattered |
| :-- | --: | --: |
| blue | 470 nm | 4.9 × |
| red | 700 nm | 1.0 × |
"""
SECOND = "At night there is no sunlight to scatter, so the air is dark and we see through it into"


class Run(NamedTuple):
    """What stands in a row of the screen, as SVG, from one moment to another, in seconds."""

    row: int
    begin: float
    end: float
    drawn: str


def paced(answer: str, *, ends: bool = True) -> Reply:
    """Return an answer that comes piece by piece."""
    pieces = re.findall(r"\s*\S{1,6}|\s+", answer)
    steps = [step for event in text(*pieces) for step in (event, Pause(0.04))]
    return Reply(steps if ends else [*steps[: 2 * len(pieces)], Hang()])


def row(line: dict, cursor: int | None) -> str:
    """Return a row of the screen as SVG."""
    drawn, place = "", 0
    for style, cells in groupby((line[x] for x in range(COLUMNS)), key=lambda cell: cell._replace(data="")):
        characters = [cell.data for cell in cells]
        words = "".join(characters).rstrip()
        if words:
            more = ' font-weight="bold"' if style.bold else ""
            more += ' font-style="italic"' if style.italics else ""
            x = MARGIN + place * CELL
            fill = COLOURS.get(style.fg, f"#{style.fg}")
            drawn += f'<text x="{x:.1f}" fill="{fill}"{more} xml:space="preserve">{escape(words)}</text>'
        place += len(characters)
    if cursor is not None:
        drawn += f'<rect x="{MARGIN + cursor * CELL:.1f}" y="-13" width="8" height="16" fill="#aeafad"/>'
    return drawn


def runs(pictures: list[tuple[float, list[str]]], end: float) -> Iterator[Run]:
    """Yield what stands in each row, and how long."""
    for number in range(ROWS):
        changes = [(at, rows[number]) for at, rows in pictures]
        begin, drawn = changes[0]
        for at, now in [*changes[1:], (end, "")]:
            if now != drawn:
                if drawn:
                    yield Run(number, begin, at, drawn)
                begin, drawn = at, now


def svg(pictures: list[tuple[float, list[str]]], end: float) -> str:
    """Return the recording, which begins anew by itself. What cannot animate shows its end."""
    width, height = COLUMNS * CELL + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"',
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="14">',
        '<rect width="100%" height="100%" rx="8" fill="#1e1e1e">',
        f'<animate id="l" attributeName="rx" from="8" to="8" begin="0s;l.end" dur="{end + 3:.1f}s"/></rect>',
    ]
    for number, begin, until, drawn in runs(pictures, end):
        y = MARGIN + (number + 0.75) * LINE
        base, other, at, lasts = "hidden", "visible", begin, until - begin
        if until == end:  # what cannot animate shows this
            base, other, at, lasts = "visible", "hidden", 0.0, begin
        change = f'<set attributeName="visibility" to="{other}" begin="l.begin+{at:.2f}s" dur="{lasts:.2f}s"/>'
        parts.append(f'<g transform="translate(0 {y:.1f})" visibility="{base}">{change if lasts else ""}{drawn}</g>')
    return "\n".join([*parts, "</svg>\n"])


async def record(shown: Terminal, pictures: list[tuple[float, list[str]]]) -> None:
    """Take pictures of a terminal until cancelled."""
    began = time.monotonic()
    while True:
        screen = shown.screen
        cursor = None if screen.cursor.hidden else (screen.cursor.y, screen.cursor.x)
        rows = [row(screen.buffer[y], cursor[1] if cursor and cursor[0] == y else None) for y in range(ROWS)]
        if not pictures or rows != pictures[-1][1]:
            pictures.append((time.monotonic() - began if pictures else 0.0, rows))
        await asyncio.sleep(1 / RATE)


async def chat() -> str:
    """Chat, and return the recording."""

    async def type_in(keys: str) -> None:
        for key in keys:
            shown.type(key)
            await asyncio.sleep(0.05)

    fake = FakeOpenAI()
    await fake.start()
    fake.replies = [paced(FIRST), paced(SECOND, ends=False)]
    shown = Terminal(COLUMNS, ROWS, dim=90)
    with tempfile.TemporaryDirectory() as state:
        command = ("ws-chat", "chat", "--local", "--stats")
        await shown.start(*command, OPENAI_BASE_URL=fake.base_url, XDG_STATE_HOME=state)
        await shown.prompt(1)
        pictures: list[tuple[float, list[str]]] = []
        recording = asyncio.create_task(record(shown, pictures))
        began = time.monotonic()
        await type_in("Why is the sky blue?\r")
        await shown.prompt(2)
        await asyncio.sleep(1)
        await type_in("And at night?\r")
        await shown.until("see through")
        await asyncio.sleep(0.5)
        await type_in("\x03")
        await shown.prompt(3)
        await asyncio.sleep(1)
        recording.cancel()
        end = time.monotonic() - began
        await type_in("/quit\r")
        await shown.end()
    shown.close()
    await fake.stop()
    return svg(pictures, end)


if __name__ == "__main__":
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("terminal.svg")
    to.write_text(asyncio.run(chat()))
