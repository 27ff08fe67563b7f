"""A deploy, of a real process: what runs may end, what comes is sent elsewhere, and no answer is broken off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import HELLO, events, joined
from processes import output, program
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ws_chat.server.run import Server
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

CHAT = {"messages": HELLO}


@contextlib.asynccontextmanager
async def serving(fake, *options: str, drain: float = 20):
    command = ("ws-chat", "serve", "--port", "0", *options)
    variables = {"OPENAI_BASE_URL": fake.base_url, "WS_CHAT_DRAIN_TIMEOUT": str(drain)}
    async with program(*command, **variables) as server:
        url = f"http://127.0.0.1:{await server.port()}"
        if "2" in options:
            await server.until_logged("(?s)startup complete.*startup complete")
        yield server, url


async def receive(websocket, kind: str) -> dict[str, Any]:
    """Return the next frame of a kind."""
    async with asyncio.timeout(30):
        while (frame := json.loads(await websocket.recv()))["type"] != kind:
            pass
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


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_runs_ends_and_what_comes_is_sent_elsewhere(workers, fake):
    fake.default, go = slowly()
    async with serving(fake, "--workers", workers) as (server, url), httpx.AsyncClient(timeout=30) as client:
        async with (
            connect(url.replace("http", "ws") + "/v1/chat/ws") as websocket,
            client.stream("POST", f"{url}/v1/chat/stream", json=CHAT) as response,
        ):
            await websocket.send(json.dumps({**CHAT, "id": "r1"}))
            await receive(websocket, "token")
            server.process.send_signal(signal.SIGTERM)
            goaway = await receive(websocket, "goaway")
            assert goaway == {"type": "goaway", "deadline_ms": 20000}
            await server.until_logged("(?s)" + int(workers) * "waiting for running answers.*")

            ready = await client.get(f"{url}/readyz")
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
            assert (await client.get(f"{url}/healthz")).status_code == 200
            refused = await client.post(f"{url}/v1/chat/stream", json=CHAT)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            with pytest.raises(InvalidStatus) as denied:
                await connect(url.replace("http", "ws") + "/v1/chat/ws")
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
        async with asyncio.timeout(30):
            assert await server.process.wait() == 0

    assert joined(frames) == "abc"
    assert (frames[-1]["type"], frames[-1]["status"]) == ("done", "completed")
    assert websocket.close_code == 1012
    assert "".join(event["data"] for event in events(body)) == "abc[DONE]"
    assert len(fake.requests) == 2
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def test_who_does_not_end_in_time_is_ended(fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with (
        serving(fake, drain=0.2) as (server, url),
        connect(url.replace("http", "ws") + "/v1/chat/ws") as websocket,
    ):
        await websocket.send(json.dumps(CHAT))
        await receive(websocket, "token")
        server.process.send_signal(signal.SIGTERM)
        error = await receive(websocket, "error")
        await rest(websocket)
        async with asyncio.timeout(30):
            assert await server.process.wait() == 0
    assert (error["seq"], error["error"]["code"]) == (2, "draining")
    assert websocket.close_code == 1012
    assert "Traceback" not in server.log


def test_only_the_same_signal_again_and_later_is_meant(monkeypatch):
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


async def insist(server) -> None:
    while True:
        await asyncio.sleep(0.2)  # a second one that comes within the first second is taken for the same
        server.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_at_once(workers, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with (
        serving(fake, "--workers", workers, drain=600) as (server, url),
        connect(url.replace("http", "ws") + "/v1/chat/ws") as websocket,
    ):
        await websocket.send(json.dumps(CHAT))
        await receive(websocket, "token")
        server.process.send_signal(signal.SIGTERM)
        await receive(websocket, "goaway")
        again = asyncio.create_task(insist(server))
        error = await receive(websocket, "error")
        again.cancel()
        async with asyncio.timeout(30):
            assert await server.process.wait() == 0
    assert error["error"]["code"] == "draining"
    assert "Traceback" not in server.log


async def test_workers_are_replaced_one_by_one_and_nobody_is_turned_away(fake):
    fake.default, go = slowly()
    async with serving(fake, "--workers", "2") as (server, url), httpx.AsyncClient(timeout=30) as client:
        async with client.stream("POST", f"{url}/v1/chat/stream", json=CHAT) as response:
            server.process.send_signal(signal.SIGHUP)
            await server.until_logged(r"(?s)Started server process.*Started server process.*Started server process")
            fake.default = Reply(text("x"))
            for _ in range(50):
                async with httpx.AsyncClient(timeout=30) as other:
                    assert (await other.get(f"{url}/readyz")).status_code == 200
            go.set()
            body = b"".join([part async for part in response.aiter_raw()])
        await server.until_logged(r"(?s)(Finished server process.*){2}")
        assert (await client.get(f"{url}/readyz")).status_code == 200
    assert "".join(event["data"] for event in events(body)) == "abc[DONE]"


async def test_a_new_version_that_does_not_start_replaces_nobody(tmp_path, monkeypatch):
    module = tmp_path / "site_of_mine.py"
    module.write_text("from ws_chat.server.app import app")
    monkeypatch.chdir(tmp_path)
    async with program("ws-chat", "serve", "--port", "0", "--workers", "2", "--app", "site_of_mine:app") as server:
        port = await server.port()
        module.write_text("raise SystemExit('broken')")
        server.process.send_signal(signal.SIGHUP)
        await server.until_logged("The new worker did not start")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    assert server.process.returncode == 0


async def test_a_signal_to_the_whole_group_is_one(fake):
    fake.default, go = slowly()
    async with (
        serving(fake, "--workers", "2") as (server, url),
        httpx.AsyncClient(timeout=30) as client,
        client.stream("POST", f"{url}/v1/chat/stream", json=CHAT) as response,
    ):
        for line in (await output("ps", "-o", "pid=", "--ppid", str(server.process.pid)))[1].split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        await server.until_logged("(?s)(waiting for running answers.*){2}")
        await server.until_logged("Received SIGTERM")
        go.set()
        body = b"".join([part async for part in response.aiter_raw()])
    assert "".join(event["data"] for event in events(body)) == "abc[DONE]"


@pytest.mark.parametrize("door", ["sse", "websocket"])
async def test_a_slow_reader_gets_what_the_drain_has_ended(door, fake):
    """It has some seconds for what is in the log when the time is over."""
    pieces = [f"{number:06} {'x' * 500}" for number in range(4000)]
    fake.default = Reply([*text(*pieces)[:-3], Hang()])
    async with serving(fake, drain=0.3) as (server, url):
        if door == "sse":
            async with (
                httpx.AsyncClient(timeout=30) as client,
                client.stream("POST", f"{url}/v1/chat/stream?format=frames", json=CHAT) as response,
            ):
                server.process.send_signal(signal.SIGTERM)
                await server.until_logged("failed: draining")
                body = b"".join([part async for part in response.aiter_raw()])
            frames = [json.loads(event["data"]) for event in events(body)]
        else:
            address = url.replace("http", "ws") + "/v1/chat/ws"
            async with connect(address, max_queue=1, max_size=None) as websocket:
                await websocket.send(json.dumps(CHAT))
                await receive(websocket, "start")
                await fake.request()
                server.process.send_signal(signal.SIGTERM)
                await server.until_logged("failed: draining")
                frames = await rest(websocket)
            assert websocket.close_code == 1012
    assert frames[-1]["error"]["code"] == "draining"
    assert len(joined(frames)) > 100_000
    assert frames[-1]["seq"] == max(frame["seq"] for frame in frames if frame["type"] == "token") + 1


async def test_a_signal_while_workers_are_replaced_is_not_kept_waiting(fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with (
        serving(fake, "--workers", "2", drain=600) as (server, url),
        connect(url.replace("http", "ws") + "/v1/chat/ws") as websocket,
    ):
        await websocket.send(json.dumps(CHAT))
        await receive(websocket, "token")
        server.process.send_signal(signal.SIGHUP)
        await receive(websocket, "goaway")
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            # When none that takes connections is left, they are refused. They do not wait.
            with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
                while True:
                    async with httpx.AsyncClient() as client:
                        if (await client.get(f"{url}/readyz")).status_code == 503:
                            break
        await asyncio.sleep(1.2)  # a second one that comes within the first second is taken for the same
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await server.process.wait() == 0


async def test_a_request_that_has_not_come_does_not_hold_the_end_up(fake):
    async with serving(fake, drain=0) as (server, url):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            while 'connections{door="sse"} 1' not in (await client.get(url + "/metrics")).text:
                pass
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await server.process.wait() == 0
        writer.close()
    assert "Traceback" not in server.log
