"""Every way an upstream can fail, at both doors: before the first delta and after it."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from support.clock import advance, with_clock
from support.service import HELLO, both_paths, events, joined

from ws_chat.protocol.errors import CODES
from ws_chat.testing import DONE, Cut, Garbage, Hang, Reply, Reset, Wait, chunk, error_body, sse, text, usage_chunk
from ws_chat.upstreams import openai as openai_module
from ws_chat.upstreams.http import body as body_module

pytestmark = [pytest.mark.anyio, both_paths]

JSON = {"Content-Type": "application/json"}
NO_RETRY = {**JSON, "x-should-retry": "false"}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """Let the SDK try again at once, and not after seconds."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False)


@dataclass
class Fault:
    """What the upstream does, and the error that it becomes. `said` is text that must be relayed before it."""

    reply: Reply
    code: str
    status: int | None = None
    message: str | None = None
    retry_after: str | None = None
    said: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def stream(*steps: Any) -> Reply:
    return Reply(list(steps))


def status(number: int, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    return Reply([body], number, headers or NO_RETRY)


A = sse(chunk({"content": "a"}))
QUICK = {"upstream_timeout": 0.05}
SILENCE = 20
"""Seconds of an upstream timeout that passes when a test says so."""

FAULTS = {
    "400 with a message": Fault(
        status(400, error_body("bad temperature")), "upstream_rejected", 400, "bad temperature"
    ),
    "404 of a model": Fault(status(404, error_body("no such model")), "upstream_rejected", 404, "no such model"),
    "422 of FastAPI": Fault(
        status(422, b'{"detail":[{"msg":"field required"}]}'), "upstream_rejected", 422, "field required"
    ),
    "413 in plain text": Fault(
        status(413, b"too much", {"Content-Type": "text/plain"}), "upstream_rejected", 413, "too much"
    ),
    "404 as a page": Fault(
        status(404, b"<html>nginx</html>", {"Content-Type": "text/html"}),
        "upstream_rejected",
        404,
        "status 404. Does the server's OPENAI_BASE_URL end in /v1?",
    ),
    "the key in a message": Fault(
        status(
            400, error_body("key sk-operator-key, Bearer sk-operator-key, sk-proj-ab***yz of org-1234567890 is odd")
        ),
        "upstream_rejected",
        400,
        "key ***, ***, *** of *** is odd",
    ),
    "a key that a cut message would show": Fault(
        status(400, error_body("x" * 990 + " sk-operator-key")), "upstream_rejected", 400, "x ***"
    ),
    "half a surrogate pair in a message": Fault(
        status(400, b'{"error":{"message":"bad \\ud800 x"}}'), "upstream_rejected", 400, "bad ? x"
    ),
    "a message nested in lists": Fault(
        status(400, b'{"error":' + b"[" * 500 + b'"deep"' + b"]" * 500 + b"}"), "upstream_rejected", 400, "deep"
    ),
    "an endless error": Fault(
        Reply([b"xxx " * 15_000] * 40, 400, {"Content-Type": "text/plain"}), "upstream_rejected", 400, "xxx xxx"
    ),
    "401": Fault(
        status(401, error_body("Incorrect API key provided: sk-operator-key")), "upstream_auth", 502, "credentials"
    ),
    "403": Fault(status(403, error_body("country")), "upstream_auth", 502, "credentials"),
    "429 with seconds": Fault(
        status(429, error_body("slow down"), {**NO_RETRY, "Retry-After": "7"}),
        "upstream_rate_limited",
        429,
        "slow down",
        retry_after="7",
    ),
    "429 with a date of the past": Fault(
        status(429, error_body("slow down"), {**NO_RETRY, "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        "upstream_rate_limited",
        429,
        retry_after="0",
    ),
    "429 with nonsense": Fault(
        status(429, error_body("slow down"), {**NO_RETRY, "Retry-After": "soon"}), "upstream_rate_limited", 429
    ),
    "429 for ever": Fault(
        status(429, error_body("slow down"), {**NO_RETRY, "Retry-After": "inf"}), "upstream_rate_limited", 429
    ),
    "429 with a date beyond time": Fault(
        status(429, error_body("no"), {**NO_RETRY, "Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}),
        "upstream_rate_limited",
        429,
    ),
    "500": Fault(status(500, b"Traceback (most recent call last)"), "upstream_unavailable", 502, "status 500"),
    "closed without an answer": Fault(Reply(head_after=[Cut()]), "upstream_unavailable", 502),
    "reset without an answer": Fault(Reply(head_after=[Reset()]), "upstream_unavailable", 502),
    "silence without an answer": Fault(Reply(head_after=[Hang()]), "upstream_timeout", 504, settings=QUICK),
    "silence after the head": Fault(stream(Hang()), "upstream_timeout", 504, settings=QUICK),
    "HTML with 200": Fault(
        Reply([b"<!doctype html>\n<html>\n\nhi</html>"], headers={"Content-Type": "text/html"}), "upstream_malformed"
    ),
    "HTML as event stream": Fault(stream(b"<html>one line, no end"), "upstream_malformed"),
    "JSON with 200": Fault(Reply([b'{"choices":[]}'], headers=JSON), "upstream_malformed"),
    "nothing with 200": Fault(stream(), "upstream_incomplete"),
    "only [DONE]": Fault(stream(DONE), "upstream_incomplete"),
    "error object first": Fault(stream(sse({"error": {"message": "boom"}})), "upstream_unavailable", 502, "boom"),
    "error object after a delta": Fault(
        stream(A, sse({"error": {"message": "out of sk-operator-key"}}), *text("b")),
        "upstream_unavailable",
        502,
        "out of ***",
        said="a",
    ),
    "error object in the same read": Fault(
        stream(A + sse({"error": "boom"})), "upstream_unavailable", message="boom", said="a"
    ),
    "an error object as vLLM sends it": Fault(
        stream(A, sse({"object": "error", "message": "boom", "code": 400})),
        "upstream_unavailable",
        502,
        "boom",
        said="a",
    ),
    "an error object that is nothing": Fault(stream(A, sse({"error": [[]]})), "upstream_unavailable", 502, said="a"),
    "nesting too deep to be encoded again": Fault(
        stream(A, b'data: {"choices":[{"delta":{"x":' + b"[" * 900 + b"]" * 900 + b"}}]}\n\n"),
        "upstream_malformed",
        said="a",
    ),
    "end without a finish_reason": Fault(stream(A), "upstream_incomplete", 502, said="a"),
    "[DONE] without a finish_reason": Fault(stream(A, DONE), "upstream_incomplete", 502, said="a"),
    "cut in mid-stream": Fault(stream(A, Cut()), "upstream_incomplete", 502, said="a"),
    "cut in mid-event": Fault(stream(A, A[:20]), "upstream_incomplete", 502, said="a"),
    "cut in mid-event and mid-stream": Fault(stream(A, A[:20], Cut()), "upstream_incomplete", 502, said="a"),
    "bad JSON": Fault(stream(A, b"data: {nonsense\n\n", *text("b")), "upstream_malformed", 502, said="a"),
    "bad JSON in the same read": Fault(stream(A + b"data: {nonsense\n\n"), "upstream_malformed", 502, said="a"),
    "NaN": Fault(stream(A, b'data: {"choices":[],"x":NaN}\n\n'), "upstream_malformed", 502, said="a"),
    "no object": Fault(stream(A, b"data: 42\n\n"), "upstream_malformed", 502, said="a"),
    "choices no list": Fault(stream(A, b'data: {"choices":{"a":1}}\n\n'), "upstream_malformed", said="a"),
    "a choice no object": Fault(stream(A, b'data: {"choices":[7]}\n\n'), "upstream_malformed", said="a"),
    "delta no object": Fault(stream(A, b'data: {"choices":[{"delta":"b"}]}\n\n'), "upstream_malformed", said="a"),
    "finish_reason no string": Fault(
        stream(A, b'data: {"choices":[{"delta":{},"finish_reason":1}]}\n\n'), "upstream_malformed", said="a"
    ),
    "invalid UTF-8": Fault(
        stream(A, b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'), "upstream_malformed", said="a"
    ),
    "a lone surrogate": Fault(
        stream(A, b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'), "upstream_malformed", said="a"
    ),
    "an answer above the limit": Fault(
        stream(A, sse(chunk({"content": "b" * 100})), Hang()),
        "upstream_malformed",
        message="more than 100 bytes",
        said="a",
        settings={"max_answer_bytes": 100},
    ),
    "broken transfer coding": Fault(stream(A, Garbage()), "upstream_malformed", said="a"),
    "broken gzip": Fault(
        Reply([b"no gzip"], headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}),
        "upstream_malformed",
    ),
}


def check(fault: Fault, error: dict[str, Any]) -> None:
    kind = CODES[fault.code]
    assert error == {
        "type": kind.type,
        "code": fault.code,
        "message": error["message"],
        "param": None,
        "status": fault.status or kind.status,
        "retryable": kind.retryable,
        "retry_after": error["retry_after"],
    }
    seconds = error["retry_after"]
    assert (None if seconds is None else str(math.ceil(seconds))) == fault.retry_after
    assert fault.message is None or fault.message in error["message"]
    assert "sk-operator-key" not in error["message"]
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("name", FAULTS)
async def test_becomes_its_error_on_every_transport(name, serve, fake):
    fault = FAULTS[name]
    service = await serve(**fault.settings)
    if not fault.settings:  # two answers, after which requests are sent without the SDK: see test_template.py
        for _ in range(2):
            await service.post()
    fake.default = fault.reply

    async with service.socket() as socket:
        (start, *tokens, failed), over_sse, as_text = await asyncio.gather(
            socket.chat(), service.post(query="?format=frames"), service.post()
        )
        assert (await socket.ask({"type": "ping"})) == {"type": "pong"}

    assert (start["type"], failed["type"]) == ("start", "error")
    assert joined(tokens) == fault.said
    assert failed["seq"] == len(fault.said) + 1
    check(fault, failed["error"])
    if any(isinstance(step, Hang) for step in fault.reply.steps):
        await asyncio.gather(*(request.closed.wait() for request in fake.requests))
    if fault.said:
        assert over_sse.status_code == as_text.status_code == 200
        assert [event["event"] for event in events(over_sse.content)][-1] == "error"
        assert events(as_text.content)[0] == {"data": fault.said}
        assert [event.get("event") for event in events(as_text.content)] == [None, "error"]
        last = events(as_text.content)[-1]["data"]
        check(fault, json.loads(last)["error"])
    else:
        for response in (over_sse, as_text):
            assert response.status_code == failed["error"]["status"]
            assert response.headers["content-type"] == "application/json"
            assert response.headers.get("retry-after") == fault.retry_after
            check(fault, response.json()["error"])


async def test_a_refused_connection_is_unavailable(serve, fake):
    service = await serve(openai_base_url="http://127.0.0.1:9/v1")

    async with service.socket() as socket:
        _, failed = await socket.chat()

    assert failed["error"]["code"] == "upstream_unavailable"
    assert (await service.post()).status_code == 502


@with_clock
async def test_silence_in_mid_stream_is_a_timeout_on_every_transport(serve, fake):
    fake.default = stream(A, Hang())
    service = await serve(upstream_timeout=SILENCE)

    async with service.socket() as socket, httpx.AsyncClient(timeout=None) as client:
        ask = partial(client.stream, "POST", service.stream_url, json={"messages": HELLO})
        async with ask(params={"format": "frames"}) as over_sse, ask() as as_text:
            await socket.send({"messages": HELLO})
            assert [(await socket.receive())["type"] for _ in range(2)] == ["start", "token"]
            advance(SILENCE)  # every transport has sent the "a"
            (failed,) = await socket.until_end()
            frames, texts = events(await over_sse.aread()), events(await as_text.aread())

    fault = Fault(fake.default, "upstream_timeout", 504)
    check(fault, failed["error"])
    assert failed["seq"] == 2
    assert [event["event"] for event in frames] == ["start", "token", "error"]
    check(fault, json.loads(frames[-1]["data"])["error"])
    assert texts[0] == {"data": "a"}
    assert texts[1]["event"] == "error"
    check(fault, json.loads(texts[1]["data"])["error"])


@with_clock
async def test_silence_after_the_finish_reason_breaks_no_answer(serve, fake, monkeypatch):
    monkeypatch.setattr(openai_module, "TAIL_TIMEOUT", 600)
    fake.default = stream(sse(chunk({"content": "a"}, "stop")), Hang())
    service = await serve(upstream_timeout=SILENCE)

    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        assert [(await socket.receive())["type"] for _ in range(2)] == ["start", "token"]
        advance(SILENCE)
        (done,) = await socket.until_end()

    assert (done["status"], done["finish_reason"], done["usage"]) == ("completed", "stop", None)


@pytest.mark.parametrize("end", [Cut(), Reset(), Garbage(), b"data: junk\n\n", sse({"error": "late"}), b"junk"])
async def test_what_breaks_after_the_finish_reason_breaks_no_answer(end, service, fake):
    fake.default = stream(A, sse(chunk({}, "stop")), end)

    async with service.socket() as socket:
        _, *tokens, done = await socket.chat()

    assert (done["status"], done["finish_reason"], done["usage"]) == ("completed", "stop", None)
    assert joined(tokens) == "a"


async def test_an_answer_that_has_finished_is_not_waited_for_long(service, fake, monkeypatch):
    monkeypatch.setattr(openai_module, "TAIL_TIMEOUT", 0.05)
    fake.default = stream(A, sse(chunk({}, "stop"), usage_chunk()), Hang())

    async with service.socket() as socket:
        _, *tokens, done = await socket.chat()
        await fake.requests[0].closed.wait()

    assert (done["status"], done["finish_reason"]) == ("completed", "stop")
    assert done["usage"]["total_tokens"] == 8
    assert joined(tokens) == "a"


@with_clock
async def test_a_rate_limit_stays_one_after_long_retries(serve, fake):
    for _ in range(3):
        fake.refuse(429, "slow down", Retry_After="0.01")
    service = await serve(upstream_timeout=SILENCE)

    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        for number in (1, 2):
            await fake.request(number)
            advance(0.75 * SILENCE)  # no silence is too long, but all of them together are
        *_, failed = await socket.until_end()

    assert failed["error"]["code"] == "upstream_rate_limited"
    assert len(fake.requests) == 3


@with_clock
@pytest.mark.usefixtures("only_fast")
async def test_silence_is_waited_for_once(serve, fake):
    fake.default = Reply(head_after=[Hang()])
    service = await serve(upstream_timeout=SILENCE)

    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await fake.request()
        advance(SILENCE)
        *_, failed = await socket.until_end()

    assert failed["error"]["code"] == "upstream_timeout"
    assert len(fake.requests) == 1


async def test_a_failing_upstream_is_tried_again_before_the_first_delta(service, fake):
    fake.refuse(500, "not yet")
    fake.reply(text("a"))

    async with service.socket() as socket:
        frames = await socket.chat()

    assert joined(frames) == "a"
    assert len(fake.requests) == 2


async def test_a_failing_upstream_is_not_tried_again_after_the_first_delta(service, fake):
    fake.reply([A, Reset()])

    async with service.socket() as socket:
        *_, failed = await socket.chat()

    assert failed["error"]["code"] == "upstream_unavailable"
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error_body("Unrecognized request argument supplied: stream_options")),
        (422, b'{"detail":[{"loc":["body","stream_options"],"msg":"extra fields not permitted"}]}'),
        (400, error_body("include_usage is not supported")),
    ],
)
async def test_a_server_that_refuses_stream_options_is_asked_without_and_remembered(status, body, service, fake):
    fake.reply([body], status, JSON)
    fake.default = Reply(text("a", usage=False))

    async with service.socket() as socket:
        *_, first = await socket.chat()
        *_, second = await socket.chat()

    assert (first["status"], first["usage"]) == ("completed", None)
    assert second["status"] == "completed"
    assert ["stream_options" in request.body for request in fake.requests] == [True, False, False]
    async with service.socket() as socket:
        await socket.chat(model="another")
    assert "stream_options" in fake.requests[-1].body


async def test_a_refusal_of_something_else_leaves_usage_asked_for(service, fake):
    fake.refuse(400, "bad temperature")

    async with service.socket() as socket:
        *_, failed = await socket.chat()
        *_, done = await socket.chat()

    assert failed["error"]["code"] == "upstream_rejected"
    assert done["usage"]
    assert ["stream_options" in request.body for request in fake.requests] == [True, True]


async def test_a_refusal_in_both_ways_is_an_error_and_not_remembered(service, fake):
    fake.refuse(400, "stream_options are odd")
    fake.refuse(400, "temperature too")

    async with service.socket() as socket:
        *_, failed = await socket.chat()
        *_, done = await socket.chat()

    assert failed["error"]["message"] == "temperature too"
    assert done["usage"]


async def test_stream_options_of_the_client_are_passed_on_and_kept(service, fake):
    async with service.socket() as socket:
        await socket.chat(stream_options={"include_obfuscation": False})
        await socket.chat(stream_options={"include_usage": False})
        await socket.chat(stream_options="odd")

    assert [request.body["stream_options"] for request in fake.requests] == [
        {"include_obfuscation": False, "include_usage": True},
        {"include_usage": False},
        "odd",
    ]


async def test_a_connection_serves_one_answer_after_another(service, fake, monkeypatch):
    for module in (openai_module, body_module):
        monkeypatch.setattr(module, "DRAIN_TIMEOUT", 600)
    async with service.socket() as socket:
        for _ in range(20):
            await socket.chat()

    # The end of a response may come after the next request has begun; then there are two, taken in turn.
    assert fake.accepted <= 2


@pytest.mark.usefixtures("only_fast")
async def test_hundreds_of_generations_run_at_once(serve, fake):
    """tests/load/stress.py runs five thousand."""
    sockets, each = 4, 75
    gate = asyncio.Event()
    fake.default = Reply([A, Wait(gate), *text("b")])
    service = await serve(max_generations_per_connection=each)

    async def ask() -> list[list[dict[str, Any]]]:
        """Return the frames of each generation on one socket."""
        async with service.socket() as socket:
            for _ in range(each):
                await socket.send({"messages": HELLO})
            frames: dict[str, list[dict[str, Any]]] = {}
            for _ in range(each):
                for frame in await socket.until_end():
                    frames.setdefault(frame["id"], []).append(frame)
            return list(frames.values())

    asking = [asyncio.create_task(ask()) for _ in range(sockets)]
    await fake.request(sockets * each)
    gate.set()

    for answers in await asyncio.gather(*asking):
        assert [joined(frames) for frames in answers] == ["ab"] * each
        assert {frames[-1]["type"] for frames in answers} == {"done"}
    assert fake.accepted == sockets * each


@pytest.mark.parametrize("ends_in", ["", "/v1"])
async def test_a_404_of_an_address_without_v1_is_logged_with_a_hint(ends_in, serve, fake, caplog):
    fake.refuse(404, "no such path")
    service = await serve(openai_base_url=fake.base_url.removesuffix("/v1") + ends_in)
    response = await service.post()
    assert response.status_code == 404
    assert "answered with status 404" in caplog.text
    assert ("Does OPENAI_BASE_URL end in /v1?" in caplog.text) == (not ends_in)
