"""A real Chromium on the page: Debian's, driven by Playwright, which downloads nothing."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from playwright.async_api import Browser, Page, async_playwright, expect
from support.processes import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import BrowserContext, Locator

PAGE_TIMEOUT = 50_000  # milliseconds, less than a test's own limit: a failure names what was expected in the page
expect.set_options(PAGE_TIMEOUT)
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
    """A tab that shows the page, with the errors of its console and the URLs of its requests. `touch`: on a phone."""

    def __init__(self, page: Page, *, touch: bool = False) -> None:
        self.page = page
        self.touch = touch
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PAGE_TIMEOUT)
        self._listeners = {
            "console": lambda said: self._take(said.type, said.text),
            "pageerror": lambda error: self.complaints.append(str(error)),
            "request": lambda request: self.requests.append(request.url),
            "websocket": lambda socket: self.requests.append(socket.url),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)

    def _take(self, kind: str, said: str) -> None:
        if kind in ("error", "warning") and said != "Service Worker registration blocked by Playwright":
            self.complaints.append(said)

    def leave(self) -> None:
        """Stop listening to the page."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    @property
    def turns(self) -> Locator:
        """The questions with their answers."""
        return self.page.locator("article.turn")

    @property
    def text(self) -> Locator:
        """The last answer."""
        return self.turns.last.locator(".answer > .text")

    async def ask(self, question: str) -> None:
        """Type a question and send it."""
        await self.page.get_by_label("Message", exact=True).fill(question)
        if self.touch:
            await self.press("Send")
        else:
            await self.page.keyboard.press("Enter")

    async def choose_model(self, name: str) -> None:
        """Type the name of a model that the menu need not have."""
        await self.page.get_by_label("Model", exact=True).select_option(label="Another model…")
        await self.page.get_by_label("Model name").fill(name)
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


# A service worker costs each visit CPU, and would serve one server's files to the next one's page.
OPTIONS_OF_VISITS = {"viewport": {"width": 1280, "height": 800}, "service_workers": "block"}
_pages: WeakKeyDictionary[Browser, Page] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def visiting(
    browser: Browser, url: str, *, complains: bool = False, changes: bool = False, **options: Any
) -> AsyncIterator[Tab]:
    """Open the page as a new user; fail on an error of its console, and on a request to another server.

    Most visits share one page, because a new one costs a second of CPU. `changes`: the visit needs a page of its own,
    which it changes for good.
    """
    origin = "/".join(url.split("/")[:3])
    async with contextlib.AsyncExitStack() as stack:
        if changes or options:
            context = await browser.new_context(**{**OPTIONS_OF_VISITS, **options})
            await stack.enter_async_context(context)
            tab = Tab(await context.new_page(), touch=options.get("has_touch", False))
        else:
            tab = Tab(await stack.enter_async_context(_shared_page(browser, origin)))
            stack.callback(tab.leave)
        await tab.page.goto(url)
        try:
            yield tab
        except BaseException:
            print("The page's console said:", *tab.complaints, sep="\n")
            raise
        assert complains or not tab.complaints, tab.complaints
        elsewhere = [
            asked
            for asked in tab.requests
            if not re.match(rf"(https?|wss?)://{re.escape(origin.split('//')[1])}/|data:", asked)
        ]
        assert not elsewhere


@contextlib.asynccontextmanager
async def _shared_page(browser: Browser, origin: str) -> AsyncIterator[Page]:
    """Lend the page that visits share, and clear its storage at the end. After a failed visit there is a new page."""
    page = _pages.pop(browser, None) or await (await browser.new_context(**OPTIONS_OF_VISITS)).new_page()
    try:
        yield page
    except BaseException:
        await page.context.close()
        raise
    await page.goto("about:blank")
    client = await page.context.new_cdp_session(page)
    await client.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
    await client.detach()
    await page.context.clear_permissions()
    _pages[browser] = page
