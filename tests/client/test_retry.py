"""How long the client waits before it tries again: as long as the server says, and never in vain. And who learns of it."""

from __future__ import annotations

import json
import threading

import pytest
from support.patience import Clock, recorded_pauses
from support.scripted import done, refusal, scripted, send_frames, start
from support.service import HELLO

from ws_chat.client import ClientError, ServerError, UpstreamError, connect, connect_sync

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def pauses(monkeypatch):
    return recorded_pauses(monkeypatch)


def busy(retry_after):
    frame = refusal("overloaded", "server_error", retryable=True)
    frame["error"]["retry_after"] = retry_after
    return frame


def refusing_once(frame):
    """Return a handler that refuses the first request with this frame, and answers the next."""

    async def handle(socket):
        async for number, message in _numbered(socket):
            generation_id = json.loads(message)["id"]
            await send_frames(socket, generation_id, *([frame] if number == 1 else [start(), done(1)]))

    return handle


async def _numbered(socket):
    number = 0
    async for message in socket:
        number += 1
        yield number, message


async def test_a_refusal_is_waited_out_for_as_long_as_it_says(pauses):
    async with scripted(refusing_once(busy(7))) as url, connect(url) as chat:
        assert (await chat.ask(HELLO)).status == "completed"
    assert pauses == [7]


@pytest.mark.parametrize("nothing", [None, 0, "soon"])
async def test_without_a_time_the_pause_is_its_own(nothing, pauses):
    async with scripted(refusing_once(busy(nothing))) as url, connect(url) as chat:
        assert (await chat.ask(HELLO)).status == "completed"
    assert pauses[0] < 1


async def test_a_refusal_for_longer_than_patience_is_an_error_at_once(pauses):
    async with scripted(refusing_once(busy(61))) as url, connect(url, patience=60) as chat:
        with pytest.raises(ServerError) as refused:
            await chat.ask(HELLO)
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 61)
    assert pauses == []


async def test_the_error_of_an_answer_says_when_to_ask_again():
    failure = refusal("upstream_rate_limited", "upstream_error", retryable=True) | {"seq": 1}
    failure["error"]["retry_after"] = 2.5

    async def handle(socket):
        await send_frames(socket, json.loads(await socket.recv())["id"], start(), failure)
        await socket.wait_closed()

    async with scripted(handle) as url, connect(url) as chat:
        with pytest.raises(UpstreamError) as failed:
            await chat.ask(HELLO)
    assert failed.value.retry_after == 2.5


@pytest.mark.parametrize(("in_body", "expected"), [(1.5, 1.5), (None, 2)])
async def test_at_connecting_the_error_object_counts_before_the_header(in_body, expected):
    async def refuse(connection, _):
        response = connection.respond(503, json.dumps({"error": busy(in_body)["error"]}))
        response.headers["Retry-After"] = "2"
        return response

    async with scripted(lambda _: None, process_request=refuse) as url:
        chat = connect(url)
        with pytest.raises(ServerError) as refused:
            await chat.open()
        await chat.close()
    assert refused.value.retry_after == expected


async def test_on_retry_is_called_before_each_pause(pauses):
    reported: list[tuple[ClientError, float]] = []

    async with (
        scripted(refusing_once(busy(7))) as url,
        connect(url, on_retry=lambda *given: reported.append(given)) as chat,
    ):
        await chat.ask(HELLO)
    [(reason, seconds)] = reported
    assert (str(reason), seconds) == ("overloaded: no", 0), "the pauses are left out here"


def test_on_retry_of_the_client_without_async():
    reported = []
    called = threading.Event()

    def on_retry(reason, _):
        reported.append(str(reason))
        called.set()

    chat = connect_sync("ws://127.0.0.1:1", on_retry=on_retry)
    reply = chat.ask("hi")
    called.wait()
    chat.close()
    assert reply.status == "failed"
    assert "ws://127.0.0.1:1/v1/chat/ws cannot be reached" in reported[0]
