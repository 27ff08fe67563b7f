"""A Responses request becomes a chat-completions request, field by field and item by item."""

from __future__ import annotations

from typing import Any

import pytest

from ws_chat.protocol.errors import ChatError
from ws_chat.server.responses.request import check_outputs, stream_id, translate

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "patch", "format": {"type": "text"}}
HOSTED = {"type": "web_search"}


def body(**fields: Any) -> dict[str, Any]:
    """Return what of a request reaches the upstream, besides the messages."""
    request = dict(translate({"input": "hi", **fields}).body)
    del request["messages"]
    return request


def messages(*items: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = translate({"input": list(items)}).body["messages"]
    return found


def refusal(**fields: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        translate({"input": "hi", **fields})
    assert caught.value.info.code == "invalid_request"
    return caught.value


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_text_is_a_user_message():
    assert translate({"input": "hi"}).body == {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_output_tokens", 5, {"max_completion_tokens": 5}),
        ("reasoning", {"effort": "low", "summary": "auto"}, {"reasoning_effort": "low"}),
        ("text", {"verbosity": "low"}, {"verbosity": "low"}),
        ("text", {"format": {"type": "text"}}, {}),
        ("text", {"format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            "text",
            {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "description": None}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
                }
            },
        ),
        ("top_logprobs", 2, {"top_logprobs": 2, "logprobs": True}),
        ("top_logprobs", 0, {}),
        ("include", ["message.output_text.logprobs"], {"logprobs": True}),
        ("include", ["reasoning.encrypted_content"], {}),
        ("parallel_tool_calls", False, {}),
        ("tool_choice", "required", {}),
        ("tools", [HOSTED], {}),
        *(
            (name, value, {name: value})
            for name, value in {
                "temperature": 1,
                "top_p": 0.5,
                "metadata": {"a": "b"},
                "user": "u",
                "seed": 3,
                "stop": ["x"],
                "presence_penalty": 1,
                "frequency_penalty": 1,
                "logit_bias": {"1": 2},
                "service_tier": "flex",
                "safety_identifier": "s",
                "prompt_cache_key": "k",
                "prompt_cache_retention": "24h",
            }.items()
        ),
        *(
            (name, value, {})
            for name, value in {
                "stream": True,
                "truncation": "auto",
                "max_tool_calls": 3,
                "stream_options": {},
                "client_metadata": {},
                "unknown": 1,
                "temperature": None,
                "store": False,
                "background": True,
                "stream_id": "a",
                "conversation": None,
            }.items()
        ),
    ],
)
def test_fields(field, value, expected):
    assert body(**{field: value}) == expected


def test_tools():
    sent = body(tools=[FUNCTION, CUSTOM, HOSTED], tool_choice="auto", parallel_tool_calls=False)

    function, custom = sent["tools"]
    assert function == {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert custom["function"]["name"] == "patch"
    assert custom["function"]["parameters"]["properties"] == {"input": {"type": "string"}}
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("auto", False)


@pytest.mark.parametrize(
    ("choice", "names", "sent"),
    [
        ({"type": "function", "name": "f"}, ["f", "patch"], {"type": "function", "function": {"name": "f"}}),
        ({"type": "custom", "name": "patch"}, ["f", "patch"], {"type": "function", "function": {"name": "patch"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, HOSTED]},
            ["f"],
            "required",
        ),
    ],
)
def test_the_choice_of_tools(choice, names, sent):
    request = body(tools=[FUNCTION, CUSTOM], tool_choice=choice)

    assert [tool["function"]["name"] for tool in request["tools"]] == names
    assert request["tool_choice"] == sent


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "g"},
        {"type": "function", "name": []},
        {"type": "web_search"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
        {},
        5,
    ],
)
def test_a_choice_of_no_tool_is_refused(choice):
    assert refusal(tools=[FUNCTION], tool_choice=choice).info.param == "tool_choice"
    assert refusal(tool_choice={"type": "function", "name": "f"}).info.param == "tool_choice"


def test_messages():
    assert messages(
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "no"},
    ]


def test_parts_that_are_no_text():
    audio = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    (message,) = messages(
        user(
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": "data:,x", "detail": "low"},
            {"type": "input_image", "image_url": "data:,y", "detail": None},
            {"type": "input_file", "file_data": "data:,z", "filename": "z.pdf"},
            {"type": "input_file", "file_id": "file-1"},
            audio,
        )
    )

    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:,y"}},
        {"type": "file", "file": {"file_data": "data:,z", "filename": "z.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        audio,
    ]


def test_tool_calls_and_their_outputs():
    assert messages(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": 'x"'},
        {"type": "function_call_output", "call_id": "a", "output": "sunny"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "ok"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    )[1:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"name": "patch", "arguments": '{"input": "x\\""}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": "ok"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"type": "additional_tools"},
        {"type": ["message"]},
        {"role": "user"},
        {"content": "a"},
        {"role": "user", "content": [{"type": "input_video"}]},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]},
        {"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call", "name": "f", "arguments": {}, "call_id": "c"},
        {"type": "function_call_output", "output": "a"},
        {"type": "function_call_output", "call_id": "c"},
        "hi",
        5,
    ],
)
def test_items_that_are_refused(item):
    assert refusal(input=[{"role": "user", "content": "a"}, item]).info.param == "input"


def test_an_output_needs_its_call():
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": "x"}
    before = messages(call)

    check_outputs([], messages(call, output))
    check_outputs(before, messages(output))
    for earlier, now in (
        ([], messages(output)),
        ([], messages(output, call)),
        (before, messages({**output, "call_id": "b"})),
    ):
        with pytest.raises(ChatError) as caught:
            check_outputs(earlier, now)
        assert (caught.value.info.code, caught.value.info.param) == ("invalid_request", "input")


@pytest.mark.parametrize(
    "given", [{}, {"input": ""}, {"input": []}, {"input": None}, {"input": [{"type": "reasoning"}]}]
)
def test_empty_input_needs_something_to_continue_from(given):
    with pytest.raises(ChatError) as caught:
        translate(given)
    assert caught.value.info.param == "input"
    for fields in ({"previous_response_id": "resp_1"}, {"generate": False}):
        assert translate({**given, **fields}).body["messages"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversation", "conv_1"),
        ("prompt", {"id": "x"}),
        ("context_management", []),
        ("model", 5),
        ("model", ""),
        ("instructions", ["a"]),
        ("input", 5),
        ("previous_response_id", 5),
        ("max_output_tokens", "5"),
        ("reasoning", "low"),
        ("text", {"format": {"type": "xml"}}),
        ("text", {"format": {"type": "json_schema", "name": "n"}}),
        ("tools", {}),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "name": "f", "parameters": "x"}]),
        ("top_logprobs", 0.5),
        ("include", "x"),
        ("parallel_tool_calls", 1),
        ("temperature", "1"),
        ("top_p", True),
        ("metadata", {"a": 1}),
        ("user", 1),
        ("service_tier", 1),
        ("store", "no"),
        ("background", 0),
        ("generate", 1),
        ("stream", "yes"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field, value):
    assert refusal(**{field: value}).info.param == field


def test_background_needs_store():
    assert refusal(background=True, store=False).info.param == "background"


@pytest.mark.parametrize("value", ["", "a b", "a" * 257, 5, "ä", "a\n"])
def test_a_bad_stream_id(value):
    with pytest.raises(ChatError) as caught:
        stream_id({"stream_id": value})
    assert (caught.value.info.code, caught.value.info.status) == ("invalid_stream_id", 400)
    assert caught.value.info.param == "stream_id"


@pytest.mark.parametrize("value", ["a", "A-z_0.9", "a" * 256, None])
def test_a_good_stream_id(value):
    assert stream_id({"stream_id": value}) == value


def test_what_is_echoed():
    request = translate(
        {
            "input": "hi",
            "instructions": "Be brief.",
            "previous_response_id": "resp_1",
            "tools": [FUNCTION, CUSTOM, HOSTED],
            "tool_choice": "none",
            "reasoning": {"effort": "low"},
            "text": {"verbosity": "low"},
            "temperature": 0,
            "store": False,
            "truncation": "auto",
        }
    )

    echo = request.echo
    assert [tool["type"] for tool in echo.tools] == ["function", "custom"]
    assert echo.tools[0] == {**FUNCTION, "description": None, "strict": None}
    assert (echo.instructions, echo.previous_response_id, echo.store) == ("Be brief.", "resp_1", False)
    assert echo.reasoning == {"effort": "low", "summary": None}
    assert echo.text == {"format": {"type": "text"}, "verbosity": "low"}
    assert translate({"input": "hi"}).echo.text == {"format": {"type": "text"}, "verbosity": None}
    assert (echo.temperature, echo.tool_choice, echo.truncation) == (0, "none", "disabled")
