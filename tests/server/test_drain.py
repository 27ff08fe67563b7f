"""A deploy, of a real process: what runs may end, what comes is sent elsewhere, and no answer is broken off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
import uvicorn
from support.processes import program
from support.service import HELLO, events, joined
from support.waiting import until
from uvicorn.supervisors import multiprocess
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from ws_chat.server.chat.sender import DRAIN
from ws_chat.server.run import Server, _Worker
from ws_chat.testing import Hang, Reply, Wait, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

T = TypeVar("T")
CHAT = {"messages": HELLO}
SILENT = {"messages": HELLO, "model": "demo-silent"}
"""An answer of the demo that stops after five deltas and does not end."""

MAIN = """
import importlib, sys
from ws_chat import __main__ as cli

for name, value in {constants!r}.items():
    path, _, constant = name.rpartition(".")
    module = importlib.import_module(path)
    getattr(module, constant)
    setattr(module, constant, value)
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""
"""`ws-chat` with other time windows, in each of its processes: each worker runs the file of its parent too."""

PATIENT = {
    "ws_chat.server.run.WORKER_TIMEOUT": 600,
    "ws_chat.server.run.SHUTDOWN_TIMEOUT": 600,
    "ws_chat.server.run.REPEAT_INTERVAL": 600,
    "ws_chat.server.app.LAST_FRAMES_TIMEOUT": 600,
}
AGAIN = {"ws_chat.server.run.REPEAT_INTERVAL": 0}
"""A second signal is always meant, however soon it comes."""


@pytest.fixture
def serving(tmp_path):
    """Return a function that runs a server in front of the fake upstream or, without one, of the demo."""

    @contextlib.asynccontextmanager
    async def start(fake, *options: str, drain: float = 600, constants: dict[str, float] | None = None):
        main = tmp_path / "main.py"
        main.write_text(MAIN.format(constants={**PATIENT, **(constants or {})}))
        variables = {"WS_CHAT_DRAIN_TIMEOUT": str(drain), "WS_CHAT_UPSTREAM_TIMEOUT": "600"}
        if fake:
            variables["OPENAI_BASE_URL"] = fake.base_url
        async with program(sys.executable, str(main), "serve", "--port", "0", *options, **variables) as server:
            try:
                url = f"http://127.0.0.1:{await server.port()}"
                if "2" in options:
                    await server.until_logged("(?s)startup complete.*startup complete")
                yield server, url
            except BaseException:
                signal_children(server, signal.SIGKILL)  # drain=600 would keep a failed test waiting
                server.process.kill()
                raise

    return start


def signal_children(server, number: int) -> None:
    parent = server.process.pid
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), number)


def connected(url: str, **options: Any) -> connect:
    """Open a WebSocket without any of the client's time limits."""
    address = url.replace("http", "ws") + "/v1/chat/ws"
    return connect(address, open_timeout=None, close_timeout=None, ping_interval=None, **options)


def http(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, **options)


async def receive(websocket, kind: str) -> dict[str, Any]:
    """Return the next frame of a kind."""
    while (frame := json.loads(await websocket.recv()))["type"] != kind:
        pass  # frames of other kinds
    return frame


async def rest(websocket) -> list[dict[str, Any]]:
    frames = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            frames.append(json.loads(await websocket.recv()))
    return frames


def slowly() -> tuple[Reply, asyncio.Event]:
    go = asyncio.Event()
    first, *others = text("a", "b", "c")[1:]
    return Reply([first, Wait(go), *others]), go


async def refused(workers: int, ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` returns, where each worker but the last may end, without an answer, a connection just accepted."""
    for _ in range(workers - 1):
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.NetworkError, InvalidMessage):
            return await ask()
    return await ask()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_running_answers_end_and_new_requests_are_refused(workers, fake, serving):
    fake.default, go = slowly()
    async with serving(fake, "--workers", workers) as (server, url), http() as client:
        async with (
            connected(url) as websocket,
            client.stream("POST", f"{url}/v1/chat/stream", json=CHAT) as response,
        ):
            await websocket.send(json.dumps({**CHAT, "id": "r1"}))
            await receive(websocket, "token")
            server.process.send_signal(signal.SIGTERM)
            goaway = await receive(websocket, "goaway")
            assert goaway == {"type": "goaway", "deadline_ms": 600_000}
            await server.until_logged("(?s)" + int(workers) * "waiting for running answers.*")

            again = partial(refused, int(workers))
            ready = await again(lambda: client.get(f"{url}/readyz"))
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
            assert (await again(lambda: client.get(f"{url}/healthz"))).status_code == 200
            denied_post = await again(lambda: client.post(f"{url}/v1/chat/stream", json=CHAT))
            assert (denied_post.status_code, denied_post.headers["retry-after"]) == (503, "1")
            with pytest.raises(InvalidStatus) as denied:
                await again(lambda: connected(url))
            assert denied.value.response.status_code == 503
            assert denied.value.response.headers["Retry-After"] == "1"
            await websocket.send(json.dumps({**CHAT, "id": "r2"}))
            error = await receive(websocket, "error")
            assert (error["id"], error["error"]["code"], "seq" in error) == ("r2", "draining", False)
            await websocket.send(json.dumps({"type": "resume", "id": "r1"}))
            await receive(websocket, "start")

            go.set()
            frames = await rest(websocket)
            body = b"".join([part async for part in response.aiter_raw()])
        assert await server.process.wait() == 0

    assert joined(frames) == "abc"
    assert (frames[-1]["type"], frames[-1]["status"]) == ("done", "completed")
    assert websocket.close_code == 1012
    assert "".join(event["data"] for event in events(body)) == "abc[DONE]"
    assert len(fake.requests) == 2
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def test_an_answer_that_does_not_end_in_time_is_ended(serving):
    async with serving(None, drain=0.05) as (server, url), connected(url) as websocket:
        await websocket.send(json.dumps(SILENT))
        first = await receive(websocket, "token")
        server.process.send_signal(signal.SIGTERM)
        *others, error = await rest(websocket)
        assert await server.process.wait() == 0
    assert {"type": "goaway", "deadline_ms": 50} in others
    tokens = [frame for frame in (first, *others) if frame["type"] == "token"]
    assert (error["seq"], error["error"]["code"]) == (tokens[-1]["seq"] + 1, "draining")
    assert websocket.close_code == 1012
    assert "Traceback" not in server.log


def test_only_a_later_repeat_of_the_same_signal_counts(monkeypatch):
    now = 0.0
    monkeypatch.setattr("ws_chat.server.run.time.monotonic", lambda: now)
    server = Server(uvicorn.Config("ws_chat.app:app", log_config=None))
    forced = []
    for now, number in ((0.0, signal.SIGTERM), (0.5, signal.SIGTERM), (2.0, signal.SIGINT), (2.5, signal.SIGTERM)):  # noqa: B007
        server.handle_exit(number, None)
        forced.append(server.force_exit)
    server.handle_exit(signal.SIGUSR1, None)
    assert forced == [False, False, False, True]
    assert server.force_exit, "and stays so"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_at_once(workers, serving):
    async with (
        serving(None, "--workers", workers, constants=AGAIN) as (server, url),
        connected(url) as websocket,
    ):
        await websocket.send(json.dumps(SILENT))
        await receive(websocket, "token")
        server.process.send_signal(signal.SIGTERM)
        await receive(websocket, "goaway")
        server.process.send_signal(signal.SIGTERM)
        error = await receive(websocket, "error")
        assert await server.process.wait() == 0
    assert error["error"]["code"] == "draining"
    assert "Traceback" not in server.log


async def test_workers_are_replaced_one_by_one_and_no_request_is_refused(serving):
    # A request that comes later than this after its connection is turned away by a worker that retires.
    constants = {"ws_chat.server.run.LAST_REQUEST_TIMEOUT": 10}
    async with (
        serving(None, "--workers", "2", constants=constants) as (server, url),
        http(limits=httpx.Limits(max_keepalive_connections=0)) as client,
    ):
        async with connected(url) as websocket:
            await websocket.send(json.dumps(SILENT))
            server.process.send_signal(signal.SIGHUP)
            both_drain = asyncio.create_task(
                server.until_logged("(?s)waiting for running answers.*waiting for running answers")
            )
            while not both_drain.done():
                assert (await client.get(f"{url}/readyz")).status_code == 200
                await asyncio.wait({both_drain}, timeout=0.05)  # between two requests: workers start meanwhile
            await both_drain
            await websocket.send('{"type": "cancel"}')
            frames = await rest(websocket)
        await server.until_logged(r"(?s)(Finished server process.*){2}")
        assert (await client.get(f"{url}/readyz")).status_code == 200
    assert [frame["type"] for frame in frames if frame["type"] != "token"] == ["start", "goaway", "done"]
    assert frames[-1]["status"] == "cancelled", "as the client asked, and not because of the replacement"
    assert websocket.close_code == 1012
    assert server.log.count("Started server process") == 4


def test_a_worker_reports_the_server_that_it_runs(monkeypatch):
    """Else a worker that serves may never be ready for its parent, which then replaces nobody."""
    worker = _Worker(uvicorn.Config("ws_chat.app:app", log_config=None), [])
    servers = []

    class Thread:
        def __init__(self, **_: Any) -> None:
            pass

        def start(self) -> None:
            servers.append(worker._server)

    monkeypatch.setattr(multiprocess.threading, "Thread", Thread)
    monkeypatch.setattr(Server, "run", lambda server, _: servers.append(server))
    worker.target([])
    worker.parent_conn.close()
    worker.child_conn.close()
    assert isinstance(servers[0], Server)
    assert servers == [worker.server] * 2


async def test_a_new_version_that_does_not_start_replaces_no_worker(tmp_path, monkeypatch):
    module = tmp_path / "site_of_mine.py"
    module.write_text("from ws_chat.server.app import app")
    monkeypatch.chdir(tmp_path)
    async with program("ws-chat", "serve", "--port", "0", "--workers", "2", "--app", "site_of_mine:app") as server:
        port = await server.port()
        await server.until_logged("(?s)startup complete.*startup complete")
        module.write_text("raise SystemExit('broken')")
        server.process.send_signal(signal.SIGHUP)
        await server.until_logged("The new worker did not start")
        async with http() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    assert server.process.returncode == 0


async def test_a_signal_to_the_whole_group_is_one(serving):
    async with serving(None, "--workers", "2") as (server, url), connected(url) as websocket:
        await websocket.send(json.dumps(SILENT))
        await receive(websocket, "token")
        signal_children(server, signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        await server.until_logged("(?s)(waiting for running answers.*){2}")
        await server.until_logged("Received SIGTERM")
        signal_children(server, signal.SIGTERM)  # the parent does this too; this one has come before the next frame
        await websocket.send('{"type": "ping"}')
        await receive(websocket, "pong")
        await websocket.send('{"type": "cancel"}')
        frames = await rest(websocket)
    assert (frames[-1]["type"], frames[-1]["status"]) == ("done", "cancelled")


@pytest.mark.parametrize("door", ["sse", "websocket"])
async def test_a_slow_reader_gets_what_the_drain_has_ended(door, fake, serving):
    """It has some seconds for what is in the log when the time is over."""
    pieces = [f"{number:06} {'x' * 2000}" for number in range(1000)]
    fake.default = Reply([*text(*pieces)[:-3], Hang()])
    chat = {**CHAT, "id": "r1"}

    async def until_all_is_there() -> None:
        async with client.stream("GET", f"{url}/v1/chat/stream/r1") as response:
            async for line in response.aiter_lines():
                if pieces[-1][:6] in line:
                    return

    async with (
        serving(fake, drain=0.05) as (server, url),
        http() as client,
    ):
        if door == "sse":
            async with client.stream("POST", f"{url}/v1/chat/stream?format=frames", json=chat) as response:
                await until_all_is_there()
                server.process.send_signal(signal.SIGTERM)
                await server.until_logged("failed: draining")
                body = b"".join([part async for part in response.aiter_raw()])
            frames = [json.loads(event["data"]) for event in events(body)]
        else:
            async with connected(url, max_queue=1, max_size=None) as websocket:
                await websocket.send(json.dumps(chat))
                await receive(websocket, "start")
                await until_all_is_there()
                server.process.send_signal(signal.SIGTERM)
                await server.until_logged("failed: draining")
                frames = await rest(websocket)
            assert websocket.close_code == 1012
    assert frames[-1]["error"]["code"] == "draining"
    assert joined(frames) == "".join(pieces)
    assert frames[-1]["seq"] == max(frame["seq"] for frame in frames if frame["type"] == "token") + 1


async def test_a_signal_while_workers_are_replaced_is_not_kept_waiting(serving):
    async with (
        serving(None, "--workers", "2", constants={**AGAIN, "ws_chat.server.run.LAST_REQUEST_TIMEOUT": 0}) as (
            server,
            url,
        ),
        connected(url) as websocket,
        http() as client,
    ):
        await websocket.send(json.dumps(SILENT))
        await receive(websocket, "token")
        server.process.send_signal(signal.SIGHUP)
        await receive(websocket, "goaway")
        server.process.send_signal(signal.SIGTERM)

        async def drains() -> bool:
            try:
                return (await client.get(f"{url}/readyz")).status_code == 503
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                return True  # no worker is left that accepts connections: they are refused and do not wait

        await until(drains, "new requests to be turned away")
        server.process.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0


async def test_an_incomplete_request_does_not_delay_the_end(serving):
    async with serving(None, drain=0) as (server, url):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        async with http() as client:

            async def begun() -> bool:
                return 'connections{door="sse"} 1' in (await client.get(url + "/metrics")).text

            await until(begun, "the server to have read the head of the request")
        server.process.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0
        writer.close()
    assert "Traceback" not in server.log


async def test_a_drain_may_be_announced_before_anything_is_refused(serve, fake, monkeypatch):
    """So that a proxy that asks /readyz sends no more requests when they begin to be refused."""
    over = asyncio.Event()
    service = await serve(drain_delay=7)
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await over.wait()

    monkeypatch.setattr("ws_chat.server.app.asyncio", SimpleNamespace(sleep=sleep))
    draining = asyncio.create_task(service.server.lifespan.state[DRAIN]())
    await until(lambda: slept, "the delay")
    async with http() as client, service.socket() as socket:
        assert (await client.get(f"{service.url}/readyz")).status_code == 503
        assert (await service.post()).status_code == 200
        assert (await socket.chat())[-1]["status"] == "completed"
        over.set()
        assert (await socket.receive())["type"] == "goaway"
        assert (await service.post()).status_code == 503
    await draining
    assert slept == [7]
