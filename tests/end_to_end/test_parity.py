"""Whatever an upstream sends and however it is cut up: both doors, in every format, tell exactly that."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.responses import Events, follow, http, response_socket, streamed
from support.service import FALLBACK, Service, events, joined, running

from ws_chat import Settings, create_app
from ws_chat.testing import DONE, FakeOpenAI, Pause, chunk, sse, text, usage_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def used(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion}


@dataclass
class Case:
    """What the upstream sends, and what must come out of it."""

    steps: list[Any]
    content: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = "stop"
    usage: dict[str, Any] | None = None
    frames: int | None = None


def call(index: int, arguments: str = "", **head: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": head.pop("name")} if "name" in head else {})}
    return {"index": index, **head, "function": function}


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


WORDS = ["Hel", "lo, ", "wörld\n", "\r\n", "やっほ", "🎈", " \u2028 ", "\\n\"'\t", " end "]
WHOLE = "".join(WORDS)
STREAM = b"".join(text(*WORDS))
LOGPROBS = [{"token": t, "logprob": -0.5, "bytes": [1], "top_logprobs": []} for t in ("a", "b")]

CASES = {
    "one event a read": Case(text(*WORDS), WHOLE, usage=used(9)),
    "all in one read": Case([STREAM], WHOLE, usage=used(9), frames=1),
    "cut into single bytes": Case([s for b in split(STREAM, 1) for s in (b, Pause(0))], WHOLE, usage=used(9)),
    "cut in odd places": Case([s for b in split(STREAM, 7) for s in (b, Pause(0))], WHOLE, usage=used(9)),
    "CRLF line ends": Case([sse(chunk({"content": w}), eol="\r\n") for w in WORDS] + text()[1:], WHOLE, usage=used(0)),
    "CRLF, cut": Case(split(STREAM.replace(b"\n", b"\r\n"), 5), WHOLE, usage=used(9)),
    "CR line ends, cut": Case(split(STREAM.replace(b"\n", b"\r"), 3), WHOLE, usage=used(9)),
    "byte order mark": Case([b"\xef\xbb\xbf", *text("a")], "a", usage=used(1)),
    "comments and unknown fields": Case(
        [b": PROCESSING\n\n", b"event: x\nid: 7\nretry: 5\nfoo: bar\n\n", sse(chunk({"content": "a"})), *text()[1:]],
        "a",
        usage=used(0),
    ),
    "data without the space": Case([b.replace(b"data: ", b"data:") for b in text("a", "b")], "ab", usage=used(2)),
    "an event in two data lines": Case(
        [b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n', *text("b")], "ab", usage=used(1)
    ),
    "no [DONE]": Case(text("a", done=False), "a", usage=used(1)),
    "[DONE] with spaces": Case([b.replace(b"[DONE]", b" [DONE] ") for b in text("a")], "a", usage=used(1)),
    "no last line end": Case([b"".join(text("a"))[:-2]], "a", usage=used(1)),
    "nothing after [DONE] counts": Case([*text("a"), sse(chunk({"content": "b"}))], "a", usage=used(1)),
    "no usage": Case(text("a", usage=False), "a", usage=None),
    "role-only, empty and null deltas": Case(
        [
            sse(chunk({"role": "assistant"})),
            sse(chunk({"role": "assistant", "content": None, "refusal": None})),
            sse(chunk({"content": "", "tool_calls": []})),
            sse(chunk({"role": "assistant", "content": "a"})),
            sse(chunk(None), {**chunk(), "choices": []}, {"object": "chat.completion.chunk"}, {"choices": None}),
            sse({"choices": [{"index": 0, "delta": None}]}, {"choices": [{"index": None, "delta": {"content": "-"}}]}),
            sse({"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "length"}]}),
            sse(chunk({"content": "b"}, "length")),
            DONE,
        ],
        "a-b",
        finish_reason="length",
    ),
    "usage on every chunk": Case(
        [sse(chunk({"content": "a"}, usage={"total_tokens": 1})), sse(chunk({}, "stop", usage=USAGE)), DONE],
        "a",
        usage=USAGE,
    ),
    "usage null, then there": Case(
        [sse(chunk({"content": "a"}, usage=None)), sse(chunk({}, "stop", usage=None)), sse(usage_chunk()), DONE],
        "a",
        usage=USAGE,
    ),
    "reasoning": Case(
        [*[sse(chunk({"reasoning_content": r})) for r in ("I ", "think")], *text("a", "b")],
        "ab",
        fields={"reasoning_content": "I think"},
        usage=used(2),
    ),
    "a field of the provider's": Case(
        [sse(chunk({"reasoning": "x", "content": "a"}), chunk({"reasoning": "y"})), *text()[1:]],
        "a",
        fields={"reasoning": "xy"},
        usage=used(0),
    ),
    "refusal": Case(
        [*[sse(chunk({"refusal": r})) for r in ("I can", "not.")], sse(chunk({}, "content_filter")), DONE],
        fields={"refusal": "I cannot."},
        finish_reason="content_filter",
    ),
    "parallel tool calls": Case(
        [
            sse(
                chunk(
                    {"role": "assistant", "content": None, "tool_calls": [call(0, id="c0", type="function", name="f")]}
                )
            ),
            sse(chunk({"tool_calls": [call(0, '{"a"')]}), chunk({"tool_calls": [call(0, ":1}")]})),
            sse(chunk({"tool_calls": [call(1, id="c1", type="function", name="g")]})),
            sse(chunk({"tool_calls": [call(1, '{"ä":'), call(0, " ")]})),
            sse(chunk({"tool_calls": [call(1, '"\\n"}')]})),
            sse(chunk({}, "tool_calls")),
            DONE,
        ],
        calls=[
            {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1} '}},
            {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": '{"ä":"\\n"}'}},
        ],
        finish_reason="tool_calls",
    ),
    "logprobs": Case(
        [
            sse(chunk({"content": "a"}, logprobs={"content": LOGPROBS[:1], "refusal": None})),
            sse(chunk({"content": "b"}, logprobs={"content": LOGPROBS[1:], "refusal": None})),
            sse(chunk({}, "stop", logprobs={"content": [], "refusal": None})),
            DONE,
        ],
        "ab",
        logprobs=LOGPROBS,
    ),
    "an empty answer": Case(text(), "", usage=used(0)),
    "a large delta": Case(text("x" * 300_000, "ä" * 200_000), "x" * 300_000 + "ä" * 200_000, usage=used(2)),
}


def calls(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join tool calls as a client does: by index, arguments concatenated."""
    found: dict[int, dict[str, Any]] = {}
    for frame in frames:
        for piece in frame.get("tool_calls", []):
            known = found.setdefault(piece["index"], {"function": {"arguments": ""}})
            known["function"]["arguments"] += piece["function"].pop("arguments", "")
            known["function"] |= piece.pop("function")
            known |= piece
    return [found[index] for index in sorted(found)]


def check(case: Case, frames: list[dict[str, Any]]) -> None:
    start, *tokens, done = frames
    assert start["type"] == "start"
    assert start["seq"] == 0
    assert {token["type"] for token in tokens} <= {"token"}
    seqs = [token["seq"] for token in tokens]
    assert seqs == sorted(set(seqs))
    assert done["type"] == "done", done
    assert done["seq"] == (seqs[-1] if seqs else 0) + 1
    assert done["finish_reason"] == case.finish_reason
    assert done["usage"] == case.usage
    assert joined(tokens) == case.content
    for name, value in case.fields.items():
        assert joined(tokens, name) == value
    assert calls(tokens) == case.calls
    assert [entry for token in tokens for entry in token.get("logprobs", {}).get("content", [])] == case.logprobs
    if case.frames is not None:
        assert len(tokens) == case.frames
    known = {"type", "id", "seq", "content", "tool_calls", "logprobs", *case.fields}
    assert {name for token in tokens for name in token} <= known


@pytest.fixture(scope="module", params=["fast", "fallback"])
async def relayed(request) -> AsyncIterator[tuple[FakeOpenAI, Service]]:
    """An upstream, and a server in front of it, which all cases share: on either path of a token."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            environment.delenv(name, raising=False)
            environment.delenv(name.upper(), raising=False)
        if request.param == "fallback":
            environment.setenv("http_proxy", "http://127.0.0.1:9")
            environment.setenv("no_proxy", "127.0.0.1")
        async with FakeOpenAI() as fake:
            settings = Settings(openai_base_url=fake.base_url, openai_api_key="sk-operator-key", drain_timeout=0)
            config = FALLBACK if request.param == "fallback" else {}
            async with running(create_app(settings), settings, **config) as service:
                yield fake, service


@pytest.mark.parametrize("name", CASES)
async def test_every_transport_sends_what_the_upstream_sent(name, relayed):
    fake, service = relayed
    fake.replies.clear()  # those that a case which failed has left
    case = CASES[name]
    for _ in range(3):
        fake.reply(case.steps)

    async with service.socket() as socket:
        over_websocket = await socket.chat()
    over_sse = await service.frames()
    as_text = await service.post()

    check(case, json.loads(json.dumps(over_websocket)))
    check(case, over_sse)
    *texts, end = events(as_text.content)
    assert "".join(event["data"] for event in texts) == case.content.replace("\r\n", "\n").replace("\r", "\n")
    assert all(set(event) == {"data"} for event in texts)
    assert end == {"event": "done", "data": "[DONE]"}


def check_response(case: Case, events: Events) -> None:
    """Check the events of a response: they say what the frames of a chat say."""
    items = events.output

    def texts(kind: str) -> str:
        parts = [part for item in items if "content" in item for part in item["content"]]
        return "".join(part.get("text", part.get("refusal")) for part in parts if part["type"] == kind)

    assert texts("output_text") == case.content
    assert texts("refusal") == case.fields.get("refusal", "")
    assert texts("reasoning_text") == case.fields.get("reasoning_content", case.fields.get("reasoning", ""))
    assert [item for item in items if item["type"] == "function_call"] == [
        {
            "type": "function_call",
            "id": item["id"],
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
            "status": item["status"],
        }
        for item, call in zip([item for item in items if item["type"] == "function_call"], case.calls, strict=True)
    ]
    logprobs = [entry for item in items for part in item.get("content", ()) for entry in part.get("logprobs", ())]
    assert logprobs == case.logprobs
    reasons = {"length": ("incomplete", "max_output_tokens"), "content_filter": ("incomplete", "content_filter")}
    status, reason = reasons.get(case.finish_reason or "", ("completed", None))
    response = events.response
    assert response["status"] == status
    assert response["incomplete_details"] == (reason and {"reason": reason})
    usage = case.usage and {
        "input_tokens": case.usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": case.usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": case.usage["total_tokens"],
    }
    assert response["usage"] == usage


@pytest.mark.parametrize("name", CASES)
async def test_a_response_has_the_same_contents_as_a_chat(name, relayed):
    fake, service = relayed
    fake.replies.clear()
    case = CASES[name]
    for _ in range(2):
        fake.reply(case.steps)

    async with response_socket(service) as client:
        over_websocket = await client.respond()
    over_http = follow(streamed(await http(service, "POST", body={"input": "hi", "stream": True})))

    for followed in (over_websocket, over_http):
        check_response(case, followed)
        path = f"/{followed.response['id']}"
        assert (await http(service, "GET", path)).json() == followed.response
        again = follow(streamed(await http(service, "GET", f"{path}?stream=true")))
        assert again.output == followed.output
