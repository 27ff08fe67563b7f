"""The parser of a streamed completion: the deltas that it logs have the exact text, in the quick way and in the general."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ws_chat.protocol.deltas import Outcome, decode_delta, encode_delta
from ws_chat.protocol.errors import ChatError
from ws_chat.testing import DONE, chunk, sse
from ws_chat.upstreams.completion import CompletionParser

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\n\r\t\0\x7f,:{}\u2028😀'), max_size=8)
ESCAPED = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@st.composite
def json_strings(draw) -> tuple[str, str]:
    """Return a text and a JSON string of it: each character as it is, if it may be, or in one of its escaped forms."""
    text = draw(TEXTS)
    parts = []
    for character in text:
        units = character.encode("utf-16-be")
        forms = ["".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))]
        forms.append(forms[0].upper().replace("\\U", "\\u"))
        if character in ESCAPED:
            forms.append(ESCAPED[character])
        if character >= " " and character not in '"\\':
            forms.append(character)
        parts.append(draw(st.sampled_from(forms)))
    return text, '"' + "".join(parts) + '"'


def parsed(*reads: bytes) -> list[bytes]:
    deltas: list[bytes] = []
    parser = CompletionParser(deltas.extend, Outcome(), str)
    for read in reads:
        parser.feed(read)
    parser.end()
    return deltas


def event(delta: str) -> bytes:
    return f'data: {{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}\n\n'.encode()


@given(st.lists(json_strings(), min_size=1, max_size=4), st.lists(st.integers(1, 200), max_size=12))
def test_any_text_is_exact_in_any_split_and_as_the_decoder_has_it(strings, cuts):
    stream = b"".join(event(f'{{"content":{string}}}') for _, string in strings)
    reads, rest = [], stream
    for cut in cuts:
        reads.append(rest[:cut])
        rest = rest[cut:]
    deltas = parsed(*filter(None, [*reads, rest]))

    texts = [text for text, _ in strings if text]
    assert [decode_delta(delta) for delta in deltas] == [{"content": text} for text in texts]
    assert [json.loads(delta) for delta in deltas] == [{"content": text} for text in texts]
    assert not any(b"\n" in delta for delta in deltas)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompletionParser, "_parse", CompletionParser._parse_any)
        assert list(map(decode_delta, parsed(stream))) == list(map(decode_delta, deltas))


@pytest.mark.parametrize(
    ("delta", "logged"),
    [
        ('{ "content" : "a" }', b'{"content":"a"}'),
        ('{"content":"a" }', b'{"content":"a"}'),
        ('{"content":"a","content":"b"}', b'{"content":"b"}'),
        ('{"content":"a","refusal":"b"}', b'{"content":"a","refusal":"b"}'),
        ('{"content":"a","role":"assistant"}', b'{"content":"a"}'),
        ('{"content":"a","x":null,"y":"b"}', b'{"content":"a","y":"b"}'),
        ('{"content":"a","x":["}"]}', b'{"content":"a","x":["}"]}'),
        ('{"reasoning_content":"\\u0041"}', b'{"reasoning_content":"A"}'),
        ('{"role":"assistant","content":"","reasoning":"a","refusal":null}', b'{"reasoning":"a"}'),
        ('{"content":"a","reasoning_content":"","refusal": ""}', b'{"content":"a"}'),
        ('{"content":"a\\"\\"","refusal":"b"}', b'{"content":"a\\"\\"","refusal":"b"}'),
        ('{"content":5}', b'{"content":5}'),
        ('{"content":"a","refusal":["b"]}', b'{"content":"a","refusal":["b"]}'),
    ],
)
def test_a_delta_is_logged_without_what_is_never_sent(delta, logged):
    assert parsed(event(delta)) == [logged]


@pytest.mark.parametrize("delta", ['{"content":""}', "{}", "null", '{"role":"assistant"}', '{"content":null}'])
def test_a_delta_with_nothing_in_it_is_none(delta):
    assert parsed(event(delta)) == []


@pytest.mark.parametrize(
    "content",
    [
        b'"\\ud800"',
        b'"\\ud800\\u0041"',
        b'"\\ude00"',
        b'"\\ude00\\ud83d"',
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        b'"\x1f"',
        b'"\\x41"',
        b'"\\u12"',
        b'"a"b"',
        b'"a","',
    ],
)
@pytest.mark.parametrize("more", [b"", b',"x":1'])
def test_what_is_no_json_string_never_reaches_the_log(content, more):
    deltas: list[bytes] = []
    parser = CompletionParser(deltas.extend, Outcome(), str)
    with pytest.raises(ChatError) as raised:
        parser.feed(b'data: {"choices":[{"delta":{"content":' + content + more + b"}}]}\n\n")
    assert raised.value.info.code == "upstream_malformed"
    assert deltas == []


def test_logprobs_belong_to_the_delta():
    logprobs = {"content": [{"token": "a"}]}
    read = sse(chunk({"content": "a"}, logprobs=logprobs), chunk({"content": "b"}, logprobs={"content": None})) + DONE
    assert parsed(read) == [encode_delta({"content": "a", "logprobs": logprobs}), b'{"content":"b"}']
