"""The server as its operator starts it: a process of its own, in every way there is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import ssl
import sys
from pathlib import Path

import httpx
import pytest
from support.processes import need, output, program
from support.service import HELLO, events
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ws_chat import Settings
from ws_chat import __main__ as cli
from ws_chat.server.run import ServeOptions, run
from ws_chat.server.settings import unknown_variables

pytestmark = pytest.mark.anyio

CHAT = {"messages": HELLO, "model": "demo-fast"}


def http(**options):
    return httpx.AsyncClient(timeout=None, **options)


def typed(response: httpx.Response) -> str:
    assert response.status_code == 200
    *texts, done = events(response.content)
    assert done == {"event": "done", "data": "[DONE]"}
    return "".join(event["data"] for event in texts)


@pytest.mark.parametrize(
    "command",
    [
        ["ws-chat", "--port", "0"],
        [sys.executable, "-m", "ws_chat", "serve", "--port", "0"],
        [sys.executable, "-m", "ws_chat", "--port", "0"],
        ["uvicorn", "ws_chat.app:app", "--port", "0"],
    ],
    ids=" ".join,
)
async def test_it_is_started_without_a_key(command):
    async with program(*command) as server:
        port = await server.port()
        async with http() as client:
            assert "“hi”" in typed(await client.post(f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT))

    assert server.log.count("Answers come from the built-in demo") == 1
    assert "Traceback" not in server.log


@pytest.mark.parametrize(("workers", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM)])
async def test_it_is_started_without_a_key_and_a_signal_ends_running_answers(workers, number):
    command = ("ws-chat", "serve", "--port", "0", "--workers", workers)
    variables = {"WS_CHAT_DRAIN_TIMEOUT": "0", "WS_CHAT_UPSTREAM_TIMEOUT": "600"}
    async with program(*command, **variables) as server, http() as client:
        port = await server.port()
        url = f"http://127.0.0.1:{port}/v1/chat/stream"
        assert "“hi”" in typed(await client.post(url, json=CHAT))
        silent = CHAT | {"model": "demo-silent"}
        async with (
            client.stream("POST", url, json=silent) as response,
            connect(f"ws://127.0.0.1:{port}/v1/chat/ws", open_timeout=None, ping_interval=None) as websocket,
        ):
            assert response.status_code == 200
            await websocket.send(json.dumps(silent))
            await websocket.recv()
            server.process.send_signal(number)
            body = b"".join([part async for part in response.aiter_raw()])
            frames = [json.loads(message) async for message in closing(websocket)]

    last = events(body)[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["error"]["code"] == "draining"
    assert (frames[-1]["type"], frames[-1]["error"]["code"]) == ("error", "draining")
    assert websocket.close_code == 1012
    assert "Answers come from the built-in demo" in server.log
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def closing(websocket):
    """Yield messages until the connection is closed, however."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await websocket.recv()


def mode(path: str) -> int | None:
    """Return who may use a file; None if there is none."""
    file = Path(path)
    return file.stat().st_mode & 0o777 if file.exists() else None


async def test_it_listens_on_a_unix_socket_that_no_server_uses(tmp_path):
    path = str(tmp_path / "s")
    async with program("ws-chat", "serve", "--uds", path) as server:
        await server.until_logged("running on unix socket")
        assert mode(path) == 0o600
        async with http(transport=httpx.AsyncHTTPTransport(uds=path)) as client:
            assert "“hi”" in typed(await client.post("http://x/v1/chat/stream", json=CHAT))
        status, _, err = await output("ws-chat", "--uds", path)
    assert (status, b"a server is running" in err) == (1, True)

    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(path)
    async with program("ws-chat", "--uds", path, "--uds-mode", "660", "--workers", "2") as server:
        await server.until_logged("startup complete")  # from now on a signal is handled
        assert mode(path) == 0o660
    assert mode(path) is None
    status, _, err = await output("ws-chat", "--uds", path, "--uds-mode", "66")
    assert (status, b"660" in err) == (2, True)
    status, _, err = await output("ws-chat", "--uds", str(tmp_path / "nowhere/s"))
    assert (status, b"no folder" in err) == (1, True)


async def test_it_speaks_tls(tmp_path):
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made, _, err = await output(
        *(
            need("openssl"),
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
        ),
        *subject,
    )
    assert made == 0, err
    async with program("ws-chat", "--port", "0", "--ssl-keyfile", key, "--ssl-certfile", certificate) as server:
        port = await server.port()
        async with http(verify=ssl.create_default_context(cafile=certificate)) as client:
            assert "“hi”" in typed(await client.post(f"https://127.0.0.1:{port}/v1/chat/stream", json=CHAT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ssl_keyfile": "key"}, "--ssl-keyfile needs --ssl-certfile"),
        ({"ssl_keyfile": __file__, "ssl_certfile": "nowhere"}, r"no file nowhere \(--ssl-certfile\)"),
        ({"ssl_keyfile": "nowhere", "ssl_certfile": __file__}, r"no file nowhere \(--ssl-keyfile\)"),
        ({"ssl_certfile": __file__}, "cannot use --ssl-certfile .*: .*PEM"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(options, message):
    with pytest.raises(SystemExit, match=message):
        run(Settings(), ServeOptions(**options))


async def test_it_relays_a_server_named_in_the_environment(fake):
    async with program("ws-chat", "--port", "0", OPENAI_BASE_URL=fake.base_url) as server:
        port = await server.port()
        async with http() as client:
            assert typed(await client.post(f"http://127.0.0.1:{port}/v1/chat/stream", json=CHAT)) == "Hello"

    assert "demo" not in server.log


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["--help"], "ws-chat chat --help"),
        (["serve", "--help"], "--workers"),
        (["chat", "--help"], "--local"),
        (["--version"], "ws_chat "),
    ],
)
def test_it_says_what_there_is(command, text, capsys):
    try:
        status = cli.main(command)
    except SystemExit as left:
        status = left.code
    assert (status, text in capsys.readouterr().out) == (0, True)


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
def test_wrong_options_are_named(given, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *given])

    err = capsys.readouterr().err
    assert left.value.code == 2
    assert given[0] in err
    assert "[--port PORT]" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sevre", "unknown command 'sevre'. Did you mean `ws-chat serve`?"),
        ("chta", "Did you mean `ws-chat chat`?"),
        ("frobnicate", "The commands are serve and chat."),
    ],
)
def test_an_unknown_command_is_named_with_a_suggestion(given, said, capsys):
    assert cli.main([given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_named_with_a_hint(workers, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SystemExit) as left:
            run(Settings(), ServeOptions(port=port, workers=int(workers)))
    assert left.value.code == 3
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another port with --port" in said


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_named_with_a_hint(host, capsys):
    with pytest.raises(SystemExit) as left:
        run(Settings(), ServeOptions(host=host))
    assert left.value.code == 3
    assert "--host must be an address of this machine" in capsys.readouterr().err


def test_each_option_of_the_command_line_is_suggested_for_its_variable(monkeypatch):
    for field in dataclasses.fields(ServeOptions):
        monkeypatch.setenv(f"WS_CHAT_{field.name.upper()}", "1")
    warnings = "\n".join(unknown_variables())
    for field in dataclasses.fields(ServeOptions):
        assert f"ws-chat serve --{field.name.replace('_', '-')}." in warnings


async def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one():
    variables = {"WS_CHAT_DRAIN_TIMOUT": "1", "WS_CHAT_URL": "ws://x", "WS_CHAT_PORT": "1"}
    async with program("ws-chat", "--port", "0", **variables) as server:
        await server.port()
    assert "WS_CHAT_DRAIN_TIMOUT is not a setting and has no effect. Is it WS_CHAT_DRAIN_TIMEOUT?" in server.log
    assert (
        "WS_CHAT_PORT is not a setting and has no effect. It is an option of the command line: ws-chat serve --port."
        in server.log
    )
    assert "WS_CHAT_URL is not" not in server.log


async def test_a_command_that_cannot_run_leaves_its_status():
    status, _, err = await output("ws-chat", "serve", "frob")

    assert (status, b"frob" in err) == (2, True)


def test_every_option_arrives(monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "run", lambda settings, binding: ran.append(binding))
    given = [
        "serve",
        "--host",
        "h",
        "--port",
        "1",
        "--uds",
        "u",
        "--uds-mode",
        "660",
        "--workers",
        "2",
        "--log-level",
        "debug",
    ]
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
            uds_mode=0o660,
            workers=2,
            log_level="debug",
            ssl_keyfile="k",
            ssl_certfile="c",
            forwarded_allow_ips="f",
            root_path="/r",
        )
    ]
