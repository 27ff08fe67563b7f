"""The browser client, in front of the real server or a scripted one, over a network that breaks.

browser_client.mjs holds the tests; here is what they talk to. A test has things done on this side by name (`have`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING

import pytest
from support.dropping import dropping
from support.processes import ROOT, lacking, need, output
from support.service import HELLO
from support.waiting import until
from websockets.asyncio.server import serve as serve_sockets

from ws_chat.stores.base import GenerationKey
from ws_chat.testing import DONE, Cut, Hang, Reply, Wait, chunk, sse, text, usage_chunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

LONG = [f"{number} " for number in range(1500)]
TESTS = ROOT / "tests/server/page/browser_client.mjs"


@pytest.fixture(scope="module")
async def node(anyio_backend) -> str:
    program = need("node")
    status, _, err = await output(program, "--experimental-websocket", "-e", "new EventTarget(), WebSocket")
    if status:
        lacking(f"node is too old for the browser client's tests: {err.decode().strip()}")
    return program


@contextlib.asynccontextmanager
async def controlled(actions: dict[str, Callable[[], Awaitable[None]]], failures: list[str]):
    """Do by HTTP what a test asks for; the answer is 200 when it is done, 500 when it failed."""

    async def serve(reader, writer):
        name = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().removeprefix("/")
        status = 200
        try:
            await actions[name]()
        except (KeyError, AssertionError) as error:
            failures.append(f"What it had done, {name}, failed: {error!r}")
            status = 500
        writer.write(b"HTTP/1.1 %d .\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
def passes(node):
    """Return a function that runs one test of browser_client.mjs, which must pass."""

    async def run(name: str, url: str, **given) -> None:
        variables = {key: given.pop(key) for key in list(given) if key.isupper()}
        actions = {key.replace("_", "-"): action for key, action in given.items()}
        failures: list[str] = []
        async with controlled(actions, failures) as control:
            status, _, err = await output(
                *(node, "--experimental-websocket", "--no-warnings", str(TESTS)),
                **{"TEST": name, "URL": url, "CONTROL": control, **variables},
            )
        if status == 13:  # which is what Node ends with then
            failures.append(f'"{name}" in browser_client.mjs waits for what never comes')
        if status:
            pytest.fail("\n".join([*failures, err.decode()]), pytrace=False)

    return run


def aborting(service):
    """Return an action: abort every connection of the server, as a network does."""

    async def abort() -> None:
        for connection in service.server.server_state.connections.copy():
            connection.transport.abort()

    return abort


def setting(*events):
    """Return an action: set the next event."""
    left = iter(events)

    async def go() -> None:
        if event := next(left, None):
            event.set()

    return go


def stepwise(*contents: str) -> tuple[Reply, list[asyncio.Event]]:
    """Return a reply that waits for an event after each delta but the last."""
    events = [asyncio.Event() for _ in contents[1:]]
    head, *steps = text(*contents)
    for place, event in enumerate(events):
        steps.insert(2 * place + 1, Wait(event))
    return Reply([head, *steps]), events


async def test_text(passes, service, fake):
    await passes("text", service.url)

    assert (fake.requests[0].body["temperature"], fake.requests[0].body["messages"]) == (0.5, HELLO)
    assert (fake.requests[1].body["model"], fake.requests[1].body["messages"]) == ("m-1", HELLO)
    assert not {"id", "type", "previous_id"} & set(fake.requests[0].body)


async def test_frames_with_tool_calls(passes, service, fake):
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    pieces = [
        [head],
        [{"index": 0, "id": None, "type": "", "function": {"name": "", "arguments": '{"a"'}}],
        [{"index": 0, "id": "", "function": {"name": None, "arguments": ":1}"}}, other],
    ]
    steps = [sse(chunk({"tool_calls": piece})) for piece in pieces]
    fake.reply([*steps, sse(chunk({}, "tool_calls"), usage_chunk()), DONE])
    await passes("frames", service.url)

    assert [message["role"] for message in fake.requests[1].body["messages"]] == ["user", "assistant", "tool"]


async def test_an_iteration_that_is_left_can_be_continued(passes, service):
    await passes("leaving", service.url)


@pytest.mark.parametrize("way", ["cancel", "signal"])
async def test_cancel(way, passes, service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    await passes(way, service.url)

    assert len(fake.requests) == 1
    await fake.requests[0].closed.wait()


async def test_several_at_once_on_one_socket(passes, service):
    async def expect_one_connection():
        assert service.connections.open == 1

    await passes("several", service.url, expect_one_connection=expect_one_connection)


async def test_an_answer_is_whole_whatever_the_network_does(passes, service, fake):
    fake.default = Reply([b"".join(text(*LONG[at : at + 50])[1:51]) for at in range(0, 1500, 50)] + text()[1:])
    chance = random.Random(1)
    async with dropping(service.url, lambda: int(chance.expovariate(1 / 6000)) + 250) as proxy:
        await passes("breaking", proxy.url)

    assert proxy.drops > 5
    assert len(fake.requests) == 10


@pytest.mark.parametrize("at", "abc")
async def test_a_connection_that_is_aborted_at_a_delta(at, passes, service, fake):
    fake.default, events = stepwise(*"abcd")
    await passes("aborted", service.url, AT=at, abort=aborting(service), go=setting(*events))

    assert len(fake.requests) == 1


async def test_what_was_never_acknowledged_is_sent_again(passes, service, fake):
    async def answer(number, socket, frame):
        async with service.socket() as behind:
            await behind.send(frame)
            await fake.request()
            if number == 1:
                socket.transport.abort()  # the request has arrived, and its acknowledgement gets lost
            else:
                for answered in await behind.until_end():
                    await socket.send(json.dumps(answered))

    async with Script(answer) as script:
        await passes("unacknowledged", script.url)

    assert len(fake.requests) == 1


async def test_what_is_cancelled_while_away_is_cancelled_on_return(passes, service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    await passes("cancel-while-away", service.url, abort=aborting(service))

    await fake.requests[0].closed.wait()


async def test_a_second_reader_follows(passes, service, fake):
    reply, events = stepwise(*"abcd")
    fake.replies.append(reply)

    async def go():
        for event in events:
            event.set()

    await passes("follow", service.url, go=go)

    assert len(fake.requests) == 2


async def test_errors_say_what_they_are(passes, service, fake):
    fake.refuse(400, "no such thing")
    fake.refuse(429, "slow down", x_should_retry="false")
    fake.reply([*text("a")[:2], Cut()])
    await passes("errors", service.url)


async def test_a_request_that_is_too_large_fails_alone(passes, serve):
    service = await serve(max_frame_bytes=1000)
    await passes("too-large", service.url)


async def test_a_history_that_is_gone_says_so(passes, serve, fake):
    service = await serve(resume_window=0, retention=0)
    fake.default = Reply([*text("a")[:2], Hang()])
    await passes("history", service.url, abort=aborting(service))


async def test_a_server_that_stays_away_is_given_up(passes, service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with dropping(service.url) as proxy:
        await passes("patience", proxy.url, stop=proxy.pull)


async def test_closing_ends_running_answers(passes, service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    await passes("closing", service.url)


async def test_an_id_that_is_used_again_continues_no_old_reader(passes, service, fake):
    fake.reply(text("a", "b", "c"))
    fake.reply(text("X", "Y", "Z"))

    async def forget() -> None:
        service.relay._store.remove(GenerationKey("anonymous", "r1", named=True))

    await passes("used-again", service.url, forget=forget)


# In front of a scripted server


class Script:
    """A server that says of each connection, by its number from 1, what the test tells it to."""

    def __init__(self, answer, **serving) -> None:
        self.sockets = []
        self._answer = answer
        self._serving = serving

    async def __aenter__(self):
        self._server = await serve_sockets(self._serve, "127.0.0.1", 0, **self._serving)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, socket):
        self.sockets.append(socket)
        number = len(self.sockets)
        async for message in socket:
            await self._answer(number, socket, json.loads(message))


async def start(socket, frame) -> None:
    await socket.send(json.dumps({"type": "start", "id": frame["id"], "seq": 0, "model": "m"}))


async def say(socket, frame, content) -> None:
    rest = {"finish_reason": "stop", "model": "m", "usage": None, "of_tomorrow": 1}
    for sent in (
        {"type": "token", "seq": 1, "content": content},
        {"type": "done", "seq": 2, "status": "completed", **rest},
        {"type": "of_tomorrow"},
    ):
        await socket.send(json.dumps({"id": frame["id"], **sent}))


def replaced(received, *contents):
    """Answer with these deltas and break off; when the client comes back, another generation has the id."""

    async def answer(number, socket, frame):
        received.append(frame)
        named = {"id": frame["id"]}
        if frame["type"] == "resume":
            error = {"type": "invalid_request_error", "code": "generation_gone", "message": "…", "status": 410}
            await socket.send(json.dumps({"type": "error", **named, "error": {**error, "retryable": False}}))
        elif frame["type"] == "chat":
            again = len(received) > 1
            start = {"type": "start", **named, "seq": 0, "model": "m", "epoch": "e2" if again else "e1"}
            tokens = [
                {"type": "token", **named, "seq": seq, "content": content}
                for seq, content in enumerate("XY" if again else contents, 1)
            ]
            done = [{"type": "done", **named, "seq": 3, "status": "completed"}] if again else []
            for sent in [start, *tokens, *done]:
                await socket.send(json.dumps(sent))
            if not again:
                await socket.close(1012)

    return answer


async def test_text_that_was_given_out_is_not_continued_by_another_answer(passes):
    received = []
    async with Script(replaced(received, "a")) as script:
        await passes("given-out", script.url)
    assert [(frame["type"], frame.get("after"), frame.get("epoch")) for frame in received[1:]] == [("resume", 1, "e1")]


async def test_a_chat_of_which_nothing_was_received_is_sent_again(passes):
    received = []
    async with Script(replaced(received)) as script:
        await passes("nothing-given-out", script.url)
    assert [(frame["type"], frame.get("epoch")) for frame in received[1:]] == [("resume", "e1"), ("chat", None)]
    assert received[2] == received[0]


async def test_one_that_was_cancelled_meanwhile_is_not_asked_for_again(passes):
    received = []
    async with Script(replaced(received)) as script:
        await passes("cancelled-and-gone", script.url)
    assert [frame["type"] for frame in received] == ["resume", "cancel"]


async def test_goaway_is_honoured(passes):
    """New questions go over a new socket; what runs ends on the old one."""
    old = []

    async def answer(number, socket, frame):
        await start(socket, frame)
        if number == 1:
            old.extend((socket, frame))
            await socket.send('{"type":"goaway","deadline_ms":1000}')
        else:
            await say(socket, frame, "new")

    async def finish():
        await say(*old, "old")

    async def expect_the_old_one_closed():
        await old[0].wait_closed()

    async with Script(answer) as script:
        await passes("goaway", script.url, finish=finish, expect_the_old_one_closed=expect_the_old_one_closed)
        assert len(script.sockets) == 2


async def test_a_url_may_be_that_of_a_mount_or_of_the_socket(passes):
    async def answer(_, socket, frame):
        await start(socket, frame)
        await say(socket, frame, "new")

    async with Script(answer) as script:
        await passes("mounted", script.url)
    assert [socket.request.path for socket in script.sockets] == ["/chat/v1/chat/ws"] * 4 + ["/socket/ws"]


def moving(received, go_on=None):
    """Say the first delta and goaway; the rest after `go_on`, or to whoever resumes on the next connection."""

    async def answer(number, socket, frame):
        received.append(frame["type"])
        first, second = ({"type": "token", "seq": seq, "content": text} for seq, text in ((1, "a"), (2, "b")))
        done = {"type": "done", "seq": 3, "status": "completed", "finish_reason": "stop", "model": "m", "usage": None}
        frames = [second, done]
        if number == 1:
            await start(socket, frame)
            frames = [first, {"type": "goaway", "deadline_ms": 600_000, "move": True}]
            if go_on:
                frames += [second, done]
        for sent in frames:
            if sent is second and go_on:
                await go_on.wait()
            await socket.send(json.dumps({**sent, "id": frame["id"]}))

    return answer


async def test_with_move_running_answers_are_resumed_on_a_new_connection(passes):
    received = []

    async def expect_the_old_one_closed():
        await script.sockets[0].wait_closed()

    async with Script(moving(received)) as script:
        await passes("move", script.url, expect_the_old_one_closed=expect_the_old_one_closed)
    assert received == ["chat", "resume"]


async def test_with_move_and_no_other_server_running_answers_end_where_they_are(passes):
    received, refused = [], []
    twice = asyncio.Event()

    def admit(connection, _):
        if not received:
            return None
        refused.append(connection)
        if len(refused) == 2:
            twice.set()
        return connection.respond(503, "draining")

    async with Script(moving(received, twice), process_request=admit) as script:
        await passes("move-nowhere", script.url)
    assert received == ["chat"]


async def test_what_a_server_that_drains_refuses_is_asked_on_a_new_connection(passes):
    async def answer(number, socket, frame):
        if number == 1:
            error = {"type": "server_error", "code": "draining", "message": "…", "status": 503, "retryable": True}
            await socket.send(json.dumps({"type": "error", "id": frame["id"], "error": error}))
        else:
            assert "messages" in frame
            await start(socket, frame)
            await say(socket, frame, "new")

    async with Script(answer) as script:
        await passes("draining", script.url)
        assert len(script.sockets) == 2


async def test_a_request_is_sent_again_after_a_short_failure(passes):
    asked = []

    async def answer(number, socket, frame):
        asked.append(frame)
        if number == 1:
            await start(socket, frame)
            await socket.close(1012)
        elif len(asked) < 4:
            error = {"type": "server_error", "code": "overloaded", "message": "…", "status": 503, "retryable": True}
            await socket.send(json.dumps({"type": "error", "id": frame["id"], "error": error}))
        else:
            await say(socket, frame, "new")

    async with Script(answer) as script:
        await passes("draining", script.url)
        assert ([frame.get("type") for frame in asked[1:]], len(script.sockets)) == (["resume"] * 3, 2)


async def test_a_connection_that_is_dead_is_replaced(passes):
    """It is open, and nothing comes back: neither the answer nor a pong."""
    pings = []

    async def answer(number, socket, frame):
        if number == 1:
            pings.extend([frame] * (frame["type"] == "ping"))
        elif frame["type"] != "ping":
            await start(socket, frame)
            await say(socket, frame, "new")

    async with Script(answer) as script:
        await passes("silence", script.url)
        await until(lambda: pings, "the ping that was sent before the connection was given up")
        assert pings == [{"type": "ping"}]


async def test_a_connection_is_checked_when_the_browser_is_offline_and_opened_again_when_asked_to(passes):
    async def answer(number, socket, frame):
        if frame["type"] != "ping":
            await start(socket, frame)
            await say(socket, frame, "new")

    async with Script(answer) as script:
        await passes("offline", script.url)
        assert len(script.sockets) == 2


async def test_a_connection_that_answers_pings_is_kept(passes):
    """However long a model thinks, past any patience."""
    asked, pings = [], 0

    async def answer(number, socket, frame):
        nonlocal pings
        if frame["type"] != "ping":
            asked.append(frame)
            await start(socket, frame)
            return
        pings += 1
        await socket.send('{"type":"pong"}')
        if pings == 5:
            await say(socket, asked[0], "new")

    async with Script(answer) as script:
        await passes("pong", script.url)
        assert len(asked) == 1


async def test_a_server_that_only_breaks_off_is_given_up(passes):
    async def answer(number, socket, frame):
        await start(socket, frame)
        await socket.close(1011, "a bug")

    async with Script(answer) as script:
        await passes("breaks-off", script.url)
        assert len(script.sockets) == 5, "it is not asked again and again at once"


async def test_a_policy_violation_is_not_tried_again(passes):
    async def answer(number, socket, frame):
        await socket.close(1008, "no key")

    async def expect_one_connection():
        assert len(script.sockets) == 1

    async with Script(answer) as script:
        await passes("policy", script.url, expect_one_connection=expect_one_connection)


async def test_it_connects_at_once_when_the_network_is_back(passes, service, fake):
    async def answer(number, socket, frame):
        await start(socket, frame)
        if number == 1:
            await socket.close(1012)
        else:
            for content in ("Hel", "lo"):
                seq = 1 if content == "Hel" else 2
                await socket.send(json.dumps({"type": "token", "id": frame["id"], "seq": seq, "content": content}))
            await socket.send(json.dumps({"type": "done", "id": frame["id"], "seq": 3, "status": "completed"}))

    async with Script(answer) as script:
        await passes("wake", script.url)
        assert len(script.sockets) == 2


async def test_a_key_goes_in_a_subprotocol(passes):
    async def answer(number, socket, frame):
        await start(socket, frame)
        await say(socket, frame, "new")

    async with Script(answer, subprotocols=["ws_chat.v1"]) as script:
        await passes("key", script.url)
        assert script.sockets[0].request.path == "/v1/chat/ws"
        assert script.sockets[0].request.headers["Sec-WebSocket-Protocol"].replace(" ", "") == (
            "ws_chat.v1,bearer.c2st0LrQu9GO0Yc_Pg"
        )
