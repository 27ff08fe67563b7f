"""Take the pictures of the page, in light and dark: `make pictures`.

The real server and a real Chromium; the answers come from the tests' OpenAI-compatible server, at a model's pace.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from pathlib import Path

from support.browser import chromium, expect, open_tab
from support.service import running

from ws_chat import Settings, create_app
from ws_chat.testing import FakeOpenAI, Hang, Pause, Reply, text

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


async def main() -> None:
    """Take one picture for each colour scheme."""
    fake = FakeOpenAI()
    await fake.start()
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="none", drain_timeout=0)
    async with running(create_app(settings), settings) as service, chromium() as browser:
        for scheme in ("light", "dark"):
            async with await browser.new_context(
                color_scheme=scheme, viewport=SIZE, reduced_motion="reduce"
            ) as context:
                tab = await open_tab(context, service.url)
                await tab.press("Inspect")
                for question in ("A haiku about sockets", "What is a merged frame?"):
                    await tab.ask(question)
                    await tab.is_in("completed")
                    await tab.press("New conversation")
                fake.replies = [typed(FIRST, 0.02), typed(ANSWER, 0.012, ends=False)]
                await tab.ask("Why is the sky blue?")
                await tab.is_in("completed")
                await tab.ask("And why not violet? With numbers, please.")
                await expect(tab.text).to_contain_text("and our eyes")
                await expect(tab.text.locator(".c-comment")).to_be_visible()
                await tab.page.mouse.move(0, 0)
                client = await context.new_cdp_session(tab.page)
                # Playwright knows no WebP, which takes a third of a PNG.
                taken = await client.send("Page.captureScreenshot", {"format": "webp", "quality": 92})
                (HERE / f"page-{scheme}.webp").write_bytes(b64decode(taken["data"]))
                await tab.press("Stop")
                await tab.is_in("cancelled")
    await fake.stop()


asyncio.run(main())
