"""Take the pictures of the page, in light and dark, on a phone, with formulas, images and errors: `make pictures`.

The real server and a real Chromium; the answers come from the tests' OpenAI-compatible server, at a model's pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import zlib
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.browser import chromium, expect, open_tab
from support.service import running

from ws_chat import Settings, create_app
from ws_chat.testing import Cut, FakeOpenAI, Hang, Pause, Reply, text
from ws_chat.upstreams.demo_answers import known_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser
    from support.browser import Tab

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 780}
FIRST = "Sunlight is scattered by the air, and short waves are scattered most: **Rayleigh scattering**."
ANSWER = """Its strength falls with the *fourth power* of the wavelength: blue is scattered five times as much as red.

```python
def scattered(wavelength: float) -> float:
    \"\"\"How much more than red light, by the Rayleigh law.\"\"\"
    return (700e-9 / wavelength) ** 4


print(f"{scattered(470e-9):.1f}")  # 4.9
```

| colour | wavelength | scattered |
|:--|--:|--:|
| violet | 400 nm | 9.4 × |
| blue | 470 nm | 4.9 × |
| red | 700 nm | 1.0 × |

Violet would win, but there is less of it in sunlight, and our eyes"""


def typed(answer: str, seconds: float, *, ends: bool = True) -> Reply:
    """Return an answer in words, with a pause after each; now and then two come at once, and are merged."""
    head, *tokens, finish, usage, done = text(*re.findall(r"\s*\S+", answer))
    for place in range(len(tokens) - 1, 9, -12):
        tokens[place - 1 : place + 1] = [tokens[place - 1] + tokens[place]]
    steps = [step for token in tokens for step in (token, Pause(seconds))]
    return Reply([head, Pause(0.2), *steps, *([finish, usage, done] if ends else [Hang()])])


def image() -> bytes:
    """Return a small picture of a sunset, as a PNG."""
    width, height = 320, 180
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            sun = (x - 160) ** 2 + (y - 120) ** 2 < 32**2 and y < 120
            sea = y >= 120
            near = abs(x - 160) < 34 - (y - 120) // 4 and (y // 4) % 2 == 0
            sky = (40 + y, 60 + y // 2, 150 - y // 3)
            rows.extend((255, 214, 120) if sun or (sea and near) else (24, 40, 84) if sea else sky)

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(rows))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


class Album:
    """Takes pictures of a server's page."""

    def __init__(self, browser: Browser, url: str, fake: FakeOpenAI) -> None:
        self._browser = browser
        self._url = url
        self._fake = fake

    @contextlib.asynccontextmanager
    async def opened(self, name: str, scheme: str, **options: Any) -> AsyncIterator[Tab]:
        """Open the page, and take its picture at the end of the block."""
        settings = {"viewport": SIZE, "color_scheme": scheme, "reduced_motion": "reduce", "service_workers": "block"}
        async with await self._browser.new_context(**{**settings, **options}) as context:
            tab = await open_tab(context, self._url)
            await expect(tab.page.locator("#state")).to_have_text("Connected")
            yield tab
            await tab.page.mouse.move(0, 0)
            await tab.page.evaluate("document.fonts.ready")
            client = await context.new_cdp_session(tab.page)
            # Playwright knows no WebP, which takes a third of a PNG.
            taken = await client.send("Page.captureScreenshot", {"format": "webp", "quality": 90})
            (HERE / f"page-{name}.webp").write_bytes(b64decode(taken["data"]))
            if await tab.page.get_by_role("button", name="Stop").is_visible():
                await tab.press("Stop")
                await tab.is_in("cancelled")

    async def answering(self, name: str, scheme: str) -> None:
        """Take the picture of the README: an answer that types, and its streams."""
        async with self.opened(name, scheme) as tab:
            await tab.press("Inspect")
            for question in ("A haiku about sockets", "What is a merged frame?"):
                await tab.ask(question)
                await tab.is_in("completed")
                await tab.press("New conversation")
            self._fake.replies = [typed(FIRST, 0.02), typed(ANSWER, 0.012, ends=False)]
            await tab.ask("Why is the sky blue?")
            await tab.is_in("completed")
            await tab.ask("And why not violet? With numbers, please.")
            await expect(tab.text).to_contain_text("and our eyes")
            await expect(tab.text.locator(".c-comment")).to_be_visible()

    async def phone(self) -> None:
        """Take a picture on a phone."""
        phone = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
        async with self.opened("phone", "dark", device_scale_factor=2, **phone) as tab:
            self._fake.replies = [typed(ANSWER, 0.002, ends=False)]
            await tab.page.get_by_label("Message", exact=True).fill("Why is the sky not violet?")
            await tab.press("Send")
            await expect(tab.text).to_contain_text("and our eyes")

    async def rest(self) -> None:
        """Take the pictures of the first screen, of formulas, an image and an error."""
        async with self.opened("empty", "light"):
            pass
        async with self.opened("math", "dark") as tab:
            self._fake.replies = [Reply(text(known_answer("Why is the sky blue? With a formula.")))]
            await tab.ask("Why is the sky blue? With a formula.")
            await expect(tab.text.locator(".katex").last).to_be_visible()
            await tab.is_in("completed")
        async with self.opened("image", "light") as tab:
            file = {"name": "sunset.png", "mimeType": "image/png", "buffer": image()}
            await tab.page.locator("#files").set_input_files(file)
            self._fake.replies = [
                Reply(text("A low sun over the sea: its light comes through **more air**, so it is red."))
            ]
            await tab.ask("Why is it red?")
            await tab.is_in("completed")
            await expect(tab.text.locator("strong")).to_be_visible()
            await tab.page.locator("#files").set_input_files(file)
            await expect(tab.page.locator(".attachments img")).to_be_visible()
        async with self.opened("error", "light") as tab:
            self._fake.replies = [Reply([*text("Sunlight is scattered ", "by the air, and")[:3], Cut()])]
            await tab.ask("Why is the sky blue?")
            await tab.is_in("failed")


async def main() -> None:
    """Take all pictures."""
    fake = FakeOpenAI()
    await fake.start()
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="none", drain_timeout=0)
    async with running(create_app(settings), settings) as service, chromium() as browser:
        album = Album(browser, service.url, fake)
        for scheme in ("light", "dark"):
            await album.answering(scheme, scheme)
        await album.phone()
        await album.rest()
    await fake.stop()


asyncio.run(main())
