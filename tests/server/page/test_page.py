"""The page at `/` in a real Chromium: asking, stopping, interrupting, failing, several conversations, the inspector."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from fastapi import FastAPI
from support.browser import chromium, expect, visiting
from support.processes import need, output
from support.service import running

from ws_chat import Settings, create_app
from ws_chat.testing import Cut, Hang, Reply, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def browser(anyio_backend):
    async with chromium() as started:
        yield started


def unfinished(*contents):
    return Reply([*text(*contents)[: len(contents) + 1], Hang()])


async def test_it_types(service, fake, browser):
    go = asyncio.Event()
    head, first, *rest = text("Blue **light** is", " scattered.")
    fake.replies = [Reply([head, first, Wait(go), *rest])]
    async with visiting(browser, service.url) as tab:
        await expect(tab.page.get_by_label("Message", exact=True)).to_be_focused()
        await tab.ask("Why is the sky blue?")
        await tab.says("Blue light is")
        await tab.is_in("running")
        assert await tab.text.locator("strong").inner_text() == "light"
        go.set()
        await tab.is_in("completed")
        await tab.says("Blue light is scattered.")
        await expect(tab.turns.last.get_by_role("heading", name="Why is the sky blue?")).to_be_visible()
        await expect(tab.turns.last.locator(".facts")).to_contain_text("gpt-4o-mini-2024-07-18")
        await expect(tab.page).to_have_title("Why is the sky blue? · ws_chat")

        await tab.ask("And at night?")
        await tab.says("Hello")
        assert await tab.turns.count() == 2

    assert fake.requests[0].body["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    assert [message["content"] for message in fake.requests[1].body["messages"]] == [
        "Why is the sky blue?",
        "Blue **light** is scattered.",
        "And at night?",
    ]


async def test_stop(service, fake, browser):
    fake.replies = [unfinished("One ", "two"), unfinished("Three")]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Count")
        await tab.says("One two")
        await tab.press("Stop")
        await tab.is_in("cancelled")
        await expect(tab.page.get_by_role("button", name="Stop")).to_be_hidden()
        await tab.ask("Go on")
        await tab.says("Three")
        await tab.page.keyboard.press("Escape")
        await tab.is_in("cancelled")

    for request in fake.requests:
        await request.closed.wait()
    assert fake.requests[1].body["messages"][1] == {"role": "assistant", "content": "One two"}


async def test_sending_while_it_answers_interrupts(service, fake, browser):
    fake.replies = [unfinished("It is ", "a long story")]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Tell me")
        await tab.says("It is a long story")
        await tab.ask("Shorter")
        await tab.says("Hello")
        await expect(tab.turns.first).to_have_attribute("data-state", "cancelled")
        sent = [frame for frame in await frames(tab) if '"previous_id"' in frame]

    await fake.requests[0].closed.wait()
    assert len(json.loads(sent[0])["messages"]) == 1, "the server knows what came before"
    assert [message["content"] for message in fake.requests[1].body["messages"]] == [
        "Tell me",
        "It is a long story",
        "Shorter",
    ]


async def test_several_conversations_run_on_one_socket(service, fake, browser):
    first, second = asyncio.Event(), asyncio.Event()
    head, *steps = text("a", "b")
    fake.replies = [Reply([head, steps[0], Wait(first), *steps[1:]]), Reply([head, steps[0], Wait(second), *steps[1:]])]
    async with visiting(browser, service.url) as tab:
        await tab.ask("First")
        await tab.says("a")
        await tab.press("New conversation")
        await expect(tab.turns).to_have_count(0)
        await tab.ask("Second")
        await tab.says("a")
        assert service.connections.open == 1
        links = tab.page.get_by_role("navigation").get_by_role("link")
        await expect(links).to_have_text(["Second, is answering", "First, is answering"])
        first.set()
        await expect(links).to_have_text(["Second, is answering", "First"])
        await tab.says("a")
        await links.last.click()
        await tab.says("ab")
        second.set()
        await links.first.click()
        await tab.says("ab")
        await tab.page.go_back()
        await expect(tab.page.get_by_role("heading", name="First", exact=True).last).to_be_visible()

        await links.first.hover()
        await tab.press("Delete “Second”")
        await expect(links).to_have_text(["First"])
        await tab.press("Undo")
        await expect(links).to_have_text(["Second", "First"])
        await tab.press("Delete “Second”")
        await tab.page.reload()
        await expect(links).to_have_text(["First"])


async def test_a_title_shows_formulas_without_their_delimiters(service, fake, browser):
    async with visiting(browser, service.url) as tab:
        await tab.ask(r"Is \(a^2\) more than $b_1$ for $5 and $$c$$? \[d\]" + "\nAnd why?")
        await tab.says("Hello")
        title = "Is a^2 more than b_1 for $5 and c? d"
        await expect(tab.page.locator("#conversations a")).to_have_text(title)
        await expect(tab.page.locator("#title")).to_have_text(title)
        await tab.press("New conversation")
        await tab.ask("\\[\nx^2\n\\]")
        await tab.says("Hello")
        await expect(tab.page.locator("#title")).to_have_text("x^2")


async def test_the_model_is_chosen(serve, fake, browser):
    service = await serve(models=("gpt-4o-mini", "gpt-4o", "o*"))
    async with visiting(browser, service.url) as tab:
        model = tab.page.get_by_label("Model", exact=True)
        await expect(model.locator("option")).to_have_text(["gpt-4o-mini", "gpt-4o", "Another model…"])
        await expect(model).to_have_value("")
        await tab.choose_model("o3")
        await expect(model).to_be_focused()
        await expect(model).to_have_value("o3")
        await tab.ask("hi")
        await tab.says("Hello")
        await model.select_option(label="gpt-4o-mini")
        await tab.ask("and the default?")
        await tab.says("Hello")
        await model.select_option(label="Another model…")
        await tab.page.keyboard.press("Escape")
        await expect(model).to_have_value("")
        await tab.choose_model("unknown")
        await tab.ask("hi")
        await tab.is_in("failed")
        await expect(tab.turns.last.locator(".error")).to_contain_text("model_not_allowed · 403")

    assert [request.body["model"] for request in fake.requests] == ["o3", "gpt-4o-mini"]
    assert len(fake.requests[1].body["messages"]) == 3


async def test_an_error_is_shown_as_what_it_is_and_tried_again(service, fake, browser):
    fake.refuse(400, "The image is no image.")
    fake.replies.append(Reply([*text("Half an ans")[:2], Cut()]))
    async with visiting(browser, service.url) as tab:
        await tab.ask("What is this?")
        await tab.is_in("failed")
        error = tab.turns.last.locator(".error")
        await expect(error).to_contain_text("upstream_rejected · 400")
        await expect(error).to_contain_text("The image is no image.")
        await tab.press("Try again")
        await expect(error).to_contain_text("upstream_incomplete · 502")
        await tab.says("Half an ans")
        await tab.press("Try again")
        await tab.is_in("completed")
        await tab.says("Hello")
        await expect(error).to_be_hidden()
        await tab.press("Ask again")
        await expect(tab.turns.last.locator(".facts")).to_contain_text("2 tokens")
        assert await tab.turns.count() == 1

    assert [request.body["messages"] for request in fake.requests] == [
        [{"role": "user", "content": "What is this?"}]
    ] * len(fake.requests)


async def test_an_error_says_that_the_server_no_longer_keeps_an_answer(serve, fake, browser):
    service = await serve(retention=0)
    async with visiting(browser, service.url) as tab:
        await tab.ask("First")
        await tab.is_in("completed")
        await tab.ask("Second")
        await tab.is_in("completed")
        await tab.says("Hello")

    assert [message["content"] for message in fake.requests[-1].body["messages"]] == ["First", "Hello", "Second"]


async def test_reasoning_tool_calls_and_refusals_are_shown(service, fake, browser):
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
    more = {"index": 0, "function": {"arguments": '"Kyoto"}'}}
    deltas = [{"reasoning_content": "Let me "}, {"reasoning_content": "think."}, {"refusal": "Better not."}]
    deltas += [{"tool_calls": [call]}, {"tool_calls": [more]}]
    fake.reply([*(sse(chunk(delta)) for delta in deltas), sse(chunk({}, "tool_calls")), b"data: [DONE]\n\n"])
    async with visiting(browser, service.url) as tab:
        await tab.ask("Weather?")
        await tab.is_in("completed")
        await expect(tab.turns.locator("summary")).to_have_text(re.compile("Thought for|Reasoning"))
        await expect(tab.turns.locator(".thought")).to_have_text("Let me think.")
        await expect(tab.turns.locator(".call")).to_have_text('weather({"city":"Kyoto"})')
        await tab.says("Better not.")
        await expect(tab.turns.locator(".facts")).to_contain_text("calls tools, which this page does not have")


async def test_what_is_asked_right_after_a_key_was_given_uses_it(serve, fake, browser):
    service = await serve(api_keys=("correct-horse",))
    fake.reply(text("Let in"))
    # `close` of the dialog comes with the next picture, which is after the question here.
    at_once = """() => {
      document.getElementById("key-value").value = "correct-horse";
      document.getElementById("key-use").click();
      document.getElementById("question").value = "Me?";
      document.getElementById("composer").requestSubmit();
    }"""
    async with visiting(browser, service.url) as tab:
        await expect(tab.page.get_by_role("dialog", name="API key")).to_be_visible()
        await tab.page.evaluate(at_once)
        await tab.is_in("completed")
        assert len([asked for asked in tab.requests if asked.startswith("ws:")]) == 1


async def test_a_key_is_requested_and_a_wrong_one_reported(serve, fake, browser):
    service = await serve(api_keys=("correct-horse",))
    async with visiting(browser, service.url, complains=True) as tab:
        dialog = tab.page.get_by_role("dialog", name="API key")
        await expect(dialog).to_contain_text("This server asks for a key.")
        await tab.page.get_by_label("Key", exact=True).fill("wrong")
        await tab.page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("Invalid API key")  # though nothing was asked
        await tab.page.get_by_label("Key", exact=True).fill("correct-horse")
        await tab.press("Use it")
        await expect(tab.page.locator("#state")).to_have_text("Connected")
        await tab.ask("hi")
        await tab.says("Hello")

        await tab.press("Inspect")
        for line in await commands(tab):
            assert "correct-horse" not in line
            assert '"Authorization: Bearer $WS_CHAT_KEY"' in line
        await tab.page.get_by_label("Copy with the key").check()
        assert all("'Authorization: Bearer correct-horse'" in line for line in await commands(tab))
        kept = await tab.page.evaluate("JSON.stringify(localStorage)")
        await tab.page.reload()
        await tab.ask("again")
        await tab.says("Hello")

    assert "correct-horse" not in kept, "only where it was asked to be kept"
    assert len(fake.requests) == 2


async def test_a_frame_is_copied_as_a_line_for_a_terminal(service, fake, browser):
    for program in ("curl", "wscat"):
        need(program)
    async with visiting(browser, service.url) as tab:
        await tab.ask('It\'s "quoted" `so` $HOME\nand broken')
        await tab.says("Hello")
        await tab.press("Inspect")
        await tab.page.get_by_role("tab", name="Frames").click()
        await expect(tab.page.locator("#frames .type")).to_have_text(["chat", "start", "token", "token", "done"])
        await expect(tab.page.locator("#frames .brief").nth(2)).to_have_text('"Hel"')
        curl, wscat = await commands(tab)
    # The id makes it the same answer, so that looking at it costs nothing.
    status, out, err = await output("bash", "-c", curl)
    assert status == 0, err
    assert b'"content":"Hel' in out
    pipe = asyncio.subprocess.PIPE
    # Its standard input stays open, as in a terminal: at its end it would go.
    running = await asyncio.create_subprocess_exec("bash", "-c", f"exec {wscat}", stdin=pipe, stdout=pipe)
    await running.stdout.readuntil(b'"type":"done"')
    running.terminate()
    await running.communicate()
    assert len(fake.requests) == 1
    assert fake.requests[0].body["messages"][0]["content"].endswith("$HOME\nand broken")


async def test_the_stream_is_drawn(service, fake, browser):
    go = asyncio.Event()
    head, first, *rest = text("one ", "two ", "three ", "four")
    fake.replies = [Reply([head, first, Wait(go), b"".join(rest)])]
    async with visiting(browser, service.url) as tab:
        await tab.press("Inspect")
        await expect(tab.page.locator("#streams")).to_contain_text("Ask something")
        await tab.ask("Count")
        await tab.says("one")
        go.set()
        await tab.is_in("completed")
        stream = tab.page.locator(".stream")
        await expect(stream.get_by_role("heading", name="Count")).to_be_visible()
        names, values = [await stream.locator(kind).all_inner_texts() for kind in ("dt", "dd")]
        figures = dict(zip(names, values, strict=True))
        assert figures["Received"] == "4 tokens in 2 frames"
        assert figures["Merged frames"] == "1"
        assert figures["First token"].endswith("ms")
        assert await stream.get_by_role("img").get_attribute("aria-label")
        colours = await stream.locator("canvas").evaluate("""(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const found = new Set();
          for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] === 255) found.add(data.slice(at, at + 3).join());
          }
          return [...found];
        }""")
        assert {"104,98,88", "15,107,92", "180,84,10"} <= set(colours), "the first token, a frame, a merged frame"


async def test_a_link_of_a_conversation_opens_it(service, browser):
    async with visiting(browser, service.url) as tab:
        await tab.ask("Remember me")
        await tab.says("Hello")
        address = tab.page.url
        await tab.page.goto("about:blank")
        await tab.page.goto(address)
        await tab.says("Hello")
        await tab.ask("Second")
        await expect(tab.turns).to_have_count(2)


async def test_it_stands_under_a_prefix_too(fake, browser):
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="k", drain_timeout=0)
    inner = create_app(settings)
    outer = FastAPI(lifespan=lambda _: inner.router.lifespan_context(inner))
    outer.mount("/talk", inner)
    outer.state = inner.state
    async with running(outer, settings) as mounted, visiting(browser, mounted.url + "/talk/") as tab:
        await tab.ask("hi")
        await tab.says("Hello")


async def frames(tab):
    """Return the frames that were sent and received, as texts."""
    await tab.press("Inspect")
    await tab.page.get_by_role("tab", name="Frames").click()
    rows = tab.page.locator("#frames li")
    await expect(rows.first).to_be_visible()
    for row in await rows.all():
        await row.locator("summary").click()
        await expect(row.locator("pre")).to_be_visible()
    return [json.dumps(json.loads(frame)) for frame in await rows.locator("pre").all_inner_texts()]


async def commands(tab):
    """Copy the first chat frame as curl and as wscat; return both lines."""
    await tab.page.get_by_role("tab", name="Frames").click()
    row = tab.page.locator("#frames li").filter(has_text="sent").last
    if not await row.locator("pre").count():
        await row.locator("summary").click()
    lines = []
    await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for program in ("curl", "wscat"):
        await (
            row.get_by_role("button", name=f"Copy as {program}")
            .or_(row.get_by_role("button", name="Copied"))
            .first.click()
        )
        lines.append(await tab.page.evaluate("navigator.clipboard.readText()"))
        await expect(row.get_by_role("button", name=f"Copy as {program}")).to_be_visible()
    return lines
