"""The server as its operator starts it: a process of its own, in every way there is."""

from __future__ import annotations

import signal
import ssl
import sys

import httpx
import pytest
from conftest import HELLO, events
from processes import need, output, program

from ws_chat import cli
from ws_chat.server import Binding

pytestmark = pytest.mark.anyio

LISTENING = r"running on (https?)://127\.0\.0\.1:(\d+)"
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
        _, port = (await server.until_logged(LISTENING)).groups()
        await server.until_logged("Application startup complete")
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
        scheme, port = (await server.until_logged(LISTENING)).groups()
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=certificate)) as client:
            assert "“hi”" in typed(await client.post(f"{scheme}://127.0.0.1:{port}/v1/chat/stream", json=CHAT))
    assert scheme == "https"


async def test_a_signal_ends_it_while_an_answer_is_typed():
    async with program("ws-chat", "serve", "--port", "0") as server:
        _, port = (await server.until_logged(LISTENING)).groups()
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT | {"model": "demo"}) as response,
        ):
            assert response.status_code == 200
            server.process.send_signal(signal.SIGINT)
            body = b"".join([part async for part in response.aiter_raw()])

    assert events(body)[-1] == {"event": "done", "data": "[DONE]"}
    assert "Traceback" not in server.log


async def test_it_relays_a_server_named_in_the_environment(fake):
    async with program("ws-chat", "--port", "0", OPENAI_BASE_URL=fake.base_url) as server:
        _, port = (await server.until_logged(LISTENING)).groups()
        async with httpx.AsyncClient() as client:
            assert typed(await client.post(f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT)) == "Hello"

    assert "demo" not in server.log


async def test_a_wrong_environment_is_named():
    status, _, err = await output("ws-chat", "serve", WS_CHAT_MAX_CONNECTIONS="many")

    assert status == 2
    assert b"WS_CHAT_MAX_CONNECTIONS" in err
    assert b"Traceback" not in err


async def test_wrong_options_are_named():
    status, _, err = await output("ws-chat", "serve", "--port", "many")

    assert status == 2
    assert b"--port" in err


def test_every_option_arrives(monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "run", lambda settings, binding: ran.append(binding))
    given = ["serve", "--host", "h", "--port", "1", "--uds", "u", "--workers", "2", "--log-level", "debug"]
    given += ["--ssl-keyfile", "k", "--ssl-certfile", "c", "--forwarded-allow-ips", "f", "--root-path", "/r"]

    assert cli.main(given) == 0
    assert ran == [
        Binding(
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
