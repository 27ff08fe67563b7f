"""What the page at `/` does besides asking and answering, in a real Chromium: versions, options, images, files, offline."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import zlib
from pathlib import Path

import pytest
from support.browser import chromium, expect, open_tab, visiting
from support.dropping import dropping

from ws_chat.testing import Hang, Reply, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio

TOUCH = {"viewport": {"width": 390, "height": 700}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
async def browser(anyio_backend):
    async with chromium() as started:
        yield started


def asked(fake, number=-1):
    return [(message["role"], message["content"]) for message in fake.requests[number].body["messages"]]


def answers(*texts):
    return [Reply(text(each)) for each in texts]


def png(width=2, height=2):
    """Return a red image."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff\0\0" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")


async def contents(download):
    return await asyncio.to_thread(Path(await download.path()).read_text)


async def test_a_question_is_edited_and_an_answer_asked_for_again(service, fake, browser):
    fake.replies = answers("One", "Two", "One again", "Other", "Third")
    async with visiting(browser, service.url) as tab:
        await tab.ask("First")
        await tab.says("One")
        await tab.ask("Second")
        await tab.says("Two")
        first = tab.turns.first
        await first.hover()
        await first.get_by_role("button", name="Ask again").click()
        await tab.says("One again")
        await expect(tab.turns).to_have_count(1)
        assert asked(fake) == [("user", "First")]
        await expect(tab.turns.last.locator(".versions")).to_have_text("‹2/2›")
        await tab.press("Previous version")
        await tab.says("Two")
        await expect(first.locator(".versions")).to_have_text("‹1/2›")
        await expect(tab.page.get_by_role("button", name="Next version")).to_be_focused()

        await tab.turns.last.hover()
        await tab.turns.last.get_by_role("button", name="Edit question").click()
        await tab.page.get_by_label("Edit question", exact=True).and_(tab.page.locator("textarea")).fill("Better")
        await tab.page.get_by_role("button", name="Ask", exact=True).click()
        await tab.says("Other")
        assert asked(fake) == [("user", "First"), ("assistant", "One"), ("user", "Better")]
        await tab.page.reload()
        await tab.says("Other")
        await expect(tab.turns).to_have_count(2)
        await tab.ask("More")
        await tab.says("Third")
        assert [content for _, content in asked(fake)] == ["First", "One", "Better", "Other", "More"]


async def test_an_answer_that_was_too_long_is_continued(service, fake, browser):
    fake.replies = [Reply(text("The **first", finish_reason="length")), *answers(" half** and the second", "Next")]
    async with visiting(browser, service.url) as tab:
        await tab.ask("A long one")
        await expect(tab.turns.last.locator(".facts")).to_contain_text("stopped at the length limit")
        await tab.press("Continue")
        await tab.says("The first half and the second")
        await expect(tab.text.locator("strong")).to_have_text("first half")
        await expect(tab.page.get_by_role("button", name="Continue")).to_be_hidden()
        assert [role for role, _ in asked(fake)] == ["user", "assistant", "user"]
        assert asked(fake)[1][1] == "The **first"
        await tab.page.reload()
        await tab.says("The first half and the second")
        await tab.ask("Go on")
        await tab.says("Next")


async def test_reasoning_is_seen_while_it_comes(service, fake, browser):
    go = asyncio.Event()
    thought = [sse(chunk({"reasoning_content": f"Step {number}. "})) for number in range(2)]
    fake.reply([thought[0], Wait(go), thought[1], *text("Done")])
    async with visiting(browser, service.url) as tab:
        await tab.ask("Think")
        await expect(tab.page.locator("summary")).to_have_text("Thinking…")
        await expect(tab.page.locator(".thought")).to_have_text("Step 0.")
        await expect(tab.page.locator(".thought")).to_be_visible()
        go.set()
        await tab.is_in("completed")
        await expect(tab.page.locator("summary")).to_have_text(re.compile(r"Thought for \d+\.\d s"))
        await expect(tab.page.locator(".thought")).to_be_hidden()


async def test_the_model_the_system_prompt_and_the_temperature_are_chosen(serve, fake, browser):
    fake.models = ["gpt-4o", "gpt-5", "whisper"]
    service = await serve(models=("gpt-*",))
    async with visiting(browser, service.url) as tab:
        names = tab.page.locator("#model option")
        await expect(names).to_have_text(["gpt-4o-mini", "gpt-4o", "gpt-5", "Another model…"])
        await tab.page.get_by_label("Model", exact=True).select_option("gpt-5")
        await tab.press("Options")
        await tab.page.get_by_label("System prompt").fill("Be brief.")
        await tab.page.get_by_label("Temperature").fill("0.5")
        await tab.page.keyboard.press("Escape")
        await tab.ask("One")
        await tab.says("Hello")
        await tab.ask("Two")
        await tab.says("Hello")
        assert asked(fake) == [("system", "Be brief."), ("user", "One"), ("assistant", "Hello"), ("user", "Two")]
        assert (fake.requests[-1].body["temperature"], fake.requests[-1].body["model"]) == (0.5, "gpt-5")
        await tab.page.reload()
        await tab.press("Options")
        await expect(tab.page.get_by_label("System prompt")).to_have_value("Be brief.")
        await tab.page.get_by_label("System prompt").fill("Be long.")
        await tab.page.keyboard.press("Escape")
        await tab.ask("Three")
        await tab.says("Hello")
        assert asked(fake)[0] == ("system", "Be long.")


async def test_conversations_are_found_renamed_and_saved_as_files(service, fake, browser):
    fake.replies = answers("About **apples**", "About pears")
    links = "nav a"
    async with visiting(browser, service.url) as tab:
        await tab.ask("First")
        await tab.says("About apples")
        await tab.press("New conversation")
        await tab.ask("Second")
        await tab.says("About pears")
        await expect(tab.page.locator("nav h2")).to_have_text(["Today"])
        await tab.page.get_by_label("Search conversations").fill("APPLES")
        await expect(tab.page.locator(links)).to_have_text(["First"])
        await tab.page.get_by_label("Search conversations").fill("nothing like it")
        await expect(tab.page.get_by_text("Nothing found.")).to_be_visible()
        await tab.page.get_by_label("Search conversations").fill("")
        await tab.page.get_by_role("link", name="First").click()
        await tab.press("Conversation menu")
        await tab.press("Rename")
        await tab.page.get_by_label("Title").fill("Fruit/§ 1")
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("h1")).to_have_text("Fruit/§ 1")
        await expect(tab.page.locator(links)).to_have_text(["Second", "Fruit/§ 1"])
        saved = []
        for name in ("Save as Markdown", "Save as JSON"):
            await tab.press("Conversation menu")
            async with tab.page.expect_download() as download:
                await tab.press(name)
            file = await download.value
            saved.append((file.suggested_filename, (await contents(file))))
        assert saved[0] == (
            "Fruit-1.md",
            "# Fruit/§ 1\n\n## You\n\nFirst\n\n## gpt-4o-mini-2024-07-18\n\nAbout **apples**\n",
        )
        assert saved[1][0] == "Fruit-1.json"
        assert json.loads(saved[1][1])["turns"][0]["text"] == "About **apples**"
        await tab.press("Conversation menu")
        await tab.press("Delete")
        await expect(tab.page.locator(links)).to_have_text(["Second"])
        await tab.press("Undo")
        await expect(tab.page.locator(links)).to_have_count(2)


async def test_no_conversation_is_deleted_without_a_warning(service, browser):
    async with visiting(browser, service.url) as tab:
        await tab.page.evaluate("""async () => {
          const { save } = await import("/static/page/storage.js");
          const turn = { id: "t", question: "q", text: "x".repeat(20_000), toolCalls: [], reasoning: "", state: "completed" };
          for (let at = 1; at <= 98; at += 1) save({ id: `c${at}`, title: `Title ${at}`, at, model: "", turns: [turn] });
        }""")
        await tab.page.reload()
        await expect(tab.page.locator("nav a")).to_have_count(98)
        await tab.ask("x" * 30_000)
        await tab.says("Hello")
        await expect(tab.page.get_by_role("alert")).to_contain_text(
            re.compile("the oldest conversation, “Title 1”, was deleted")
        )
        await expect(tab.page.locator("nav a")).to_have_count(98)
        async with tab.page.expect_download() as download:
            await tab.press("Save as a file")
        assert (await download.value).suggested_filename == "Title-1.md"


async def test_on_touch_enter_is_a_new_line(service, fake, browser):
    async with visiting(browser, service.url, **TOUCH) as tab:
        field = tab.page.get_by_label("Message", exact=True)
        await field.fill("one")
        await tab.page.keyboard.press("Enter")
        await tab.page.keyboard.type("two")
        await expect(field).to_have_value("one\ntwo")
        assert await field.get_attribute("enterkeyhint") == "enter"
        small = """all => all.filter((one) => one.checkVisibility()).map((one) => [one.ariaLabel || one.textContent,
          one.getBoundingClientRect()]).filter(([, box]) => box.width < 36 || box.height < 36).map(([name]) => name)"""
        assert await tab.page.locator("button").evaluate_all(small) == []
        await tab.press("Send")
        await tab.is_in("completed")
        wide = "all => all.every((one) => one.getBoundingClientRect().height >= 44 || !one.checkVisibility())"
        assert await tab.page.locator("header button, footer button, .question-actions button, #attach").evaluate_all(
            wide
        )
    assert asked(fake) == [("user", "one\ntwo")]


async def test_what_was_typed_is_kept_and_the_end_is_always_seen(service, fake, browser):
    fake.replies = [Reply(text("line\n\n" * 60)), Reply([*text("more")[:2], Hang()])]
    async with visiting(browser, service.url) as tab:
        field = tab.page.get_by_label("Message", exact=True)
        await field.fill("not sent yet")
        await tab.page.reload()
        await expect(field).to_have_value("not sent yet")
        await tab.ask("Many lines")
        await tab.is_in("completed")
        await expect(field).to_have_value("")
        await field.fill("\n".join(["a draft"] * 9))
        end = "(box) => Math.abs(box.scrollHeight - box.scrollTop - box.clientHeight) < 2"
        await expect(tab.text.locator("p").last).to_be_in_viewport()
        assert await tab.page.locator("#thread").evaluate(end)
        await tab.page.locator("#thread").evaluate("(box) => { box.scrollTop = 0 }")
        latest = await tab.page.get_by_role("button", name="Latest").bounding_box()
        composer = await tab.page.locator("#composer").bounding_box()
        assert latest["y"] + latest["height"] <= composer["y"]
        await tab.press("New conversation")
        await expect(field).to_have_value("")
        await tab.page.get_by_role("link", name="Many lines").click()
        await expect(field).to_have_value("\n".join(["a draft"] * 9))
        # Stop stands in the place of Send as long as nothing is typed.
        await tab.ask("On")
        await tab.says("more")
        await expect(tab.page.get_by_role("button", name="Send")).to_be_hidden()
        await field.fill("interrupt")
        await expect(tab.page.get_by_role("button", name="Stop")).to_be_hidden()
        await expect(tab.page.get_by_role("button", name="Send")).to_be_visible()
        await field.fill("")
        await tab.press("Stop")
        await tab.is_in("cancelled")


async def test_a_long_question_is_folded(service, browser):
    async with visiting(browser, service.url) as tab:
        await tab.ask("**Bold** and\n" + "more\n" * 20)
        await tab.is_in("completed")
        shown = tab.page.locator(".question .text")
        await expect(shown.locator("strong")).to_have_text("Bold")
        height = (await shown.bounding_box())["height"]
        await tab.press("Show all")
        assert (await shown.bounding_box())["height"] > 2 * height
        await tab.press("Show less")
        assert (await shown.bounding_box())["height"] == height


async def test_images_are_attached(serve, fake, browser):
    service = await serve(max_frame_bytes=20_000)
    paste = """(data) => {
      const file = new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "red.png", { type: "image/png" });
      const transfer = new DataTransfer();
      transfer.items.add(file);
      document.getElementById("question").dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
      document.getElementById("main").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }"""
    async with visiting(browser, service.url) as tab:
        await tab.page.evaluate(paste, base64.b64encode(png()).decode())
        attached = tab.page.get_by_role("list", name="Images").get_by_role("listitem")
        await expect(attached).to_have_count(2)
        await tab.press("Remove image 1")
        await tab.page.locator("#files").set_input_files(
            {"name": "b.png", "mimeType": "image/png", "buffer": png(3, 3)}
        )
        await expect(attached).to_have_count(2)
        noise = bytes(range(256)) * 80
        await tab.page.locator("#files").set_input_files({"name": "c.txt", "mimeType": "text/plain", "buffer": noise})
        await expect(tab.page.get_by_role("alert")).to_contain_text("c.txt cannot be attached: it is no PNG")
        large = png() + noise
        await tab.page.locator("#files").set_input_files({"name": "d.png", "mimeType": "image/png", "buffer": large})
        await expect(tab.page.get_by_role("alert")).to_contain_text("larger than this server takes (0.0 MB)")
        await tab.ask("What is it?")
        await tab.says("Hello")
        (question,) = [message["content"] for message in fake.requests[0].body["messages"]]
        assert question[0] == {"type": "text", "text": "What is it?"}
        assert [part["type"] for part in question[1:]] == ["image_url"] * 2
        assert base64.b64decode(question[1]["image_url"]["url"].partition(",")[2]) == png()
        await tab.page.reload()
        await expect(tab.page.locator(".shown-images img")).to_have_count(2)
        await tab.turns.last.get_by_role("button", name="Ask again").click()
        await expect(tab.page.locator(".versions")).to_have_text("‹2/2›")
        await tab.says("Hello")
    assert fake.requests[1].body["messages"][0]["content"] == question


async def test_it_finds_the_server_again_by_itself_and_says_that_it_is_offline(service, browser):
    async with (
        dropping(service.url) as cable,
        visiting(browser, f"http://127.0.0.1:{cable.port}/", complains=True) as tab,
    ):
        state = tab.page.locator("#state")
        await expect(state).to_have_text("Connected")
        cable.fall_silent()
        await tab.page.context.set_offline(True)
        await expect(state).to_have_text("Offline")
        cable.go_on()
        await tab.page.context.set_offline(False)
        await expect(state).to_have_text("Connected")
        await cable.pull()
        await expect(state).not_to_have_text("Connected")
        await cable.plug()
        await expect(state).to_have_text("Connected")  # though nothing is asked


async def test_it_loads_without_a_network(service, browser):
    async with dropping(service.url) as cable:
        url = f"http://127.0.0.1:{cable.port}/"
        async with visiting(browser, url, complains=True, service_workers="allow") as tab:
            await tab.ask("Kept **here**")
            await tab.says("Hello")
            await tab.page.evaluate("navigator.serviceWorker.ready")
            kept = (
                "caches.open('ws-chat-page').then((cache) => cache.keys()).then((keys) => keys.map(({ url }) => url))"
            )
            while f"{url}static/page/worker.js" not in await tab.page.evaluate(kept):
                await tab.page.reload()
            await cable.pull()
            await tab.page.reload()
            await tab.says("Hello")
            await expect(tab.page.locator(".question strong")).to_have_text("here")
            await cable.plug()
            await tab.ask("And now?")
            await expect(tab.turns).to_have_count(2)
            await tab.says("Hello")
            manifest = await (await tab.page.request.get(f"{url}static/manifest.webmanifest")).json()
            assert (manifest["start_url"], manifest["display"]) == ("../", "standalone")


async def test_the_demo_shows_what_an_answer_can_be(serve, browser):
    service = await serve(openai_api_key=None, openai_base_url=None, upstream="demo")
    async with visiting(browser, service.url) as tab:
        await tab.page.get_by_label("Model", exact=True).select_option("demo-fast")
        for name, shown in [
            ("Explain", ".katex"),
            ("Write code", "figure.code .c-keyword"),
            ("Compare", "table"),
            ("Plan", "ol, ul"),
        ]:
            await tab.page.get_by_role("button", name=re.compile(f"^{name} ")).click()
            await tab.is_in("completed")
            await expect(tab.text.locator(shown).first).to_be_visible()
            await tab.press("New conversation")
            await tab.page.get_by_label("Model", exact=True).select_option("demo-fast")


async def test_a_second_tab_has_its_own_view(service, fake, browser):
    fake.replies = answers("One", "Two")
    async with visiting(browser, service.url) as tab:
        await tab.ask("First")
        await tab.says("One")
        other = await open_tab(tab.page.context, tab.page.url)
        await other.says("One")
        await tab.turns.last.get_by_role("button", name="Ask again").click()
        await tab.says("Two")
        await other.says("Two")
        await expect(other.page.locator(".versions")).to_have_text("‹2/2›")
        assert not other.complaints
        await other.page.close()
