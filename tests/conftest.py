"""Fixtures: a real server under uvicorn, in front of the real SDK, in front of the fake upstream; a shared Redis."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from support.processes import RedisServer, redis_server
from support.service import FALLBACK, Nothing, Service, running
from support.waiting import limited

from ws_chat import Settings, create_app
from ws_chat.stores.redis.store import RedisStore
from ws_chat.testing import FakeOpenAI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


# The same examples in each run, on a machine of any speed.
settings.register_profile("ws_chat", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ws_chat")

PATIENT = {
    "relay.relay.START_TIMEOUT": 600.0,
    "server.chat.websocket.ANSWER_TIMEOUT": 600.0,
    "server.uvicorn_protocols.http.HEAD_TIMEOUT": 600.0,
    "upstreams.openai.TAIL_TIMEOUT": 600.0,
    "upstreams.openai.CONNECT_TIMEOUT": 600.0,
}
"""Time windows of servers in this process, so long that none passes while the machine is busy. A test of one sets it."""


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """Hold time windows open in all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setattr(f"ws_chat.{name}", value)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Give each async test its time limit (tests of hypothesis have one for each example)."""
    if inspect.iscoroutinefunction(pyfuncitem.obj) and not hasattr(pyfuncitem.obj, "hypothesis"):
        pyfuncitem.obj = limited(pyfuncitem.obj)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    server = FakeOpenAI()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the path of a token: "fast", or "fallback" (the SDK's own transport and uvicorn's own protocols)."""
    chosen: str = getattr(request, "param", "fast")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if chosen == "fallback":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
    return chosen


@pytest.fixture
def only_fast(path: str) -> None:
    """Skip a test on the fallback path, because it needs our own protocols or transport."""
    if path == "fallback":
        pytest.skip("needs our own protocols or transport")


@pytest.fixture
async def serve(fake: FakeOpenAI, path: str) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a server in front of the fake upstream, with these settings."""
    config = FALLBACK if path == "fallback" else {}
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, server: dict[str, Any] | None = None, **given: Any) -> Service:
            values = {
                "openai_base_url": fake.base_url,
                "openai_api_key": "sk-operator-key",
                "drain_timeout": 0,
                **given,
            }
            settings = Settings(**values)
            return await stack.enter_async_context(running(create_app(settings), settings, **config, **(server or {})))

        yield start


HELD = {
    "redis.connection.TIMEOUT": 600.0,
    "redis.connection.MARKER_TTL": 600_000,
    "redis.connection.HOLD_TTL": 1,
    "redis.follower.READ": 600_000,
    "redis.follower.READ_RENEWAL": 600.0,
    "redis.store.LEASE": 600_000,
    "redis.store.RENEWAL": 0.1,
    "redis.store.STEADY": 600.0,
    "redis.store.AWAY": 600.0,
    "redis.store.GET_TIMEOUT": 600.0,
    "redis.store.FORGET_TIMEOUT": 60.0,
    "redis.log.END_TIMEOUT": 60.0,
}
"""Windows of the shared log (constants of `ws_chat.stores`), so long that none passes in a test that is slow."""


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Hold the windows of the shared log open; return what sets one of them."""

    def set_window(name: str, value: float) -> None:
        monkeypatch.setattr(f"ws_chat.stores.{name}", value)

    for name, value in HELD.items():
        set_window(name, value)
    return set_window


@pytest.fixture
async def shared(windows: Callable[[str, float], None]) -> AsyncIterator[RedisServer]:
    """A Redis for replicas to share, while all windows are held open."""
    async with redis_server() as server:
        yield server


@pytest.fixture
async def redis(shared: RedisServer) -> AsyncIterator[Redis]:
    """A client of the shared Redis."""
    async with Redis.from_url(shared.url) as client:
        yield client


@pytest.fixture
async def stores(shared: RedisServer) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two replicas, without the servers around them."""
    one, other = RedisStore([shared.url]), RedisStore([shared.url])
    for store in (one, other):
        await store.open(Nothing())
    yield one, other
    for store in (one, other):
        await store.close()


@pytest.fixture
async def service(serve: Callable[..., Any]) -> Service:
    return await serve()
