"""The server as its operator starts it: a process of its own, in every way there is."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import sys

import httpx
import pytest
from conftest import HELLO, events
from processes import need, output, program
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ws_chat import __main__ as cli
from ws_chat.server.run import ServeOptions

pytestmark = pytest.mark.anyio

CHAT = {"messages": HELLO, "model": "demo-fast"}


def typed(response: httpx.Response) -> str:
    assert response.status_code == 200
    *texts, done = events(response.content)
    assert done == {"event": "done", "data": "[DONE]"}
    return "".join(event["data"] for event in texts)


@pytest.mark.parametrize(
    "command",
    [
        ["ws-chat", "serve", "--port", "0"],
        ["ws-chat", "--port", "0"],
        [sys.executable, "-m", "ws_chat", "serve", "--port", "0"],
        [sys.executable, "-m", "ws_chat", "--port", "0"],
        ["uvicorn", "ws_chat.app:app", "--port", "0"],
        ["ws-chat", "serve", "--port", "0", "--workers", "2"],
    ],
    ids=" ".join,
)
async def test_it_is_started_without_a_key(command):
    async with program(*command) as server:
        port = await server.port()
        async with httpx.AsyncClient() as client:
            assert "“hi”" in typed(await client.post(f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT))

    assert "Answers come from the built-in demo" in server.log
    assert "Traceback" not in server.log


async def test_it_listens_on_a_unix_socket(tmp_path):
    path = str(tmp_path / "s")
    async with program("ws-chat", "serve", "--uds", path) as server:
        await server.until_logged("running on unix socket")
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as client:
            assert "“hi”" in typed(await client.post("http://x/v1/chat/stream", json=CHAT))


async def test_it_speaks_tls(tmp_path):
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made, _, err = await output(
        *(need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate),
        *subject,
    )
    assert made == 0, err
    async with program("ws-chat", "--port", "0", "--ssl-keyfile", key, "--ssl-certfile", certificate) as server:
        port = await server.port()
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=certificate)) as client:
            assert "“hi”" in typed(await client.post(f"https://127.0.0.1:{port}/v1/chat/stream", json=CHAT))


async def test_a_signal_ends_it_while_an_answer_is_typed():
    async with program("ws-chat", "serve", "--port", "0", WS_CHAT_DRAIN_TIMEOUT="0") as server:
        port = await server.port()
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT | {"model": "demo"}) as response,
        ):
            assert response.status_code == 200
            server.process.send_signal(signal.SIGINT)
            body = b"".join([part async for part in response.aiter_raw()])

    last = events(body)[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["error"]["code"] == "draining"
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def closing(websocket):
    """Yield messages until the connection is closed, however."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await websocket.recv()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_signal_ends_what_runs_on_sockets(workers):
    command = ("ws-chat", "serve", "--port", "0", "--workers", workers)
    async with program(*command, WS_CHAT_DRAIN_TIMEOUT="0") as server:
        port = await server.port()
        async with connect(f"ws://127.0.0.1:{port}/v1/chat/ws") as websocket:
            await websocket.send(json.dumps(CHAT | {"model": "demo-slow"}))
            await websocket.recv()
            server.process.send_signal(signal.SIGTERM)
            frames = [json.loads(message) async for message in closing(websocket)]

    assert (frames[-1]["type"], frames[-1]["error"]["code"]) == ("error", "draining")
    assert websocket.close_code == 1012
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def test_it_relays_a_server_named_in_the_environment(fake):
    async with program("ws-chat", "--port", "0", OPENAI_BASE_URL=fake.base_url) as server:
        port = await server.port()
        async with httpx.AsyncClient() as client:
            assert typed(await client.post(f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT)) == "Hello"

    assert "demo" not in server.log


@pytest.mark.parametrize(
    ("command", "told"),
    [(["--help"], b"ws-chat chat --help"), (["serve", "--help"], b"--workers"), (["chat", "--help"], b"--local")],
)
async def test_it_says_what_there_is(command, told):
    status, out, _ = await output("ws-chat", *command)
    assert status == 0
    assert told in out


async def test_a_wrong_environment_is_named():
    status, _, err = await output("ws-chat", "serve", WS_CHAT_MAX_CONNECTIONS="many")

    assert status == 2
    assert b"WS_CHAT_MAX_CONNECTIONS" in err
    assert b"Traceback" not in err


async def test_a_wrong_environment_is_named_by_uvicorn_too():
    status, _, err = await output("uvicorn", "ws_chat.app:app", WS_CHAT_MAX_CONNECTIONS="many")

    assert status == 1
    assert b"WS_CHAT_MAX_CONNECTIONS" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    "given", [["--port", "many"], ["--port", "99999"], ["--port", "-1"], ["--workers", "0"], ["--prot", "1"], ["frob"]]
)
async def test_wrong_options_are_named(given):
    status, _, err = await output("ws-chat", "serve", *given)

    assert status == 2
    assert given[0].encode() in err
    assert b"[--port PORT]" in err


async def test_a_socket_file_that_cannot_be_used_is_named(tmp_path):
    status, _, err = await output("ws-chat", "--uds", str(tmp_path / "nowhere/s"))
    assert (status, b"no folder" in err) == (1, True)

    path = str(tmp_path / "s")
    async with program("ws-chat", "--uds", path) as server:
        await server.until_logged("running on unix socket")
        status, _, err = await output("ws-chat", "--uds", path)
    assert (status, b"a server is running" in err) == (1, True)


def test_every_option_arrives(monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "run", lambda settings, binding: ran.append(binding))
    given = ["serve", "--host", "h", "--port", "1", "--uds", "u", "--workers", "2", "--log-level", "debug"]
    given += [
        "--app",
        "m:a",
        "--ssl-keyfile",
        "k",
        "--ssl-certfile",
        "c",
        "--forwarded-allow-ips",
        "f",
        "--root-path",
        "/r",
    ]

    assert cli.main(given) == 0
    assert ran == [
        ServeOptions(
            app="m:a",
            host="h",
            port=1,
            uds="u",
            workers=2,
            log_level="debug",
            ssl_keyfile="k",
            ssl_certfile="c",
            forwarded_allow_ips="f",
            root_path="/r",
        )
    ]
