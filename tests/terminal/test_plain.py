"""`ws-chat chat` in a pipe, a script and a file: text or frames out, all else on standard error, and a status."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import stat
from pathlib import Path

import httpx
import pytest
from support import forked
from support.dropping import dropping, port_of
from support.processes import environment, output
from support.service import HELLO
from support.terminals import terminal

from ws_chat.testing import DONE, Hang, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def started(*arguments, url="ws://127.0.0.1:9", stdout=forked.PIPE, real=False, **variables):
    """Start it. `real`: as a person does, not forked."""
    process = await (asyncio.create_subprocess_exec if real else forked.start)(
        *("ws-chat", "chat", *arguments),
        env=environment(**{"WS_CHAT_URL": url, **variables}),
        stdin=forked.PIPE,
        stdout=stdout,
        stderr=forked.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if not real:
            process.close()


async def ask(*arguments, stdin=b"", **variables):
    """Run it to its end; return its status, standard output and standard error."""
    async with started(*arguments, **variables) as process:
        out, err = await process.communicate(stdin)
    return process.returncode, out.decode(), err.decode()


def asked(fake):
    return fake.requests[-1].body["messages"]


@pytest.mark.parametrize("real", [True, False])
async def test_an_answer_is_plain_text(real, service, fake):
    assert await ask("say", "hi", url=service.url, real=real) == (0, "Hello\n", "")
    assert asked(fake) == [{"role": "user", "content": "say hi"}]


async def test_what_a_pipe_gives_is_asked(service, fake):
    assert (await ask(stdin="“やっほ”\n".encode(), url=service.url))[0] == 0
    assert asked(fake)[0]["content"] == "“やっほ”"


async def test_what_the_command_line_says_comes_before_what_a_pipe_gives(service, fake):
    await ask("Summarise", stdin=b"one\ntwo\n", url=service.url)

    assert asked(fake)[0]["content"] == "Summarise\n\none\ntwo"


@pytest.mark.parametrize("by_environment", [False, True])
async def test_model_system_and_key_come_from_options_or_the_environment(serve, fake, by_environment):
    service = await serve(api_keys=("k1",))
    if by_environment:
        given = {"WS_CHAT_MODEL": "m1", "WS_CHAT_SYSTEM": "Be brief.", "WS_CHAT_API_KEY": "k1"}
        status = (await ask("hi", url=service.url, **given))[0]
    else:
        status = (await ask("hi", "--model=m1", "--system=Be brief.", "--key=k1", f"--url={service.url}"))[0]

    assert status == 0
    assert fake.requests[0].body["model"] == "m1"
    assert asked(fake) == [{"role": "system", "content": "Be brief."}, *HELLO]


async def test_frames_come_one_a_line(service):
    status, out, err = await ask("hi", "--json", url=service.url)
    start, *tokens, done = [json.loads(line) for line in out.splitlines()]

    assert (status, err) == (0, "")
    assert start == {"type": "start", "id": done["id"], "seq": 0, "model": "gpt-4o-mini", "epoch": start["epoch"]}
    assert [(frame["type"], frame["content"]) for frame in tokens] == [("token", "Hel"), ("token", "lo")]
    assert (done["type"], done["seq"], done["status"], done["finish_reason"]) == ("done", 3, "completed", "stop")
    assert done["usage"]["completion_tokens"] == 2


async def test_what_is_refused_is_an_error_frame(service, fake):
    fake.refuse(400, "No such model.")
    status, out, err = await ask("hi", "--json", url=service.url)
    start, error = [json.loads(line) for line in out.splitlines()]

    assert (status, start["type"], error["type"], error["seq"]) == (1, "start", "error", 1)
    assert error["error"]["code"] == "upstream_rejected"
    assert "No such model." in err


async def test_an_answer_that_breaks_off_fails(service, fake):
    fake.reply(text("Hel", finish_reason=None, done=False))
    status, out, err = await ask("hi", url=service.url)

    assert (status, out) == (1, "Hel\n")
    assert err.startswith("ws-chat: upstream_incomplete: ")


async def test_stats_are_shown_on_request(service):
    status, out, err = await ask("hi", "--stats", url=service.url)

    assert (status, out) == (0, "Hello\n")
    assert "s to the first token" in err
    assert "5 tokens in, 2 out" in err


async def test_fields_of_any_type_crash_nothing(service, fake):
    deltas = [{name: value} for name in ("content", "refusal", "tool_calls") for value in (5, ["a"], {"text": "b"})]
    steps = [*(sse(chunk(delta)) for delta in deltas), *text("The ", "end", usage=False, done=False)]
    fake.reply([*steps, sse({"choices": [], "usage": "many"}), DONE])
    status, out, err = await ask("--stats", "hi", url=service.url)

    assert (status, out) == (0, "The end\n"), err
    assert "deltas" in err


async def test_input_that_is_not_text_is_an_error(service, fake):
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    fake.reply([sse(chunk({"tool_calls": [call]})), sse(chunk({}, "tool_calls"))])
    status, out, err = await ask("hi", url=service.url)
    assert (status, out) == (0, "")
    assert "look({})" in err

    fake.reply(text("Hel", finish_reason="length"))
    status, out, err = await ask("hi", url=service.url)
    assert (status, out) == (0, "Hel\n")
    assert "cut short: length" in err

    fake.reply([sse(chunk({"refusal": "I won't."})), sse(chunk({}, "stop"))])
    status, out, err = await ask("hi", url=service.url)
    assert (status, out) == (1, "")
    assert "I won't." in err


async def test_ctrl_c_cancels_the_answer(service, fake):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with started("hi", url=service.url, real=True) as process:
        process.stdin.close()
        assert await process.stdout.readexactly(3) == b"Hel"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

        assert (process.returncode, err) == (130, b"")
        await fake.requests[0].closed.wait()


async def test_after_ctrl_c_a_terminal_goes_on_in_a_line_of_its_own(service, fake):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with terminal("ws-chat", "chat", "hi", WS_CHAT_URL=service.url) as shown:
        await shown.until("^Hel$")
        shown.type("\x03")
        await shown.until(r"^Hel\^C$")
        assert await shown.end() == 130
        await shown.until_at_the_left()


async def test_sigterm_cancels_the_answer(service, fake):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with started("hi", url=service.url) as process:
        process.stdin.close()
        await process.stdout.readexactly(3)
        process.terminate()
        _, err = await process.communicate()

        assert (process.returncode, err) == (143, b"")
        await fake.requests[0].closed.wait()


@pytest.mark.parametrize(("where", "expected"), [(">/dev/full", b"cannot be written"), (">&-", b"")])
async def test_where_nothing_can_be_written_it_ends(where, expected, service):
    status, _, err = await output("bash", "-c", f"ws-chat chat hi {where}", WS_CHAT_URL=service.url)
    assert status in {1, 2}
    assert expected in err
    assert b"Traceback" not in err


async def test_a_reader_that_goes_away_cancels_the_answer_quietly(service, fake):
    gone = asyncio.Event()
    fake.reply([sse(chunk({"content": "Hel"})), Wait(gone), sse(chunk({"content": "lo"})), Hang()])
    reading, writing = os.pipe()
    async with started("hi", url=service.url, stdout=writing) as process:
        process.stdin.close()
        os.close(writing)
        assert await asyncio.to_thread(os.read, reading, 3) == b"Hel"
        os.close(reading)
        gone.set()
        err = await process.stderr.read()

        assert (await process.wait(), err) == (141, b"")
        await fake.requests[0].closed.wait()


async def test_without_a_server_it_says_what_to_do():
    status, out, err = await ask("hi", url="ws://127.0.0.1:9")

    assert (status, out) == (3, "")
    assert "cannot be reached: Connection refused\n" in err
    for part in ("127.0.0.1:9", "ws-chat serve", "WS_CHAT_URL", "ws-chat chat --local"):
        assert part in err
    assert "Traceback" not in err


async def test_a_url_with_a_path_that_is_not_the_servers_is_explained(service):
    status, _, err = await ask("hi", url=f"{service.url}/docs")
    assert status == 1
    assert f"Server: {service.ws_url.replace('/v1', '/docs/v1')}" in err
    assert "--url is the address of the server" in err
    assert "/retry" not in err


async def test_a_missing_key_is_an_error_with_a_hint(serve):
    service = await serve(api_keys=("k1",))
    for key, expected in (("", "requires a key"), ("k2", "does not accept this key")):
        status, out, err = await ask("hi", url=service.url, WS_CHAT_API_KEY=key)
        assert (status, out) == (1, "")
        assert expected in err
        assert "WS_CHAT_API_KEY" in err


async def test_parameters_and_images_are_sent(service, fake, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    options = ("-m", "m-1", "-s", "Be brief.", "-o", "temperature=0.5", "-o", "stop=[1]", "-o", "user=me")
    place = "https://example.org/b.jpg"
    status, out, err = await ask(*options, "-a", str(picture), "-a", place, "What?", url=service.url)

    assert (status, out, err) == (0, "Hello\n", "")
    body = fake.requests[0].body
    assert (body["model"], body["temperature"], body["stop"], body["user"]) == ("m-1", 0.5, [1], "me")
    urls = [f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}", place]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    assert body["messages"][1]["content"] == [{"type": "text", "text": "What?"}, *parts]


async def test_the_last_conversation_is_continued(service, fake, tmp_path):
    state = {"url": service.url, "XDG_STATE_HOME": str(tmp_path)}
    status, _, err = await ask("-c", "hi", **state)
    assert status == 2
    assert f"no conversation to continue yet: {tmp_path}" in err
    await ask("-m", "m-1", "-s", "Be brief.", "one", **state)
    assert (await ask("--continue", "two", **state))[0] == 0
    assert (await ask("-c", "-m", "m-2", "three", **state))[0] == 0

    said = [message["content"] for message in asked(fake)]
    assert said == ["Be brief.", "one", "Hello", "two", "Hello", "three"]
    assert [request.body["model"] for request in fake.requests] == ["m-1", "m-1", "m-2"]
    assert stat.S_IMODE((tmp_path / "ws-chat/conversation.json").stat().st_mode) == 0o600


async def test_every_error_says_where_and_what_to_do(serve, fake):
    service = await serve(models=("gpt-*",))
    fake.refuse(400, "No such thing.")
    for options, expected in ((["-m", "o3"], "-m chooses one"), ([], "check the model (-m)")):
        status, _, err = await ask(*options, "hi", url=service.url)
        assert status == 1
        assert expected in err
        assert f"Server: {service.ws_url}" in err


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["hi", "-o", "temperature"], b"", "-o/--option: 'temperature' must be KEY=VALUE"),
        (["hi", "-o", "model=x"], b"", "model is not a parameter; -m sets the model"),
        (["hi", "-a", "no.png"], b"", "no.png cannot be read: No such file"),
        (["hi", "-a", "no.txt"], b"", "no.txt: must be a PNG"),
        ([], b"", "question is empty"),
        ([" "], b" \n", "question is empty"),
        ([], b"\xff", "not UTF-8"),
        (["hi", "--url=http://"], b"", "not the URL"),
        (["hi", "--url=ftp://x"], b"", "it must start with http://, https://, ws:// or wss://"),
        (["hi", "--key=a b"], b"", "An API key must"),
        ([b"\xff"], b"", "must be UTF-8"),
        (["--frob"], b"", "--frob"),
        (["--local", "--url=ws://x"], b"", "not allowed with"),
    ],
)
async def test_a_wrong_command_is_named(arguments, stdin, expected):
    status, out, err = await ask(*arguments, stdin=stdin)

    assert (status, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


async def test_it_goes_on_over_a_network_that_breaks(serve, fake):
    service = await serve()
    words = [f"w{number} " for number in range(40)]
    fake.reply(text(*words))
    budgets = iter([400, 400])
    async with dropping(service.url, lambda: next(budgets, None)) as proxy:
        status, out, _ = await ask("hi", url=proxy.url)

    assert (status, out) == (0, "".join(words) + "\n")
    assert proxy.drops


async def replaced(network, process, service):
    """Let a server be killed, and another one take its place; return what the program has said of that."""
    await network.pull()
    said = await process.stderr.readuntil(b"trying again")
    network.lead_to(port_of(service.url))
    await network.plug()
    return said


async def test_an_answer_of_a_lost_server_is_requested_from_the_next_one(serve, fake):
    fake.reply([Hang()])
    first, second = await serve(), await serve()
    async with dropping(first.url) as network, started("hi", url=network.url) as process:
        process.stdin.close()
        await fake.request()
        said = await replaced(network, process, second)
        out, err = await process.communicate()

    assert (process.returncode, out) == (0, b"Hello\n")
    assert b"cannot be reached" in said
    assert b"trying again" not in err, "it is said once"


async def test_an_answer_that_was_printed_in_part_is_not_started_again(serve, fake):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    first, second = await serve(), await serve()
    async with dropping(first.url) as network, started("hi", url=network.url) as process:
        process.stdin.close()
        assert await process.stdout.readexactly(3) == b"Hel"
        await replaced(network, process, second)
        out, err = await process.communicate()

    assert (process.returncode, out) == (1, b"\n")
    assert b"no longer has this answer" in err
    assert len(fake.requests) == 1


async def test_a_pipe_gets_exactly_what_the_model_says(service, fake):
    said = "\x1b[31mred\x1b[0m\r\n\x07\x9b"
    fake.reply(text(said))
    async with started("hi", url=service.url) as process:
        out, _ = await process.communicate(b"")

    assert out.decode() == said + "\n"


async def test_local_needs_no_server_and_no_key():
    status, out, err = await ask("hello", "--local", "--model=demo-fast")

    assert (status, err) == (0, "")
    assert "“hello”" in out


async def test_local_uses_the_model_of_the_environment(fake):
    given = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-mine", "WS_CHAT_REDIS_URL": "redis://127.0.0.1:1"}
    assert await ask("hello", "--local", **given) == (0, "Hello\n", "")
    assert fake.requests[0].headers["authorization"] == "Bearer sk-mine"


async def test_local_serves_no_other_client(fake):
    fake.reply([sse(chunk({"content": "Hel"})), Hang()])
    async with started("hello", "--local", "--json", OPENAI_BASE_URL=fake.base_url) as process:
        process.stdin.close()
        await process.stdout.readline()
        ports = set(listening(process.pid))
        assert len(ports) == 1
        async with httpx.AsyncClient(timeout=None) as client:
            response = await client.post(f"http://127.0.0.1:{ports.pop()}/v1/chat/stream", json={"messages": HELLO})

    assert response.status_code == 401


async def test_a_wrong_environment_of_a_local_server_is_named():
    status, _, err = await ask("hello", "--local", WS_CHAT_MAX_CONNECTIONS="many")

    assert status == 2
    assert err.startswith("ws-chat: WS_CHAT_MAX_CONNECTIONS")


def listening(pid):
    """Yield the TCP ports of 127.0.0.1 on which a process listens (proc(5))."""
    sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in sockets:
            yield int(local.partition(":")[2], 16)
