"""A real Chromium on the page: Debian's, driven by Playwright, which downloads nothing."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from playwright.async_api import async_playwright, expect
from processes import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, BrowserContext, Locator, Page

PATIENCE = 60_000  # milliseconds
expect.set_options(PATIENCE)
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start Chromium, which is closed at the end."""
    program = need("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """A tab that shows the page, and all that its console said and its network was asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))

    @property
    def turns(self) -> Locator:
        """The questions with their answers."""
        return self.page.locator("article.turn")

    @property
    def text(self) -> Locator:
        """The last answer."""
        return self.turns.last.locator(".text")

    async def ask(self, question: str) -> None:
        """Type a question and send it."""
        await self.page.get_by_label("Message", exact=True).fill(question)
        await self.page.keyboard.press("Enter")

    async def press(self, name: str) -> None:
        """Press the button of this name."""
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def is_in(self, state: str) -> None:
        """Wait until the last turn is in this state."""
        await expect(self.turns.last).to_have_attribute("data-state", state)

    async def says(self, answer: str | re.Pattern[str]) -> None:
        """Wait until the last answer is this text."""
        await expect(self.text).to_have_text(answer)


async def open_tab(context: BrowserContext, url: str) -> Tab:
    """Open one more tab of a browser's user."""
    tab = Tab(await context.new_page())
    await tab.page.goto(url)
    return tab


@contextlib.asynccontextmanager
async def visiting(browser: Browser, url: str, *, complains: bool = False, **options: Any) -> AsyncIterator[Tab]:
    """Open the page as a new user; nothing may be complained of on its console, and nothing asked for elsewhere."""
    async with await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}) as context:
        tab = await open_tab(context, url)
        yield tab
        assert complains or not tab.complaints, tab.complaints
        place = re.escape(url.split("/")[2])
        elsewhere = [asked for asked in tab.requests if not re.match(rf"(https?|wss?)://{place}/|data:", asked)]
        assert not elsewhere
