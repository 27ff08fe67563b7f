"""The page at `/` in a real Chromium, where things break: refreshed, cut off, on a bad network, its server gone."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from support.browser import chromium, expect, open_tab, visiting
from support.dropping import dropping, port_of
from support.waiting import until

from ws_chat.stores.base import GenerationKey
from ws_chat.testing import Reply, Wait, text

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def browser(anyio_backend):
    async with chromium() as started:
        yield started


@pytest.fixture
async def cable(service):
    """A network that can be pulled and plugged in again, or made to break all the time."""
    async with dropping(service.url) as cable:
        yield cable


def page_at(cable):
    return f"http://127.0.0.1:{cable.port}/"


def waiting(*contents):
    """Return a reply that waits before its last delta, and what lets it go on."""
    go = asyncio.Event()
    steps = text(*contents)
    steps.insert(len(contents), Wait(go))
    return Reply(steps), go


async def test_a_refresh_in_mid_answer(service, fake, browser):
    reply, go = waiting("Once ", "upon ", "a time")
    fake.replies = [reply]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Tell me a story")
        await tab.says("Once upon")
        await tab.page.reload()
        await tab.says("Once upon")
        await tab.is_in("running")
        go.set()
        await tab.is_in("completed")
        await tab.says("Once upon a time")
        await tab.page.reload()
        await tab.says("Once upon a time")

    assert len(fake.requests) == 1


async def test_a_refresh_after_the_id_was_used_again_shows_one_answer(service, fake, browser):
    """The page keeps the epoch; an answer that another one has replaced is shown in its place, from its start."""
    reply, go = waiting("Once ", "upon ", "a time")
    fake.replies = [reply, Reply(text("In the ", "beginning"))]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Tell me a story")
        await tab.says("Once upon")
        turn = "Object.entries(localStorage).filter(([key]) => key.includes('conversation'))"
        (kept,) = [json.loads(value)["turns"][0] for _, value in await tab.page.evaluate(turn)]
        (log,) = service.relay._store._logs.values()
        assert kept["epoch"] == log.start.epoch
        shown = tab.page.url
        await tab.page.goto("about:blank")
        go.set()
        await until(lambda: not service.relay.running, "the answer to end")
        key = GenerationKey("anonymous", kept["id"], named=True)
        service.relay._store.remove(key)
        async with service.socket() as socket:
            await socket.chat(id=kept["id"])
            sent = []
            tab.page.on(
                "websocket", lambda opened: opened.on("framesent", lambda frame: sent.append(json.loads(frame)))
            )
            await tab.page.goto(shown)
            await tab.says("In the beginning")
            await tab.is_in("completed")
    resumed = [(frame["after"], frame.get("epoch")) for frame in sent if frame["type"] == "resume"]
    assert resumed == [(0, kept["epoch"]), (0, None)]


async def test_the_network_goes_in_mid_answer_and_comes_back(cable, fake, browser):
    reply, go = waiting("Once ", "upon ", "a time")
    fake.replies = [reply]
    async with visiting(browser, page_at(cable), complains=True) as tab:
        await tab.ask("Tell me a story")
        await tab.says("Once upon")
        await cable.pull()
        await expect(tab.page.locator("#state")).to_have_text("Connecting…")
        await expect(tab.page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
        await tab.is_in("running")
        go.set()
        await cable.plug()
        await tab.is_in("completed")
        await tab.says("Once upon a time")
        await expect(tab.page.locator("#state")).to_have_text("Connected")
        await expect(tab.page.get_by_role("alert")).to_be_hidden()

    assert len(fake.requests) == 1


async def test_the_browser_says_that_it_is_offline(service, fake, browser):
    reply, go = waiting("Once ", "upon ", "a time")
    fake.replies = [reply]
    async with visiting(browser, service.url, complains=True) as tab:
        await tab.ask("Tell me a story")
        await tab.says("Once upon")
        await tab.page.context.set_offline(True)
        for connection in service.server.server_state.connections.copy():
            connection.transport.abort()
        await expect(tab.page.locator("#state")).to_have_text("Offline")
        go.set()
        await tab.page.context.set_offline(False)
        await tab.is_in("completed")
        await tab.says("Once upon a time")

    assert len(fake.requests) == 1


async def test_what_is_asked_without_a_network_is_asked_when_it_is_back(cable, fake, browser):
    async with visiting(browser, page_at(cable), complains=True) as tab:
        await expect(tab.page.locator("#state")).to_have_text("Connected")
        await cable.pull()
        await tab.ask("Are you there?")
        await tab.is_in("asked")
        await expect(tab.page.locator("#state")).to_have_text("Connecting…")
        await cable.plug()
        await tab.says("Hello")

    assert len(fake.requests) == 1


async def test_a_network_that_breaks_all_the_time(cable, fake, browser):
    words = [f"word{number} " for number in range(300)]
    fake.default = Reply(text(*words))
    chance = random.Random(7)
    async with visiting(browser, page_at(cable), complains=True) as tab:
        cable.budget = lambda: chance.randint(300, 6000)
        await cable.pull()
        await cable.plug()
        for number in range(3):
            await tab.ask(f"Question {number}")
            await tab.is_in("completed")
            await tab.says("".join(words).strip())
    assert cable.drops
    assert len(fake.requests) == 3


async def test_two_tabs_type_one_answer(service, fake, browser):
    reply, go = waiting("Once ", "upon ", "a time")
    second, never = waiting("Never ", "ends")
    fake.replies = [reply, second]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Tell me a story")
        await tab.says("Once upon")
        other = await open_tab(tab.page.context, tab.page.url)
        await other.says("Once upon")
        # What one of them keeps, because it may be about to go, is no news for the other.
        await other.page.evaluate("dispatchEvent(new Event('pagehide'))")
        await expect(tab.page.get_by_role("button", name="Stop")).to_be_visible()
        go.set()
        for each in (tab, other):
            await each.is_in("completed")
            await each.says("Once upon a time")
        # What is asked in one is seen in the other without anything being done there, and may be stopped there.
        await tab.ask("Another one")
        await other.says("Never")
        await other.is_in("running")
        await other.press("Stop")
        for each in (tab, other):
            await each.is_in("cancelled")
            await each.says("Never")
        assert not other.complaints
        await other.page.close()

    assert len(fake.requests) == 2
    await fake.requests[1].closed.wait()
    never.set()


async def test_a_server_that_is_gone_has_lost_its_answers(serve, fake, browser):
    reply, never = waiting("Half of ", "it")
    fake.replies = [reply]
    first, second = await serve(), await serve()
    async with dropping(first.url) as cable, visiting(browser, page_at(cable), complains=True) as tab:
        await tab.ask("Tell me")
        await tab.says("Half of")
        await cable.pull()
        cable.lead_to(port_of(second.url))
        await cable.plug()
        await tab.page.evaluate("dispatchEvent(new Event('online'))")  # else it is tried again after a pause
        await tab.is_in("failed")
        error = tab.turns.last.locator(".error")
        await expect(error).to_contain_text("not_found")
        await expect(error).to_contain_text("The server does not keep this answer any more.")
        await tab.says("Half of")
        await tab.press("Try again")
        await tab.says("Hello")
        await tab.ask("And")
        await tab.says("Hello")
    never.set()

    assert len(fake.requests[-1].body["messages"]) == 3


async def test_a_browser_whose_storage_is_full_chats_too(service, browser):
    async with visiting(browser, service.url, changes=True) as tab:
        await tab.page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full') }")
        await tab.page.reload()
        await tab.ask("hi")
        await tab.says("Hello")
        await expect(tab.page.get_by_role("alert")).to_contain_text("no room to keep this conversation")


async def test_a_browser_that_forbids_storage_chats_too(service, browser):
    async with visiting(browser, service.url, changes=True) as tab:
        for name in ("localStorage", "sessionStorage"):
            await tab.page.add_init_script(f"Object.defineProperty(globalThis, '{name}', {{ get() {{ throw 1 }} }})")
        await tab.page.reload()
        await tab.ask("hi")
        await tab.says("Hello")
        await tab.ask("and again")
        await tab.says("Hello")
        await expect(tab.page.get_by_role("navigation").get_by_role("link")).to_have_text(["hi"])


async def test_what_is_kept_is_bounded(service, browser):
    async with visiting(browser, service.url) as tab:
        await tab.page.evaluate("""async () => {
          const { save } = await import("/static/page/storage.js");
          const text = "x".repeat(100_000);
          const turns = [{ id: "t", question: "q", text, toolCalls: [], reasoning: "", state: "completed" }];
          for (let at = 1; at <= 60; at += 1) {
            if (!save({ id: `c${at}`, title: `c${at}`, at, model: "", turns }).kept) throw Error("full");
          }
          const huge = [{ ...turns[0], text: "x".repeat(3_000_000) }];
          if (save({ id: "c61", title: "c61", at: 61, model: "", turns: huge }).kept) throw Error("kept");
        }""")
        kept = await tab.page.evaluate("Object.keys(localStorage)")
        size = await tab.page.evaluate("Object.values(localStorage).join('').length")
        await tab.page.reload()
        links = tab.page.get_by_role("navigation").get_by_role("link")
        await expect(links.first).to_have_text("c60")

    assert 10 < len(kept) < 20
    assert size <= 2_000_000
