from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.service import HELLO, joined

from ws_chat.upstreams import demo

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service(serve, monkeypatch):
    # The pauses are the point of the demo, and of no test: what is said does not depend on them.
    monkeypatch.setattr(demo, "MODELS", {name: replace(b, rate=0) for name, b in demo.MODELS.items()})
    return await serve(openai_api_key=None, openai_base_url=None, upstream_timeout=0.01)


async def answer(service, **request):
    async with service.socket() as socket:
        return await socket.chat(**request)


async def test_it_talks_about_the_last_message(service):
    start, *tokens, done = await answer(service, messages=[*HELLO, {"role": "user", "content": "blue whales?"}])

    said = joined(tokens)
    assert "blue whales?" in said
    assert "\n" in said
    assert "これ" in said
    assert "🎈" in said
    assert len(tokens) > 20
    assert start["model"] == done["model"] == "demo"
    assert (done["status"], done["finish_reason"]) == ("completed", "stop")
    assert done["usage"]["completion_tokens"] == len(tokens)
    assert done["usage"]["total_tokens"] == done["usage"]["prompt_tokens"] + len(tokens)


async def test_it_answers_for_any_other_model_and_says_so(service):
    start, *_, done = await answer(service, model="gpt-4o")

    assert start["model"] == done["model"] == "demo"


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "look"}, {"type": "image_url"}], 7, [None]])
async def test_it_answers_whatever_the_message_is(content, service):
    *_, done = await answer(service, messages=[{"role": "user", "content": content}])

    assert done["status"] == "completed"


@pytest.mark.parametrize("model", ["demo", "demo-fast", "demo-slow"])
async def test_the_paced_models_say_the_same(model, service):
    start, *tokens, done = await answer(service, model=model)

    assert start["model"] == model
    assert "hi" in joined(tokens)
    assert done["status"] == "completed"


async def test_demo_long(service):
    *_, done = await answer(service, model="demo-long")

    assert done["seq"] == 2001


async def test_demo_tools(service):
    _, *tokens, done = await answer(service, model="demo-tools")

    arguments = ["", ""]
    for token in tokens:
        for call in token["tool_calls"]:
            arguments[call["index"]] += call["function"]["arguments"]
    assert [json.loads(given) for given in arguments] == [{"city": "Kyoto", "unit": "celsius"}, {"zone": "Asia/Tokyo"}]
    assert done["finish_reason"] == "tool_calls"


async def test_demo_tools_answers_with_what_the_tool_said(service):
    result = {"role": "tool", "tool_call_id": "call_demo_0", "content": "21 degrees"}
    _, *tokens, done = await answer(service, model="demo-tools", messages=[*HELLO, result])

    assert "21 degrees" in joined(tokens)
    assert done["finish_reason"] == "stop"


async def test_demo_reasoning(service):
    _, *tokens, done = await answer(service, model="demo-reasoning")

    assert joined(tokens, "reasoning_content").startswith("The user wants")
    assert "hi" in joined(tokens)
    assert done["status"] == "completed"


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("demo-error", "upstream_unavailable", 0),
        ("demo-break", "upstream_incomplete", 5),
        ("demo-silent", "upstream_timeout", 5),
    ],
)
async def test_the_models_that_fail(model, code, said, service):
    _, *tokens, failed = await answer(service, model=model)

    assert len(tokens) == said
    assert (failed["type"], failed["error"]["code"], failed["seq"]) == ("error", code, said + 1)
    assert (await service.post({"messages": HELLO, "model": "demo-error"})).status_code == 502
