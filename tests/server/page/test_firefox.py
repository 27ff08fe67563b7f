"""The page at `/` in a real Firefox: typing, stop, a refresh in mid-answer, two tabs, formulas, the policy."""

from __future__ import annotations

import asyncio

import pytest
from support.firefox import ENTER, firefox

from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

ANSWER = "[...document.querySelectorAll('.answer > .text')].at(-1)?.innerText"
STATE = "[...document.querySelectorAll('article.turn')].at(-1)?.dataset.state"


async def test_it_types_stops_resumes_and_is_seen_in_two_tabs(service, fake):
    go = asyncio.Event()
    head, first, *rest = text("Blue **light** is", " scattered: $x^2$\n\n```python\nx = 1  # one\n```\n")
    fake.replies = [Reply([head, first, Wait(go), *rest]), Reply([*text("Never")[:2], Hang()])]
    async with firefox() as browser:
        tab = await browser.tab(service.url)
        await tab.sees("document.activeElement.id === 'question'")
        await tab.type("Why is the sky blue?" + ENTER)
        await tab.sees(f"{ANSWER} === 'Blue light is'")
        await tab.reload()
        await tab.sees(f"{ANSWER} === 'Blue light is' && {STATE} === 'running'")
        second = await browser.tab(await tab.evaluate("location.href"))
        await second.sees(f"{ANSWER} === 'Blue light is'")
        go.set()
        for each in (tab, second):
            await each.sees(
                f"{STATE} === 'completed' && document.querySelector('.katex') && {ANSWER}.includes('scattered')"
            )
            await each.sees("document.querySelector('figure.code .c-comment')")
        await tab.evaluate("document.getElementById('question').focus()")
        await tab.type("And now?" + ENTER)
        await second.sees(f"{ANSWER} === 'Never' && {STATE} === 'running'")
        await second.evaluate("document.getElementById('stop').click()")
        for each in (tab, second):
            await each.sees(f"{STATE} === 'cancelled'")
        refused = "(() => { try { document.body.innerHTML = '<b>hi</b>'; return false } catch { return true } })()"
        assert await second.evaluate(f"!globalThis.trustedTypes || {refused}")
    assert len(fake.requests) == 2
    await fake.requests[1].closed.wait()
