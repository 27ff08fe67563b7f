"""The page at `/` for everybody, in a real Chromium: by keyboard, by ear, in the dark, on a phone, on a slow line."""

from __future__ import annotations

import json
import re

import pytest
from support.browser import chromium, expect, visiting
from support.processes import ROOT, lacking

from ws_chat.server import describe
from ws_chat.testing import Cut, Hang, Reply, text

pytestmark = pytest.mark.anyio

AXE = ROOT / ".venv/node/node_modules/axe-core/axe.min.js"
RICH = "Some *words*, `code` and a [link](https://example.com).\n\n- [x] done\n\n```python\nprint(1)  # one\n```\n\n"
RICH += "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted"
PHONE = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
async def browser(anyio_backend):
    async with chromium() as started:
        yield started


async def violations(tab):
    """Return what axe finds, the rules of good practice included."""
    if not AXE.exists():
        lacking("axe-core is not installed")
    await tab.page.evaluate(AXE.read_text())
    found = await tab.page.evaluate("axe.run().then(({ violations }) => violations)")
    return [(each["id"], node["html"][:200], node["failureSummary"]) for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", PHONE)], ids=["desktop", "phone"])
async def test_axe_finds_nothing(scheme, options, serve, fake, browser):
    service = await serve(api_keys=("key",))
    fake.replies = [Reply(text(RICH)), Reply([*text("Half")[:2], Cut()])]
    async with visiting(browser, service.url, color_scheme=scheme, reduced_motion="reduce", **options) as tab:
        assert await violations(tab) == []
        await tab.page.get_by_label("Key", exact=True).fill("key")
        await tab.page.keyboard.press("Enter")
        await tab.ask("Show me")
        await tab.is_in("completed")
        await tab.ask("And now?")
        await tab.is_in("failed")
        assert await violations(tab) == []
        await tab.press("Inspect")
        assert await violations(tab) == []
        await tab.page.get_by_role("tab", name="Frames").click()
        await tab.page.locator("#frames summary").first.click()
        assert await violations(tab) == []
        await tab.page.keyboard.press("Escape")
        if options:
            await tab.press("Conversations")
            assert await violations(tab) == []


async def test_the_documentation_of_the_api_needs_no_other_host(service, browser):
    async with visiting(browser, f"{service.url}/docs") as tab:
        await expect(tab.page.locator("section h3").first).to_contain_text("/v1/chat/ws")
        shown = await tab.page.locator("section h3 code").all_text_contents()
        documents = [describe.openapi(), json.loads(describe.path("asyncapi").read_text())]
        assert set(documents[0]["paths"]) <= set(shown)
        for document in documents:
            assert set(document["components"]["schemas"]) <= set(shown)
        dangling = "all => all.map((one) => one.hash.slice(1)).filter((id) => id && !document.getElementById(id))"
        assert await tab.page.locator("a").evaluate_all(dangling) == []
        for scheme in ("light", "dark"):
            await tab.page.emulate_media(color_scheme=scheme)
            assert await violations(tab) == []
        await tab.page.emulate_media(color_scheme="null")


async def test_every_control_has_a_name(service, fake, browser):
    fake.reply(text(RICH))
    async with visiting(browser, service.url) as tab:
        await tab.ask("Show me")
        await tab.is_in("completed")
        await tab.press("Inspect")
        client = await tab.page.context.new_cdp_session(tab.page)
        nodes = (await client.send("Accessibility.getFullAXTree"))["nodes"]
        roles = {
            "button",
            "link",
            "textbox",
            "checkbox",
            "combobox",
            "tab",
            "tabpanel",
            "DisclosureTriangle",
            "navigation",
        }
        named = {}
        for node in nodes:
            if not node["ignored"] and (role := node["role"]["value"]) in roles:
                named.setdefault(role, []).append(node["name"]["value"].strip())
        assert {"button", "link", "textbox", "tab"} <= set(named)
        assert all(re.search(r"\w", name) for names in named.values() for name in names), named


async def test_it_is_used_by_keyboard_alone(service, fake, browser):
    fake.replies = [Reply(text(RICH)), Reply([*text("One")[:2], Hang()])]
    async with visiting(browser, service.url) as tab:
        keys = tab.page.keyboard

        async def to(name):
            """Press Tab until the element of this name has the focus, which must be seen."""
            for _ in range(40):
                await keys.press("Tab")
                focused = tab.page.locator(":focus")
                label = "(one) => (one.ariaLabel ?? one.textContent).trim()"
                if await focused.count() and (await focused.evaluate(label)).startswith(name):
                    assert await focused.evaluate(
                        "(one) => one.matches('textarea') || getComputedStyle(one).outlineStyle !== 'none'"
                    )
                    return
            pytest.fail(f"Tab never comes to {name}")

        await keys.type("First line")
        await keys.press("Shift+Enter")
        await keys.type("second line")
        await keys.press("Enter")
        await tab.is_in("completed")
        assert fake.requests[0].body["messages"][0]["content"] == "First line\nsecond line"
        await keys.type("Count")
        await keys.press("Enter")
        await tab.says("One")
        await keys.press("Escape")
        await tab.is_in("cancelled")

        await to("Skip to the message")
        await keys.press("Enter")
        await expect(tab.page.get_by_label("Message", exact=True)).to_be_focused()
        await to("New conversation")
        await keys.press("Enter")
        await expect(tab.turns).to_have_count(0)
        await to("First line")
        await keys.press("Enter")
        await expect(tab.turns).to_have_count(2)
        await to("Inspect")
        await keys.press("Enter")
        await expect(tab.page.get_by_role("tab", name="Streams")).to_be_focused()
        await keys.press("ArrowRight")
        await expect(tab.page.get_by_role("tab", name="Frames")).to_be_focused()
        await to("↑ sent")
        await keys.press("Enter")
        await expect(tab.page.locator("#frames pre")).to_be_visible()
        await to("API key")
        await keys.press("Enter")
        await expect(tab.page.get_by_role("dialog")).to_be_visible()
        await keys.press("Escape")
        await expect(tab.page.get_by_role("dialog")).to_be_hidden()


async def test_an_input_method_may_use_enter(service, fake, browser):
    async with visiting(browser, service.url) as tab:
        client = await tab.page.context.new_cdp_session(tab.page)
        await client.send("Input.imeSetComposition", {"text": "やっほ", "selectionStart": 3, "selectionEnd": 3})
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        await client.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
        await client.send("Input.insertText", {"text": "やっほ"})
        await expect(tab.page.get_by_label("Message", exact=True)).to_have_value("やっほ")
        await expect(tab.turns).to_have_count(0)
        await tab.page.keyboard.press("Enter")
        await tab.is_in("completed")

    assert fake.requests[0].body["messages"][0]["content"] == "やっほ"


async def test_each_block_is_announced_to_a_screen_reader_once(service, fake, browser):
    answer = "The sky is blue.\n\n- one\n- two\n\n```python\na = 1\nb = 2\n```\n\nThe end."
    fake.reply(text(*answer))
    async with visiting(browser, service.url) as tab:
        spoken = tab.page.get_by_role("log", name="What was answered")
        await tab.ask("Why?")
        await tab.is_in("completed")
        await expect(spoken.locator("p")).to_have_text(
            ["The sky is blue.", "one two", "Code, python, 2 lines.", "The end.", "End of the answer."]
        )
        assert not await tab.page.locator("#thread [aria-live], #thread [role=log]").count()
        await tab.page.reload()
        await tab.is_in("completed")
        await expect(spoken.locator("p")).to_have_count(0)


async def test_it_fits_a_phone(service, fake, browser):
    fake.reply(text(RICH + "\n\n```sh\n" + "long " * 100 + "\n```\n\n" + "W" * 300))
    async with visiting(browser, service.url, **PHONE) as tab:
        wide = "document.documentElement.scrollWidth"
        await tab.ask("Show me")
        await tab.is_in("completed")
        assert await tab.page.evaluate(wide) == 360
        assert await tab.page.locator("#thread").evaluate("(box) => box.scrollWidth <= box.clientWidth")
        await expect(tab.text.locator("pre").last).to_contain_text("long long")
        assert await tab.text.locator("pre").last.evaluate("(code) => { code.scrollLeft = 50; return code.scrollLeft }")
        await expect(tab.page.get_by_role("navigation")).to_be_hidden()
        await tab.press("Conversations")
        await expect(tab.page.get_by_role("link", name="Show me")).to_be_visible()
        await tab.press("Close the list")
        await expect(tab.page.get_by_role("button", name="Conversations")).to_be_focused()
        await tab.press("Conversations")
        await tab.page.touchscreen.tap(350, 300)
        await expect(tab.page.get_by_role("navigation")).to_be_hidden()
        await tab.press("Conversations")
        await tab.page.locator("#list .new").click()
        await expect(tab.page.get_by_role("navigation")).to_be_hidden()
        await tab.press("Inspect")
        await expect(tab.page.locator(".stream")).to_be_visible()
        assert await tab.page.evaluate(wide) == 360
        await tab.page.keyboard.press("Escape")
        await expect(tab.page.locator(".stream")).to_be_hidden()


async def test_it_weighs_little_and_needs_nothing_else(service, fake, browser):
    """A visit with code in it: under 150 KB compressed; with a formula under 300 KB. All of it is from this server."""
    fake.replies = [Reply(text(RICH)), Reply(text(r"\[ \sqrt{x} \]"))]
    async with await browser.new_context(service_workers="block") as context:
        weights = {}
        page = await context.new_page()

        async def weigh(response):
            sizes = await response.request.sizes()
            weights[response.url] = sizes["responseBodySize"]

        page.on("response", weigh)
        await page.goto(service.url)
        await page.get_by_label("Message", exact=True).fill("Show me")
        await page.keyboard.press("Enter")
        await expect(page.locator(".c-comment")).to_be_visible()
        await page.wait_for_load_state("networkidle")
        first = dict(weights)
        await page.get_by_label("Message", exact=True).fill("And a formula")
        await page.keyboard.press("Enter")
        await expect(page.locator(".katex-html")).to_be_visible()
        await page.evaluate("document.fonts.ready")
        await page.wait_for_load_state("networkidle")

    names = {url.rsplit("/", 1)[1] for url in first}
    assert names >= {"", "page.css", "main.js", "ws-chat.js", "marked.js", "python.js"}
    assert not names & {"katex.js", "katex.css"}
    assert {url.rsplit("/", 1)[1] for url in weights} >= {"katex.js", "katex.css", "KaTeX_Main-Regular.woff2"}
    print("weights:", sum(first.values()), sum(weights.values()))
    assert 0 < sum(first.values()) < 150_000
    assert sum(weights.values()) < 300_000
