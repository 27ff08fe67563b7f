"""A part of an application that is there already: its own lifespan, its own way to tell who asks, its own upstream."""

import asyncio
import base64
import contextlib
import json
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import OAuth2PasswordBearer
from support.processes import output, program
from support.service import FALLBACK, HELLO, Service, Socket, events, joined, running
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ws_chat import Settings, SettingsError, create_app, mount
from ws_chat.client import connect as connect_client
from ws_chat.relay.events import GenerationEnded
from ws_chat.testing import Hang, Reply, chunk, sse, text

pytestmark = pytest.mark.anyio

USERS = {"key-of-alice": "alice/1@example.com", "key-of-bob": "bob"}
ALICE = {"Authorization": "Bearer key-of-alice"}
BOB = {"Authorization": "Bearer key-of-bob"}

PLAIN = pytest.mark.parametrize("protocols", ["ours", "plain"])
"""Under our protocol classes, and under uvicorn's own."""


class LockedError(Exception):
    """What the application around has a handler for."""


class Site:
    """An application of somebody's own, with ws_chat below /chat."""

    def __init__(self, fake: Any, **settings: Any) -> None:
        self.log: list[str] = []
        self.held = 0
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.exception_handler(LockedError)(lambda *_: JSONResponse({"detail": "Locked."}, 423))
        token = OAuth2PasswordBearer(tokenUrl="token")

        async def session():
            self.held += 1
            yield "session"
            self.held -= 1

        async def current_user(
            request: Request,
            key: Annotated[str, Depends(token)],
            _: Annotated[str, Depends(session)],
            mood: Annotated[str, Header()] = "good",
        ) -> str:
            assert request.app is self.app
            assert request.state.ready
            match mood:
                case "odd":
                    raise ValueError("a fault of the application around")
                case "locked":
                    raise LockedError
                case "busy":
                    raise HTTPException(429, "Slow down.", {"Retry-After": "7"})
            if key not in USERS:
                raise HTTPException(403, "You are not known.")
            return USERS[key]

        self.current_user = current_user
        self.settings = Settings(openai_base_url=fake.base_url, drain_timeout=0, **settings)
        self.events: list[Any] = []
        self.chat = mount(
            self.app, "/chat", principal=current_user, settings=self.settings, observers=[self.events.append]
        )
        self.app.state.relay, self.app.state.connections = self.chat.state.relay, self.chat.state.connections

        @self.app.get("/own")
        async def own(user: Annotated[str, Depends(current_user)]) -> str:
            return user

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI):
        self.log.append("started")
        yield {"ready": True}
        self.log.append("stopped")

    def running(self, protocols: str) -> Any:
        return running(self.app, self.settings, **(FALLBACK if protocols == "plain" else {}))


@pytest.fixture
async def site(fake) -> Site:
    return Site(fake)


def below(service: Service) -> Service:
    """Return the same server as it is seen below the prefix."""
    return Service(service.url + "/chat", service.app, service.server)


async def test_no_more_are_asked_about_at_once_than_may_be_connected(fake):
    asked, known = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        asked.set()
        await known.wait()
        return "alice"

    app, settings = FastAPI(), Settings(openai_base_url=fake.base_url, drain_timeout=0, max_connections=1)
    chat = mount(app, "/chat", principal=slow, settings=settings)
    app.state.relay, app.state.connections = chat.state.relay, chat.state.connections
    async with running(app, settings) as around:
        service = below(around)
        first = asyncio.create_task(service.post({"messages": HELLO}))
        await asked.wait()
        with pytest.raises(InvalidStatus) as refused:
            await connect(service.ws_url, open_timeout=None)
        known.set()
        assert (await first).status_code == 200
        assert (await service.post({"messages": HELLO})).status_code == 200
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "1"


@PLAIN
async def test_both_transports_are_below_the_prefix(protocols, site, fake):
    async with site.running(protocols) as around:
        service = below(around)
        async with service.socket(additional_headers=ALICE) as socket:
            frames = await socket.chat(id="r1")
        again = await service.post({"messages": HELLO, "id": "r1"}, **ALICE)
        async with httpx.AsyncClient(base_url=service.url, headers=ALICE, timeout=None) as client:
            followed = await client.get("/v1/chat/stream/r1?format=frames&after=1")
            at_end = await client.get("/v1/chat/stream/r1", headers={"Last-Event-ID": "3"})
            deleted = await client.delete("/v1/chat/stream/r1")
            module = await client.get("/static/ws-chat.js")
            own = await client.get(around.url + "/own")

    assert joined(frames) == "Hello"
    assert "".join(event["data"] for event in events(again.content)[:-1]) == "Hello"
    assert json.loads(events(followed.content)[1]["data"])["content"] == "lo"
    assert (at_end.status_code, deleted.status_code, module.status_code) == (204, 204, 200)
    assert (own.json(), len(fake.requests)) == ("alice/1@example.com", 1)
    assert site.log == ["started", "stopped"]
    ended = [event.principal for event in site.events if isinstance(event, GenerationEnded)]
    assert ended == ["alice%2F1@example.com"], "a principal is one word of a key"


@PLAIN
async def test_generations_belong_to_whom_the_dependency_names(protocols, site):
    async with site.running(protocols) as around:
        service = below(around)
        async with service.socket(additional_headers=ALICE) as socket:
            await socket.chat(id="r1")
        async with service.socket(additional_headers=BOB) as socket:
            error = await socket.ask({"type": "resume", "id": "r1"})

        offered = ["ws_chat.v1", "bearer." + base64.urlsafe_b64encode(b"key-of-alice").decode().rstrip("=")]
        async with service.socket(subprotocols=offered) as socket:
            found = await socket.ask({"type": "resume", "id": "r1"})

    assert error["error"]["code"] == "not_found"
    assert found["type"] == "start"


@PLAIN
@pytest.mark.parametrize(
    ("headers", "status", "code", "message"),
    [
        ({}, 401, "unauthorized", "Not authenticated"),
        ({"Authorization": "Bearer no"}, 401, "unauthorized", "You are not known."),
        ({**ALICE, "Mood": "locked"}, 401, "unauthorized", "Locked."),
        ({**ALICE, "Mood": "busy"}, 429, "rate_limited", "Slow down."),
        ({**ALICE, "Mood": "odd"}, 500, "internal_error", "Something went wrong inside the server."),
    ],
)
async def test_a_refusal_of_the_dependency_counts_on_both_transports(
    protocols, headers, *, status, code, message, site
):
    async with site.running(protocols) as around:
        service = below(around)
        answered = await service.post(**headers)
        with pytest.raises(InvalidStatus) as refused:
            await connect(service.ws_url, additional_headers=headers, open_timeout=None).__aenter__()
        async with httpx.AsyncClient(headers=headers, timeout=None) as client:
            deleted = await client.delete(service.stream_url + "/r1")

    assert {answered.status_code, deleted.status_code, refused.value.response.status_code} == {status}
    for body in (answered.content, deleted.content, refused.value.response.body):
        error = json.loads(body)["error"]
        assert (error["code"], error["message"], error["status"]) == (code, message, status)
    if status == 429:
        assert answered.headers["Retry-After"] == "7"


async def test_resources_of_the_dependency_are_released_before_the_answer(site, fake):
    fake.default = Reply([sse(chunk({"content": "a"})), Hang()])
    async with site.running("ours") as around, below(around).socket(additional_headers=ALICE) as socket:
        await socket.ask({"messages": HELLO})
        await socket.receive()
        assert site.held == 0
        await socket.ask({"type": "cancel"})


async def test_the_overrides_of_tests_hold_here_too(site):
    site.app.dependency_overrides = {site.current_user: lambda: 7}
    async with site.running("ours") as around:
        assert (await below(around).post()).status_code == 200


async def test_dependencies_of_the_whole_application_are_called_too(fake):
    def closed():
        raise HTTPException(503, "Closed for the night.", {"Retry-After": "9"})

    app = FastAPI(dependencies=[Depends(closed)])
    settings = Settings(openai_base_url=fake.base_url)
    chat = mount(app, "/chat", principal=lambda: "alice", settings=settings)
    app.state.relay, app.state.connections = chat.state.relay, chat.state.connections
    async with running(app, settings) as around:
        response = await below(around).post()

    assert (response.status_code, response.json()["error"]["message"]) == (503, "Closed for the night.")
    assert (response.json()["error"]["code"], response.headers["Retry-After"]) == ("overloaded", "9")


async def test_a_principal_of_no_use_is_an_error_of_the_server(fake, caplog):
    app = FastAPI()
    settings = Settings(openai_base_url=fake.base_url)
    chat = mount(app, "/chat", principal=lambda: {"name": "alice"}, settings=settings)
    app.state.relay, app.state.connections = chat.state.relay, chat.state.connections
    async with running(app, settings) as around:
        response = await below(around).post()

    assert response.json()["error"]["code"] == "internal_error"
    assert "got dict" in caplog.text


async def test_the_docs_are_those_of_the_part(site):
    async with site.running("ours") as around, httpx.AsyncClient(base_url=around.url, timeout=None) as client:
        described = (await client.get("/chat/openapi.json")).json()
        page = await client.get("/chat/docs")
        own = (await client.get("/openapi.json")).json()

    assert described["servers"] == [{"url": "/chat"}]
    assert "/v1/chat/stream" in described["paths"]
    assert 'href="openapi.json"' in page.text, "relative: that of the part"
    assert "/own" in own["paths"]


async def test_an_unknown_path_says_which_there_are(site):
    async with site.running("ours") as around, httpx.AsyncClient(base_url=around.url, timeout=None) as client:
        unknown = await client.post("/chat/v1/chat/completions", json={})
        elsewhere = await client.get("/chat/favicon.ico")

    assert (unknown.status_code, elsewhere.status_code) == (404, 404)
    message = unknown.json()["error"]["message"]
    for path in (
        "/v1/chat/ws (WebSocket)",
        "/v1/chat/stream (POST)",
        "/v1/chat/stream/{id} (DELETE, GET)",
        "/v1/responses (POST, WebSocket)",
    ):
        assert path in message
    assert elsewhere.json()["error"]["message"] == "There is no resource at this path."


async def test_pages_of_other_hosts_are_kept_out_here_too(site):
    async with site.running("ours") as around:
        response = await below(around).post(Origin="https://evil.example.com", **ALICE)

    assert response.json()["error"]["code"] == "origin_not_allowed"


async def test_with_its_own_principal_any_host_is_allowed(site):
    async with site.running("ours") as around:
        response = await below(around).post(Host="chat.example.com", Origin="https://chat.example.com", **ALICE)

    assert response.status_code == 200


async def test_without_any_principal_hosts_are_checked(fake):
    app = FastAPI()
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="sk-operator-key")
    app.state = mount(app, "/chat", principal=None, settings=settings).state
    async with running(app, settings) as around:
        response = await below(around).post(Host="chat.example.com", Origin="https://chat.example.com")

    assert response.json()["error"]["code"] == "host_not_allowed"


@PLAIN
async def test_middleware_of_the_application_sees_all_that_is_sent(protocols, site, fake):
    seen = []

    class Counting:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def counted(message):
                if scope["type"] != "lifespan":
                    seen.append(message["type"])
                await send(message)

            await self.app(scope, receive, counted)

    @site.app.middleware("http")
    async def passes_on(request, call_next):
        return await call_next(request)

    site.app.add_middleware(Counting)
    site.app.add_middleware(GZipMiddleware, minimum_size=1)
    fake.default = Reply(text(*["Hello "] * 500))
    async with site.running(protocols) as around:
        service = below(around)
        answered = await service.post({"messages": HELLO, "id": "r1"}, **ALICE)
        async with service.socket(additional_headers=ALICE) as socket:
            await socket.send({"type": "resume", "id": "r1"})
            frames = await socket.until_end()

    assert "".join(event["data"] for event in events(answered.content)) == "Hello " * 500 + "[DONE]"
    assert joined(frames) == "Hello " * 500
    assert "http.response.body" in seen
    assert seen.count("websocket.send") == len(frames)


async def test_middleware_that_is_put_around_the_part_alone_sees_it_too(serve, fake):
    service = await serve()
    service.app.middleware_stack = None  # as if it were added before the start
    service.app.add_middleware(GZipMiddleware, minimum_size=1)
    service.app.middleware("http")(lambda request, call_next: call_next(request))
    answered = await service.post()

    assert "".join(event["data"] for event in events(answered.content)) == "Hello[DONE]"


async def test_a_drain_ends_running_generations(site, fake):
    fake.default = Reply([sse(chunk({"content": "a"})), Hang()])
    async with contextlib.AsyncExitStack() as stack:
        around = await stack.enter_async_context(site.running("ours"))
        connection = await stack.enter_async_context(
            connect(below(around).ws_url, additional_headers=ALICE, open_timeout=None)
        )
        socket = Socket(connection)
        await socket.ask({"messages": HELLO})
        await socket.receive()
        stopping = asyncio.ensure_future(around.server.shutdown())
        frames = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                frames.append(await socket.receive())
        await stopping

    assert [frame["type"] for frame in frames] == ["goaway", "error"]
    assert frames[-1]["error"]["code"] == "draining"
    assert connection.close_code == 1012
    assert site.log == ["started", "stopped"]


async def test_two_are_drained_together(fake):
    app = FastAPI()
    settings = Settings(openai_base_url=fake.base_url, drain_timeout=0, write_timeout=60)
    one = mount(app, "/one", principal=None, settings=settings)
    two = mount(app, "/two", principal=None, settings=settings)
    app.state.relay, app.state.connections = one.state.relay, one.state.connections
    fake.default = Reply([sse(chunk({"content": "a"})), Hang()])
    async with contextlib.AsyncExitStack() as stack:
        around = await stack.enter_async_context(running(app, settings))
        at = around.url.replace("http", "ws")
        sockets = [
            Socket(await stack.enter_async_context(connect(f"{at}/{path}/v1/chat/ws", open_timeout=None)))
            for path in ("one", "two")
        ]
        for socket in sockets:
            await socket.ask({"messages": HELLO})
            await socket.receive()
        stopping = asyncio.ensure_future(around.server.shutdown())
        ends = [(await socket.until_end())[-1] for socket in sockets]
        await stopping

    assert [end["error"]["code"] for end in ends] == ["draining", "draining"]
    assert (one.state.relay.running, two.state.relay.running) == (0, 0)


async def test_conflicting_arguments_are_refused(fake, caplog):
    settings = Settings(openai_base_url=fake.base_url)
    app = FastAPI()
    app.mount("/chat", create_app(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        with pytest.raises(RuntimeError, match=r"ws_chat\.mount"):
            await client.post("/chat/v1/chat/stream", json=HELLO)
    with pytest.raises(RuntimeError, match="before the application starts"):
        mount(app, "/later", principal=None, settings=settings)
    with pytest.raises(SettingsError, match="WS_CHAT_API_KEYS"):
        mount(FastAPI(), "/chat", principal=lambda: "a", settings=Settings(api_keys=("k",)))


MODULE = """
from fastapi import FastAPI
from ws_chat import mount

app = FastAPI()
mount(app, "/chat", principal=None)
"""


@pytest.mark.parametrize(
    "command",
    [["ws-chat", "serve", "--port", "0", "--app", "site_of_mine:app"], ["uvicorn", "--port", "0", "site_of_mine:app"]],
)
async def test_it_is_served_by_a_program(command, tmp_path, monkeypatch):
    (tmp_path / "site_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    async with program(*command) as server:
        port = await server.port()
        async with connect_client(f"ws://127.0.0.1:{port}/chat/v1/chat/ws") as chat:
            assert "“hi”" in (await chat.ask("hi", model="demo-fast")).text

    assert "Traceback" not in server.log


async def test_modules_of_the_working_directory_are_those_of_an_application_only(tmp_path, monkeypatch):
    (tmp_path / "limits.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    async with program("ws-chat", "serve", "--port", "0") as server:
        await server.port()


async def test_an_application_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = await output("ws-chat", "serve", "--port", "0", "--app", "nowhere:app")

    assert status != 0
    assert b"nowhere" in err
