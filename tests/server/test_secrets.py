"""Passwords in URLs appear in no log, message or representation."""

from __future__ import annotations

import logging
from base64 import b64encode

import pytest
from support.processes import program
from support.service import HELLO, both_paths
from websockets.asyncio.client import connect

from ws_chat import Settings, SettingsError
from ws_chat.protocol.urls import redact_url
from ws_chat.server.app import choose_upstream
from ws_chat.server.observers.logs import RedactQueries
from ws_chat.server.run import ServeOptions, uvicorn_config
from ws_chat.terminal.local import local_server


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://me:hunter2@[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://me:hun/ter@2@host/v1", "http://host/v1"),
        ("http://me:hun\nter2@host", "http://host"),
        ("me:hunter2@host/v1", "host/v1"),
        ("redis+cluster://:hunter2@host:6379", "redis+cluster://host:6379"),
        ("https://host/v1?token=hunter2", "https://host/v1"),
        ("https://host/v1#hunter2", "https://host/v1"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("OPENAI_BASE_URL", "ftp://me:hunter2@host/v1"),
        ("OPENAI_BASE_URL", "me:hunter2@host/v1"),
        ("OPENAI_BASE_URL", "http://me:hunter2/x@host/v1"),
        ("WS_CHAT_REDIS_URL", "http://me:hunter2@host"),
        ("WS_CHAT_REDIS_URL", "redis://me:hunter2/x@host"),
        ("WS_CHAT_REDIS_URL", "redis://me:[hunter2]@host"),
    ],
)
def test_an_invalid_url_is_named_without_its_password(name, url):
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_environment({name: url})

    assert "hunter2" not in str(caught.value)


def test_settings_are_represented_without_passwords():
    settings = Settings(openai_base_url="http://me:hunter2@host", redis_urls=("redis://:hunter2@host",))

    assert "hunter2" not in repr(settings)


@pytest.mark.anyio
async def test_the_log_names_the_upstream_without_its_password(caplog, serve, fake):
    caplog.set_level(logging.INFO)
    url = fake.base_url
    service = await serve(openai_base_url=url.replace("://", "://me:hunter2@"))
    fake.refuse(404, "no such model")
    assert (await service.post({"messages": HELLO})).status_code == 404
    fake.reply([b"data: nonsense\n\n"])
    await service.post({"messages": HELLO})
    await fake.stop()
    assert (await service.post({"messages": HELLO})).status_code == 502

    assert f"Answers come from {url}" in caplog.text
    assert f"{url}/ answered with status 404" in caplog.text
    assert f"{url}/: ConnectionRefusedError" in caplog.text
    assert "hunter2" not in caplog.text


@both_paths
@pytest.mark.anyio
async def test_a_password_in_the_url_is_sent_as_basic_authentication(serve, fake):
    service = await serve(openai_base_url=fake.base_url.replace("://", "://me:hunter2@"))

    assert (await service.post({"messages": HELLO})).text.endswith("data: [DONE]\n\n")
    assert fake.requests[0].headers["authorization"] == "Basic " + b64encode(b"me:hunter2").decode()


def test_the_terminal_names_the_upstream_without_its_password(tmp_path, monkeypatch, caplog):
    for name in ("ws_chat", "uvicorn.error"):
        caplog.set_level(logging.INFO, name)  # which is restored after local_server has changed it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter2@127.0.0.1:9/v1")
    monkeypatch.setenv("WS_CHAT_MODEL", "m")
    with local_server() as server:
        assert server.description == "m at http://127.0.0.1:9/v1"


def test_the_chosen_upstream_is_logged(caplog):
    caplog.set_level(logging.INFO, "ws_chat")
    choose_upstream(Settings(openai_api_key="sk-1", model="m"))

    assert caplog.messages == ["Answers come from OpenAI. Default model: m."]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/chat/stream", "/v1/chat/stream"),
        ("/v1/chat/stream?format=frames&after=3-x", "/v1/chat/stream?format=frames&after=3-x"),
        ("/v1/chat/ws?api_key=hunter2&format=text", "/v1/chat/ws?api_key=***&format=text"),
        ("/?hunter2&a=hunter2=3", "/?***&a=***"),
        ("/?", "/?***"),
    ],
)
def test_a_path_is_logged_without_the_values_of_its_query(path, shown):
    record = logging.makeLogRecord({"msg": '%s - "%s %s HTTP/%s" %d', "args": ("1.2.3.4:5", "GET", path, "1.1", 200)})

    assert RedactQueries().filter(record)
    assert record.getMessage() == f'1.2.3.4:5 - "GET {shown} HTTP/1.1" 200'


@pytest.mark.anyio
async def test_the_server_logs_no_key_of_a_query():
    async with program("ws-chat", "--port", "0") as server:
        port = await server.port()
        async with connect(f"ws://127.0.0.1:{port}/v1/chat/ws?api_key=hunter2", open_timeout=None):
            pass
        await server.until_logged(r"/v1/chat/ws\?api_key=\*\*\*")

    assert "hunter2" not in server.log
    loggers = uvicorn_config(Settings(), ServeOptions())["log_config"]["loggers"]
    assert [loggers[name]["filters"] for name in ("uvicorn.access", "uvicorn.error")] == [["redact"]] * 2
