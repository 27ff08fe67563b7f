"""`ws-chat chat` as a person has it: typed at in a real pseudo-terminal, and read off its screen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import stat
import sys
import termios

import pytest
from support.dropping import dropping, port_of
from support.processes import output
from support.terminals import terminal
from support.waiting import until

from ws_chat.testing import Hang, Pause, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"


@pytest.fixture
def chat(tmp_path):
    @contextlib.asynccontextmanager
    async def start(url, *arguments, **options):
        state = {"XDG_STATE_HOME": str(tmp_path / "state"), "WS_CHAT_URL": url}
        async with terminal("ws-chat", "chat", *arguments, **state, **options) as shown:
            await shown.prompt(1)
            yield shown

    return start


def messages(fake, number=-1):
    return [(message["role"], message["content"]) for message in fake.requests[number].body["messages"]]


async def test_an_answer_is_typed_out_and_ctrl_d_leaves(service, fake, chat):
    more = asyncio.Event()
    fake.reply([sse(chunk({"content": "Hel"})), Wait(more), *text("lo")])
    async with chat(service.url, real=True) as shown:
        shown.type("hi" + ENTER)
        await shown.until("^Hel$")
        more.set()
        await shown.until("^Hello$")
        await shown.prompt(2)
        shown.type(CTRL_D)

        assert await shown.end() == 0
    assert "Traceback" not in shown.text


async def test_a_turn_costs_the_new_message_only(service, fake, chat):
    async with chat(service.url, "--system", "Be brief.") as shown:
        for number, question in enumerate(("one", "two"), 2):
            shown.type(question + ENTER)
            await shown.prompt(number)
    assert messages(fake) == [("system", "Be brief."), ("user", "one"), ("assistant", "Hello"), ("user", "two")]


async def test_ctrl_c_stops_the_answer_and_not_the_program(service, fake, chat):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with chat(service.url) as shown:
        shown.type("one" + ENTER)
        await shown.until("^Hel$")
        shown.type(CTRL_C)
        await shown.until(r"^\(stopped\)$")
        await fake.requests[0].closed.wait()
        await shown.prompt(2)
        shown.type("two" + ENTER)
        await shown.until("^Hello$")
        await shown.prompt(3)
        shown.type(CTRL_C)
        await shown.until("Ctrl-D exits.\n\n›$")

        assert shown.process.returncode is None
    assert messages(fake) == [("user", "one"), ("assistant", "Hel"), ("user", "two")]


async def test_ctrl_c_that_comes_too_late_ends_nothing(service, chat):
    async with chat(service.url) as shown:
        shown.type("one" + ENTER)
        await shown.until("^Hello$")
        for _ in range(20):
            shown.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.01)  # so that they come at all moments around the end of the answer
        await shown.prompt(2)
        shown.type("two" + ENTER)
        await shown.until("(?s)^Hello$.*^Hello$")
    assert shown.text.count("Hello") == 2


async def test_ctrl_c_does_not_wait_for_a_network_that_is_gone(service, fake, chat):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with dropping(service.url) as network, chat(network.url) as shown:
        shown.type("one" + ENTER)
        await shown.until("^Hel$")
        await network.pull()
        await shown.until("the connection is lost, trying again")
        shown.type(CTRL_C)
        await shown.until(r"^\(stopped\)$")
        await shown.prompt(2)


async def test_a_message_may_have_several_lines(service, fake, chat):
    async with chat(service.url) as shown:
        shown.type("one\\" + ENTER + "two\x1b" + ENTER + "three\nfour")
        await shown.until("^  four$")
        assert not fake.requests
        shown.type(ENTER)
        await shown.prompt(2)
        shown.type("\x1b[200~pasted\rlines\x1b[201~" + ENTER)
        await shown.until("(?s)lines.*Hello")
    assert [messages(fake, 0)[-1][1], messages(fake, 1)[-1][1]] == ["one\ntwo\nthree\nfour", "pasted\nlines"]


async def test_what_is_typed_during_an_answer_is_sent_after_it(service, fake, chat):
    more = asyncio.Event()
    fake.reply([sse(chunk({"content": "Hel"})), Wait(more), *text("lo")])
    async with chat(service.url) as shown:
        shown.type("one" + ENTER)
        await shown.until("^Hel$")
        shown.type("two" + ENTER)
        more.set()
        await fake.request(2)
        await shown.prompt(3)
    assert messages(fake)[-1] == ("user", "two")
    assert shown.text.count("two") == 1


async def test_what_is_typed_before_the_first_prompt_is_sent(service, fake, tmp_path):
    state = {"XDG_STATE_HOME": str(tmp_path)}
    async with terminal("ws-chat", "chat", "--local", OPENAI_BASE_URL=fake.base_url, **state) as shown:
        await until(lambda: not termios.tcgetattr(shown.descriptor)[3] & termios.ECHO, "keys not to be shown")
        shown.type("hi" + ENTER)
        await shown.until("^Hello$")
        await shown.prompt(2)
    assert shown.text.count("hi") == 1


async def test_the_history_is_kept_and_private(service, chat, tmp_path):
    async with chat(service.url) as shown:
        shown.type("what was that" + ENTER)
        await shown.prompt(2)
        shown.type(CTRL_D)
        await shown.end()
    async with chat(service.url) as shown:
        shown.type("\x1b[A")
        await shown.until("^› what was that$")

    path = tmp_path / "state/ws-chat/history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["folder", "history"])
async def test_a_history_that_cannot_be_written_is_only_not_kept(wrong, service, chat, tmp_path):
    if wrong == "folder":
        (tmp_path / "state").write_text("a file")
    else:
        (tmp_path / "state/ws-chat/history").mkdir(parents=True)
    async with chat(service.url) as shown:
        shown.type("hi" + ENTER)
        await shown.until("^Hello$")


async def test_commands(service, fake, chat, tmp_path):
    async with chat(service.url, columns=200) as shown:

        async def command(line, expected):
            shown.type(line + ENTER)
            await shown.until(expected)

        await command("/retry", "no question to ask again")
        await command("/save", "nothing to save yet")
        await command("/frob", "Unknown command /frob: /help lists them")
        await command("/modle x", "did you mean /model")
        await command("/help", "(?s)/system TEXT.*Alt-Enter")
        await command("/model", "Model: the server's default")
        await command("/model m2", "Model: m2")
        await command("/system Be kind.", "System message: Be kind.")
        await command("/stats", "Figures after each answer: on")
        await command("hi", "(?s)Hello.*s to the first token.*5 tokens in, 2 out")
        assert fake.requests[0].body["model"] == "m2"
        await command("/retry", "(?s)› hi\n\nHello.*› hi\n\nHello.*s to the first")
        assert messages(fake) == messages(fake, 0) == [("system", "Be kind."), ("user", "hi")]
        await command("/system -", "System message: none")
        await command("/usr/bin is what?", "is what.\n\nHello")
        assert messages(fake) == [("user", "hi"), ("assistant", "Hello"), ("user", "/usr/bin is what?")]
        await command(f"/save {tmp_path}/it.md", "Written to")
        await command(f"/save {tmp_path}/it.json", "it.json")
        await command("/new", "A new conversation")
        await command("anew", "anew\n\nHello")
        assert messages(fake) == [("user", "anew")]
        await command(f"/save {tmp_path}/it.md", "exists already")
        await command(f"/save {tmp_path}/no/it.md", "cannot be written: No such file")
        await command("/save ~nobody-of-that-name/it.md", "is not a file name")
        shown.type("/quit" + ENTER)
        assert await shown.end() == 0

    assert (tmp_path / "it.md").read_text().startswith("## You\n\nhi\n\n## gpt-4o-mini")
    said = json.loads((tmp_path / "it.json").read_text())
    assert [message["content"] for message in said] == ["hi", "Hello", "/usr/bin is what?", "Hello"]


async def test_models_images_and_the_last_conversation(service, fake, chat, tmp_path):
    fake.models = ["gpt-4o", "gpt-5-mini"]
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    async with chat(service.url, columns=200) as shown:
        shown.type("/models" + ENTER)
        await shown.until(r"gpt-4o-mini  \(in use\)\ngpt-4o\ngpt-5-mini")
        shown.type("/model gpt-5\t" + ENTER)
        await shown.until("Model: gpt-5-mini")
        shown.type("/att\t" + f" {tmp_path}/no.png" + ENTER)
        await shown.until("no.png cannot be read: No such file")
        shown.type(f"/attach {tmp_path}/a.png" + ENTER)
        await shown.until("1 image will be sent")
        shown.type("What is it?" + ENTER)
        await shown.until("^Hello$")
        await shown.prompt(6)
        shown.type("And now?" + ENTER)
        await shown.prompt(7)
    async with chat(service.url, "--continue", columns=200) as shown:
        await shown.until("Continues after 2 questions: And now\\?")
        shown.type("More" + ENTER)
        await shown.until("^Hello$")

    first, *_, last = messages(fake)
    assert [part["type"] for part in first[1]] == ["text", "image_url"]
    assert ([content for _, content in messages(fake)[1:]], last[0]) == (["Hello", "And now?", "Hello", "More"], "user")
    assert fake.requests[-1].body["model"] == "gpt-5-mini"


async def test_a_failure_is_shown_and_may_be_retried(service, fake, chat):
    fake.refuse(400, "No such \x1b]0;thing.")
    async with chat(service.url) as shown:
        shown.type("hi" + ENTER)
        await shown.until("upstream_rejected: .*No such ␛")
        await shown.prompt(2)
        shown.type("/retry" + ENTER)
        await shown.until("^Hello$")
    assert messages(fake) == [("user", "hi")]


async def test_it_goes_on_over_a_network_that_breaks(service, fake, chat):
    words = [f"w{number}" for number in range(60)]
    fake.reply(text(*(word + " " for word in words)))
    budgets = iter([400, 400])
    async with dropping(service.url, lambda: next(budgets, None)) as proxy, chat(proxy.url) as shown:
        shown.type("hi" + ENTER)
        await shown.prompt(2)

    assert " ".join(shown.text.split()).count(" ".join(words)) == 1
    assert proxy.drops


async def test_it_goes_on_after_a_server_was_killed(serve, fake, chat):
    fake.reply(text("One."))
    fake.reply([sse(chunk({"content": "Two, in par"})), Hang()])
    first, second, third = [port_of((await serve()).url) for _ in range(3)]
    async with dropping(first) as network, chat(network.url) as shown:
        shown.type("one" + ENTER)
        await shown.prompt(2)
        shown.type("two" + ENTER)
        await shown.until("Two, in par")
        await network.pull()
        await shown.until("the connection is lost, trying again")
        network.lead_to(second)
        await network.plug()
        await shown.until("asking again")
        await shown.until("^Hello$")
        await shown.prompt(3)
        await network.pull()
        network.lead_to(third)
        await network.plug()
        shown.type("three" + ENTER)
        await shown.prompt(4)

    before = [("user", "one"), ("assistant", "One."), ("user", "two")]
    assert messages(fake, 2) == before
    assert messages(fake, 3) == [*before, ("assistant", "Hello"), ("user", "three")]
    assert "Traceback" not in shown.text


async def test_what_the_server_forgets_is_sent_again(serve, fake, chat):
    service = await serve(retention=0)
    async with chat(service.url) as shown:
        for number, question in enumerate(("one", "two"), 2):
            shown.type(question + ENTER)
            await shown.prompt(number)
    assert messages(fake) == [("user", "one"), ("assistant", "Hello"), ("user", "two")]
    assert "not_found" not in shown.text


async def test_nothing_of_a_model_commands_the_terminal(service, fake, chat):
    attack = "\x1b]0;pwned\x07\x1b[2J\x9b31m&#27;[31m&#x9b;1m`\x1b[5m`\n\n"
    attack += "```\x1b]52;c;eA==\x07\n\x1b[H\x08\n```\n\nend\r\x7f."
    pieces = [sse(chunk({"content": character})) for character in attack]
    fake.reply([sse(chunk({"reasoning_content": "\x1b[3J"})), *pieces, *text("")])
    async with chat(service.url) as shown:
        shown.type("hi" + ENTER)
        await shown.until("^end␡\\.$")

    for command in (b"\x1b]", b"\x1b[2J", b"\x1b[3J", b"\x1b[5m", b"\x1b[H", b"\xc2\x9b", b"\x07"):
        assert command not in shown.raw
    assert "␛]0;pwned␇" in shown.text


async def test_colours_are_left_out_where_they_are_not_wanted(service, fake, chat):
    fake.reply(text("**bold** `code`\n\n```python\nx = 1\n```\n"))
    async with chat(service.url, NO_COLOR="1") as shown:
        shown.type("hi" + ENTER)
        await shown.until("x = 1")
        await shown.prompt(2)
    assert b"\x1b[3" not in shown.raw
    assert b"\x1b[1;3" not in shown.raw


async def test_a_dumb_terminal_gets_plain_text(service, fake, chat):
    fake.reply(text("one\n", "two \x1b[31m**three**"))
    async with chat(service.url, TERM="dumb") as shown:
        shown.type("hi" + ENTER)
        await shown.until("^one\ntwo ␛\\[31m\\*\\*three\\*\\*$")
        await shown.prompt(2)
    assert b"\x1b" not in shown.raw


async def test_narrow_windows_and_wide_characters(service, fake, chat):
    fake.reply(text("日本語の長い返事です。" * 8, "\n\n| あ | い |\n|---|---|\n| う | え |\n"))
    async with chat(service.url, columns=20, rows=10) as shown:
        shown.type("やっほ" + ENTER)
        await shown.prompt(2)
    assert "日本語の長い返事です。" * 8 in shown.text.replace("\n", "").replace(" ", "")
    assert "Traceback" not in shown.text


async def test_a_block_that_is_higher_than_the_window_is_in_the_scrollback_once(service, fake, chat):
    code = [f"line_{number} = {number}" for number in range(60)]
    rows = [f"| r{number} | {'x' * number} |" for number in range(30)]
    pieces = ["```python\n", *(line + "\n" for line in code), "```\n\n", "| a | b |\n|---|---|\n"]
    steps = [[sse(chunk({"content": piece})), Pause(0.01)] for piece in (*pieces, *(row + "\n" for row in rows))]
    fake.reply([*(step for pair in steps for step in pair), *text("\nThe end.")])
    async with chat(service.url, rows=15) as shown:
        shown.type("hi" + ENTER)
        await shown.until("^The end.$")
        await shown.prompt(2)

    lines = shown.text.splitlines()
    assert [line for line in lines if line.startswith("line_")] == code
    shown_rows = [line.split() for line in lines if re.match(r" r\d", line)]
    assert shown_rows == [row.strip("|").replace("|", "").split() for row in rows]


async def test_what_has_come_is_shown_though_nothing_follows(service, fake, chat):
    more = asyncio.Event()
    lines = [f"- item {number}\n" for number in range(20)]
    fake.reply([*(sse(chunk({"content": line})) for line in lines), Wait(more), *text("- the end")])
    async with chat(service.url) as shown:
        shown.type("hi" + ENTER)
        await shown.until("item 19$")
        more.set()
        await shown.until("the end$")
        await shown.prompt(2)
    assert re.findall(r"item \d+", shown.text) == [line[2:-1] for line in lines]


async def test_a_signal_leaves_the_terminal_as_it_was(service, fake, chat):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with chat(service.url) as shown:
        shown.type("hi" + ENTER)
        await shown.until("^Hel$")
        shown.process.send_signal(signal.SIGTERM)

        assert await shown.end() == 143
        await fake.requests[0].closed.wait()
    assert shown.raw.rfind(b"\x1b[?25h") > shown.raw.rfind(b"\x1b[?25l")


async def test_without_a_server_no_message_is_asked_for():
    async with terminal("ws-chat", "chat", "--url", "ws://127.0.0.1:9") as shown:
        assert await shown.end() == 3
        await shown.until("ws-chat chat --local")
    assert "›" not in shown.text


async def test_a_question_on_the_command_line_is_answered_plainly(service, fake):
    fake.reply(text("**bold** \x1b[31m"))
    async with terminal("ws-chat", "chat", "hi", WS_CHAT_URL=service.url) as shown:
        assert await shown.end() == 0
        await shown.until(r"^\*\*bold\*\* ␛\[31m$")
    assert b"\x1b" not in shown.raw


async def test_a_server_loads_nothing_of_it():
    code = "import sys, ws_chat.__main__, ws_chat.server.app; print({'rich', 'prompt_toolkit', 'markdown_it'} & set(sys.modules))"
    status, out, err = await output(sys.executable, "-c", code)

    assert (status, out.strip(), err) == (0, b"set()", b"")
