from __future__ import annotations

import contextlib
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import (
    MAX_VALUES,
    Cancel,
    Chat,
    Done,
    Failed,
    InvalidFrameError,
    Ping,
    Pong,
    Position,
    Refused,
    Resume,
    Start,
    Token,
    decode,
    encode,
)
from ws_chat.stores.redis.log import terminal_of

HI = [{"role": "user", "content": "hi"}]

BAD_JSON = {
    "nothing": b"",
    "words": "hello",
    "cut off": '{"messages":[',
    "more than one": '{"type":"ping"} {"type":"ping"}',
    "single quotes": "{'type':'ping'}",
    "NaN": '{"type":"ping","x":NaN}',
    "Infinity": '{"type":"ping","x":-Infinity}',
    "a number that overflows": '{"messages":[{"role":"user"}],"temperature":1e400}',
    "one deep inside": '{"type":"ping","x":[{"y":[-1e999]}]}',
    "a lone surrogate": '{"messages":[{"role":"user","content":"\\ud800"}]}',
    "a lone surrogate as a key": '{"type":"ping","\\udfff":1}',
    "a str that is not Unicode": '{"type":"\ud800"}',
    "too many digits": '{"type":"ping","x":' + "9" * 5000 + "}",
    "bytes that are not UTF-8": b'{"type":"\xff"}',
    "a surrogate in UTF-8": b'{"x":"\xed\xa0\x80"}',
    "UTF-16": '{"type":"ping"}'.encode("utf-16"),
    "a control character": '{"type":"pi\nng"}',
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep and closed": "[" * 5000 + "]" * 5000,
}

BAD_FRAMES = {
    "null": ("null", None),
    "a number": ("42", None),
    "a string": ('"hi"', None),
    "true": ("true", None),
    "an empty object": ("{}", "messages"),
    "an empty list": ("[]", "messages"),
    "messages null": ('{"messages":null}', "messages"),
    "messages empty": ('{"messages":[]}', "messages"),
    "messages an object": ('{"messages":{"role":"user"}}', "messages"),
    "messages a string": ('{"messages":"hi"}', "messages"),
    "a message that is no object": ('{"messages":[{"role":"user"},"hi"]}', "messages"),
    "a message without role": ('{"messages":[{"content":"hi"}]}', "messages"),
    "a role that is no string": ('{"messages":[{"role":1}]}', "messages"),
    "a bare list of lists": ("[[]]", "messages"),
    "an unknown type": ('{"type":"shout"}', "type"),
    "a type that is no string": ('{"type":["chat"]}', "type"),
    "a type that is null": ('{"type":null,"messages":[{"role":"user"}]}', "type"),
    "a server's frame": ('{"type":"token","id":"a","seq":1}', "type"),
    "stream false": ('{"messages":[{"role":"user"}],"stream":false}', "stream"),
    "stream 1": ('{"messages":[{"role":"user"}],"stream":1}', "stream"),
    "n 2": ('{"messages":[{"role":"user"}],"n":2}', "n"),
    "n 1.5": ('{"messages":[{"role":"user"}],"n":1.5}', "n"),
    "n as text": ('{"messages":[{"role":"user"}],"n":"8"}', "n"),
    "n true": ('{"messages":[{"role":"user"}],"n":true}', "n"),
    "model empty": ('{"messages":[{"role":"user"}],"model":""}', "model"),
    "model null": ('{"messages":[{"role":"user"}],"model":null}', "model"),
    "model a number": ('{"messages":[{"role":"user"}],"model":4}', "model"),
    "id a number": ('{"messages":[{"role":"user"}],"id":4}', "id"),
    "id empty": ('{"messages":[{"role":"user"}],"id":""}', "id"),
    "id with a space": ('{"messages":[{"role":"user"}],"id":"a b"}', "id"),
    "id with a line break": ('{"messages":[{"role":"user"}],"id":"a\\n"}', "id"),
    "id too long": ('{"messages":[{"role":"user"}],"id":"' + "a" * 129 + '"}', "id"),
    "id not ASCII": ('{"messages":[{"role":"user"}],"id":"ä"}', "id"),
    "previous_id null": ('{"messages":[{"role":"user"}],"previous_id":null}', "previous_id"),
    "cancel null": ('{"type":"cancel","id":null}', "id"),
    "resume without id": ('{"type":"resume"}', "id"),
    "resume after -1": ('{"type":"resume","id":"a","after":-1}', "after"),
    "resume after true": ('{"type":"resume","id":"a","after":true}', "after"),
    "resume after 1.0": ('{"type":"resume","id":"a","after":1.0}', "after"),
    "resume after text": ('{"type":"resume","id":"a","after":"1"}', "after"),
    "epoch empty": ('{"type":"resume","id":"a","epoch":""}', "epoch"),
    "epoch null": ('{"type":"resume","id":"a","epoch":null}', "epoch"),
    "epoch a number": ('{"type":"resume","id":"a","epoch":1}', "epoch"),
    "epoch with a dash": ('{"type":"resume","id":"a","epoch":"a-b"}', "epoch"),
    "epoch with a line break": ('{"type":"resume","id":"a","epoch":"a\\n"}', "epoch"),
    "epoch too long": ('{"type":"resume","id":"a","epoch":"' + "a" * 33 + '"}', "epoch"),
}


def test_a_chat_is_read():
    frame = decode(
        '{"type":"chat","id":"r1","model":"m","previous_id":"r0","stream":true,"n":1,"temperature":0.1,'
        '"extra_headers":{"a":1},"timeout":5,"messages":[{"role":"user","content":[{"type":"text"}]}]}'
    )

    assert frame == Chat.of(
        body={
            "n": 1,
            "temperature": 0.1,
            "extra_headers": {"a": 1},
            "timeout": 5,
            "messages": [{"role": "user", "content": [{"type": "text"}]}],
        },
        model="m",
        id="r1",
        previous_id="r0",
    )


@pytest.mark.parametrize("data", [json.dumps(HI), json.dumps({"messages": HI}), json.dumps({"messages": HI}).encode()])
def test_a_bare_list_is_a_chat(data):
    assert decode(data) == Chat.of(body={"messages": HI})


def test_the_other_frames_are_read():
    assert decode('{"type":"cancel"}') == Cancel()
    assert decode('{"type":"cancel","id":"r1"}') == Cancel("r1")
    assert decode('{"type":"resume","id":"A-z.0_9:"}') == Resume("A-z.0_9:", 0)
    assert decode('{"type":"resume","id":"r1","after":41}') == Resume("r1", 41)
    epoch = decode('{"type":"resume","id":"r1","epoch":"%s"}' % ("Az_9" * 8))
    assert isinstance(epoch, Resume)
    assert epoch.position == Position(0, "Az_9" * 8)
    assert decode('{"type":"ping","more":1}') == Ping()


def test_of_a_key_given_twice_the_last_counts():
    assert decode('{"type":"cancel","id":"a","id":"b"}') == Cancel("b")


@pytest.mark.parametrize(
    ("given", "body"),
    [
        ('"model":"a","model":"b"', {}),
        ('"tools":[1],"tools":[{"a":1,"a":[2,{"b":3,"b":4}]}]', {"tools": [{"a": [2, {"b": 4}]}]}),
        ('"messages":[],"messages":[{"role":"x","role":"user"}]', {}),
        ('"n":8,"n":1', {"n": 1}),
    ],
)
def test_what_is_checked_is_what_is_passed_on(given, body):
    frame = decode('{"messages":[{"role":"user"}],' + given + "}")

    assert isinstance(frame, Chat)
    assert frame.model in (None, "b")
    sent = msgspec.json.encode(frame.body)
    assert sent == msgspec.json.encode(json.loads(sent)), "no key is there twice"
    assert json.loads(sent) == {"messages": [{"role": "user"}], **body}


def many(value: bytes, count: int) -> bytes:
    return b'{"id":"r1","messages":[{"role":"user","content":[' + b",".join([value] * count) + b"]}]}"


# With the comma after each.
COUNTED = {
    b"[]": 2,
    b"{}": 2,
    b"1": 1,
    b" null ": 1,
    b'""': 1,
    b'"\\","': 1,
    b'"\\\\\\"[["': 1,
    b'{"a":{"[":0}}': 3,
    b"[[1]]": 3,
}


@pytest.mark.parametrize(("value", "counted"), COUNTED.items())
def test_a_request_has_not_too_many_values(value, counted):
    assert isinstance(decode(many(value, MAX_VALUES // counted - 5)), Chat)

    with pytest.raises(InvalidFrameError) as caught:
        decode(many(value, MAX_VALUES // counted))

    assert caught.value.info.code == "too_large"


def test_text_is_one_value_whatever_is_in_it():
    text = json.dumps('[{"a": 1, "b": [2, "\\\\"]}], ' * 30_000).encode()
    assert isinstance(decode(many(text, 1)), Chat)


def test_numbers_are_passed_on_as_given():
    frame = decode('{"messages":[{"role":"user"}],"seed":123456789012345678901234567890,"top_p":1.0,"x":-0.5e-3}')

    assert isinstance(frame, Chat)
    assert bytes(frame.body["seed"]) == b"123456789012345678901234567890"
    assert bytes(frame.body["top_p"]) == b"1.0"
    assert float(bytes(frame.body["x"])) == -0.0005


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_json_is_refused(name):
    with pytest.raises(InvalidFrameError) as caught:
        decode(BAD_JSON[name])

    assert caught.value.info.code == "invalid_json"
    assert len(caught.value.info.message) < 200


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_wrong_shapes_are_refused(name):
    data, param = BAD_FRAMES[name]
    with pytest.raises(InvalidFrameError) as caught:
        decode(data)

    assert caught.value.info.code == "invalid_request"
    assert caught.value.info.param == param


def test_a_refusal_repeats_a_valid_id_only():
    def refused_id(frame: object) -> str | None:
        with pytest.raises(InvalidFrameError) as caught:
            decode(json.dumps(frame))
        return caught.value.id

    assert refused_id({"id": "r1", "messages": []}) == "r1"
    assert refused_id({"id": "r1", "type": "shout"}) == "r1"
    assert refused_id({"id": "r 1", "messages": []}) is None
    assert refused_id({"id": {"a": 1}, "messages": []}) is None
    assert refused_id([]) is None
    assert refused_id({"id": "r1", "messages": HI, "temperature": math.nan}) == "r1"


@pytest.mark.parametrize("value", ["1e999", "-Infinity", '"\\ud800"', '{"\\udfff":1}'])
def test_a_value_that_cannot_be_passed_on_hides_no_id(value):
    with pytest.raises(InvalidFrameError) as caught:
        decode('{"id":"r1","messages":[{"role":"user"}],"top_p":' + value + "}")

    assert (caught.value.info.code, caught.value.id) == ("invalid_json", "r1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.dictionaries(
    st.sampled_from(["type", "id", "messages", "after", "model", "n", "stream", "previous_id"]),
    JSON | st.sampled_from(["chat", "cancel", "resume", "ping", "r1", HI, True, 0]),
)


@given(FRAMES | JSON)
def test_any_json_is_a_frame_or_an_error(value):
    try:
        frame = decode(json.dumps(value))
    except InvalidFrameError as error:
        frame = Refused(id=error.id or UNSET, error=error.info)
        encode(frame)
    assert isinstance(frame, Chat | Cancel | Resume | Ping | Refused)


@given(st.binary() | st.text())
def test_any_bytes_are_a_frame_or_an_error(data):
    with contextlib.suppress(InvalidFrameError):
        decode(data)


@given(JSON, st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_passed_on_is_what_was_given(value, text):
    try:
        frame = decode(json.dumps({"messages": [{"role": "user", "content": text}], "metadata": value}))
    except InvalidFrameError:
        return
    assert isinstance(frame, Chat)
    body = {key: json.loads(bytes(raw)) for key, raw in frame.body.items()}
    assert body == {"messages": [{"role": "user", "content": text}], "metadata": value}


SERVER_FRAMES = [
    (Start("r1", 0, "m"), {"type": "start", "id": "r1", "seq": 0, "model": "m"}),
    (Start("r1", 0, "m", "e"), {"type": "start", "id": "r1", "seq": 0, "model": "m", "epoch": "e"}),
    (
        Done("r1", 6, "completed", "stop", "m", {"total_tokens": 3}, {"ttft_ms": 1.5, "total_ms": 2.5}),
        {
            "type": "done",
            "id": "r1",
            "seq": 6,
            "status": "completed",
            "finish_reason": "stop",
            "model": "m",
            "usage": {"total_tokens": 3},
            "timing": {"ttft_ms": 1.5, "total_ms": 2.5},
        },
    ),
    (Pong(), {"type": "pong"}),
    (
        Failed("r1", 2, ErrorInfo.of("upstream_timeout", "slow")),
        {
            "type": "error",
            "id": "r1",
            "seq": 2,
            "error": {
                "type": "upstream_error",
                "code": "upstream_timeout",
                "message": "slow",
                "param": None,
                "status": 504,
                "retryable": True,
                "retry_after": None,
            },
        },
    ),
    (
        Refused(error=ErrorInfo.of("invalid_request", "no", param="id")),
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "code": "invalid_request",
                "message": "no",
                "param": "id",
                "status": 400,
                "retryable": False,
                "retry_after": None,
            },
        },
    ),
]


@pytest.mark.parametrize(("frame", "value"), SERVER_FRAMES)
def test_a_server_frame_is_one_line_of_json_type_first(frame, value):
    data = encode(frame)

    assert json.loads(data) == value
    assert list(json.loads(data)) == list(value)
    assert data.startswith(b'{"type":"' + value["type"].encode() + b'"')
    assert b"\n" not in data


def test_a_token_frame_is_its_delta_with_the_position_in_front():
    frame = Token.of("r1", 7, b'{"content":"a","x":[1]}')
    assert encode(frame) == b'{"type":"token","id":"r1","seq":7,"content":"a","x":[1]}'


def test_a_terminal_frame_is_read_again_as_it_was():
    error = ErrorInfo.of("upstream_rate_limited", "slow down", retry_after=1.5)
    for frame in (Failed("r1", 2, error), SERVER_FRAMES[2][0]):
        assert terminal_of(encode(frame)) == frame
