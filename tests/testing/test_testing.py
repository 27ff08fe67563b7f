"""What others test with: the fake upstream and its fixtures, in a project that is not ours."""

from __future__ import annotations

import contextlib
import json
import sys
import threading

import httpx
import pytest
from fastapi import FastAPI
from support.processes import output
from support.service import HELLO, events
from support.waiting import until_sync

from ws_chat import Settings, mount
from ws_chat.client import connect, connect_sync
from ws_chat.testing import DONE, FakeOpenAI, Reply, Wait, chunk, serving, sse, text

OF_A_USER = """
import pytest
from ws_chat.client import ClientError, connect, connect_sync
from ws_chat.testing import Cut, text


def test_without_async(fake_openai, ws_chat_url):
    fake_openai.reply(text("Good ", "day."))
    with connect_sync(ws_chat_url) as chat:
        assert chat.ask("hi").end().text == "Good day."
    assert fake_openai.requests[0].body["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.anyio
async def test_with_async(fake_openai, ws_chat_url):
    fake_openai.reply([*text("Good ")[:2], Cut()])
    async with connect(ws_chat_url) as chat:
        with pytest.raises(ClientError, match="upstream_incomplete"):
            await chat.ask("hi")
"""


@pytest.mark.anyio
async def test_the_fixtures_are_there_by_themselves(tmp_path):
    (tmp_path / "test_mine.py").write_text(OF_A_USER)
    status, out, _ = await output(
        *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:schemathesis"),
        *("-k", "not trio", "--rootdir", str(tmp_path), str(tmp_path)),
        OPENAI_BASE_URL="http://127.0.0.1:1",
        WS_CHAT_API_KEYS="a-key-that-no-fixture-reads",
    )

    assert status == 0, out.decode()
    assert b"2 passed" in out


@pytest.mark.anyio
async def test_the_plugin_imports_nothing_until_it_is_used():
    code = "import sys, pytest; before = set(sys.modules); import ws_chat.testing.pytest_plugin; print(set(sys.modules) - before)"
    _, out, _ = await output(sys.executable, "-c", code)
    loaded = {name for name in eval(out) if name.partition(".")[0] not in sys.stdlib_module_names}

    assert loaded == {"ws_chat", "ws_chat.testing", "ws_chat.testing.pytest_plugin"}


def test_a_reply_may_wait_for_another_thread(fake_openai, ws_chat_url):
    go = threading.Event()
    fake_openai.reply([sse(chunk({"content": "a"})), Wait(go), sse(chunk({"content": "b"}, "stop")), DONE])
    with connect_sync(ws_chat_url) as chat:
        texts = chat.stream("hi")
        assert next(texts) == "a"
        go.set()
        assert list(texts) == ["b"]


def test_a_client_that_goes_is_seen(fake_openai, ws_chat_url):
    fake_openai.reply([sse(chunk({"content": "a"})), Wait(threading.Event())])
    with httpx.stream("POST", f"{ws_chat_url}/v1/chat/stream", json={"messages": HELLO}, timeout=None) as response:
        next(response.iter_raw())
    until_sync(fake_openai.requests[0].closed.is_set, "the upstream to see that the client has gone")


@pytest.mark.anyio
async def test_it_runs_in_a_loop_of_ones_own():
    async with FakeOpenAI() as fake:
        fake.default = Reply(text("one", "two"))
        async with httpx.AsyncClient(base_url=fake.base_url, timeout=None) as client:
            answered = await client.post("/chat/completions", json={"model": "m", "messages": HELLO})

    assert [event["data"] for event in events(answered.content)][-1] == "[DONE]"
    assert (await fake.request()).body["model"] == "m"
    with pytest.raises(RuntimeError, match="was not started"):
        _ = FakeOpenAI().base_url


@pytest.mark.anyio
async def test_an_application_of_ones_own_is_served(fake_openai):
    app = FastAPI()
    mount(app, "/chat", principal=None, settings=Settings(openai_base_url=fake_openai.base_url, drain_timeout=0))
    with serving(app) as url:
        async with connect(url + "/chat/v1/chat/ws") as chat:
            assert (await chat.ask("hi")).text == "Hello"
    async with httpx.AsyncClient(timeout=None) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


def test_an_application_that_does_not_start_is_an_error():
    @contextlib.asynccontextmanager
    async def fails(_):
        raise ValueError("no")
        yield

    app = FastAPI(lifespan=fails)
    with pytest.raises(RuntimeError, match="did not start"), serving(app):
        pass


def test_a_refusal_is_an_error(fake_openai, ws_chat_url):
    fake_openai.refuse(400, "Slow down.", X_Anything="7")
    response = httpx.post(f"{ws_chat_url}/v1/chat/stream", content=json.dumps(HELLO), timeout=None)

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "Slow down."
