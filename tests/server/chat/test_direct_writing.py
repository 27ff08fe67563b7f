"""What is written around ASGI: nothing before the head of a response, and nothing where anything wraps `send`."""

from __future__ import annotations

import asyncio
import functools

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from support.service import HELLO, events, joined, running
from support.waiting import until

from ws_chat import Settings, create_app
from ws_chat.server.mount import mount
from ws_chat.server.uvicorn_protocols.http import DirectHTTPProtocol
from ws_chat.server.uvicorn_protocols.websocket import DirectWebSocketProtocol
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

ORIGIN = "https://page.example.com"
ANSWER = Reply(text("Hel", "lo"))


def settings_of(fake, **more) -> Settings:
    return Settings(openai_base_url=fake.base_url, openai_api_key="k", drain_timeout=0, **more)


@pytest.fixture
def direct(monkeypatch) -> list[str]:
    """Return the names of the protocols, one for each frame that is written directly."""
    written = []
    for protocol in (DirectHTTPProtocol, DirectWebSocketProtocol):

        def write(self, frame, original=protocol.write_direct):
            written.append(type(self).__name__)
            original(self, frame)

        monkeypatch.setattr(protocol, "write_direct", write)
    return written


def plain(fake):
    return create_app(settings_of(fake))


def with_cors(fake):
    return create_app(settings_of(fake, allowed_origins=(ORIGIN,)))


def mounted(fake):
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN])
    app.state = mount(app, "/chat", principal=None, settings=settings_of(fake, allowed_origins=(ORIGIN,))).state
    return app


@pytest.mark.parametrize("build", [plain, with_cors, mounted])
async def test_frames_are_written_directly_where_nothing_wants_to_see_them(build, fake, direct):
    fake.default = ANSWER
    headers = {} if build is plain else {"Origin": ORIGIN}
    async with running(build(fake), settings_of(fake)) as service:
        if build is mounted:
            service.url += "/chat"
        answered = await service.post(**headers)
        async with service.socket(additional_headers=headers) as socket:
            frames = await socket.chat()

    assert "".join(event["data"] for event in events(answered.content)) == "Hello[DONE]"
    assert answered.headers.get("access-control-allow-origin") == headers.get("Origin")
    assert joined(frames) == "Hello"
    # A start that has nothing to say in the text format is among them, and the last chunk of a body is not.
    assert direct == [DirectHTTPProtocol.__name__] * 4 + [DirectWebSocketProtocol.__name__] * len(frames)


class Recorded:
    """A transport that records what is written to it."""

    def __init__(self, transport, written) -> None:
        self._transport = transport
        self._written = written

    def write(self, data) -> None:
        self._written.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_a_short_answer_is_sent_in_two_writes(fake, monkeypatch):
    written = []
    original = DirectHTTPProtocol.connection_made
    monkeypatch.setattr(
        DirectHTTPProtocol, "connection_made", lambda self, transport: original(self, Recorded(transport, written))
    )
    fake.default = Reply(text("Hello"))
    async with running(plain(fake), settings_of(fake)) as service:
        answered = await service.post()

    assert "".join(event["data"] for event in events(answered.content)) == "Hello[DONE]"
    assert written[0].startswith(b"HTTP/1.1 200 ")
    assert b"data: Hello\n" in written[0]
    assert b"data: [DONE]\n" in written[-1]
    assert written[-1].endswith(b"\r\n0\r\n\r\n")


def seeing_what_is_sent(app, seen):
    async def wrapper(scope, receive, send):
        async def counted(message):
            seen.append(message)
            await send(message)

        await app(scope, receive, counted)

    return wrapper


def under_the_name_of_another(app, seen):
    async def wrapper(scope, receive, send):
        @functools.wraps(send)
        async def sender(message):
            seen.append(message)
            await send(message)

        sender.__module__ = "starlette._exception_handler"
        sender.__qualname__ = "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"
        await app(scope, receive, sender)

    return wrapper


def holding_back_the_head(app, seen):
    async def wrapper(scope, receive, send):
        held = []

        async def late(message):
            seen.append(message)
            held.append(message)
            if message["type"] != "http.response.start":
                for each in held:
                    await send(each)
                held.clear()

        await app(scope, receive, late)

    return wrapper


def seeing_what_is_received(app, seen):
    async def wrapper(scope, receive, send):
        async def watched():
            message = await receive()
            seen.append(message)
            return message

        await app(scope, watched, send)

    return wrapper


def inside_of_the_stack(app, seen):
    app.middleware_stack = seeing_what_is_sent(app.build_middleware_stack(), seen)
    return app


@pytest.mark.parametrize(
    "wrap",
    [
        seeing_what_is_sent,
        under_the_name_of_another,
        holding_back_the_head,
        seeing_what_is_received,
        inside_of_the_stack,
    ],
)
async def test_any_wrapper_of_an_application_sees_everything(wrap, fake, direct):
    fake.default = ANSWER
    seen = []
    app = plain(fake)
    async with running(wrap(app, seen), settings_of(fake)) as service:
        service.app = app
        answered = await service.post(query="?format=frames")
        async with service.socket() as socket:
            frames = await socket.chat()

    assert direct == []
    assert [event["event"] for event in events(answered.content)] == ["start", "token", "token", "done"]
    assert joined(frames) == "Hello"
    if wrap is not seeing_what_is_received:
        assert b"".join(message.get("body", b"") for message in seen) == answered.content
        assert [message["type"] for message in seen].count("websocket.send") == len(frames)


@pytest.mark.parametrize("config", [{}, {"http": "httptools"}])
async def test_a_drain_writes_nothing_before_the_status_line(config, serve, fake):
    service = await serve(server=config)
    fake.default = Reply([Hang()])
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = b'{"messages":[{"role":"user","content":"hi"}],"id":"r1"}'
    writer.write(b"POST /v1/chat/stream?format=frames HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body))
    writer.write(b"Connection: close\r\n\r\n" + body)
    await until(lambda: service.relay.running, "the generation to run")
    service.connections.drain(5)
    async with httpx.AsyncClient(timeout=None) as client:
        await client.delete(service.stream_url + "/r1")
    received = await reader.read()
    writer.close()

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"event: done" in received
    assert b"goaway" not in received
    assert b"ping" not in received


async def test_a_drain_is_announced_on_sockets(service):
    async with service.socket() as socket:
        await socket.ask({"type": "ping"})
        service.connections.drain(5)

        assert await socket.receive() == {"type": "goaway", "deadline_ms": 5000}


async def test_a_request_that_follows_another_on_its_connection_has_a_head_of_its_own(serve, fake):
    service = await serve()
    fake.default = ANSWER
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = str(HELLO).replace("'", '"').encode()
    bodies = []
    for _ in range(2):
        writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        bodies.append(await reader.readuntil(b"0\r\n\r\n"))
    writer.close()

    assert all(each.startswith(b"HTTP/1.1 200 OK\r\n") for each in bodies)
    assert all(each.count(b"data: ") == 3 for each in bodies)
