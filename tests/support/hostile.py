"""Frames that a client might send by mistake or on purpose: valid ones, and mutations of them.

The same seed gives the same frames. The right answers are in support/contract.py.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[Any] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "やっほ\r\n\u2028\0"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}],
    [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1"}],
]
PARAMETERS: dict[str, list[Any]] = {
    "model": ["m-1", "gpt-4o-mini"],
    "stream": [True],
    "n": [1],
    "temperature": [0.25, 2],
    "tools": [[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]],
    "stream_options": [{"include_usage": True}, {"include_usage": False}, {}],
    "logprobs": [True],
    "extra_headers": [{"Authorization": "Bearer x"}],
    "extra_body": [{"messages": []}],
    "timeout": [0.001],
}
KEYS = ["type", "id", "messages", "after", "previous_id", "role", "content", "tool_calls", "seq", "error", *PARAMETERS]
ODD: list[Any] = [
    *(None, True, False, 0, -0.0, -1, 1.5, 2**31, 2**63, 2**64, -(10**30), 10**400, 1e308, 5e-324),
    *("", " ", "a" * 128, "a" * 129, "r1\n", "a/b", "..", "é", "\0", "\ud800", "\udfff", "data: x\n\n", "chat", "1"),
    *([], {}, [[]], [{}], [None], {"": {}}, {"role": "user"}, [{"role": 1}], [{"role": "user"}, 1]),
]
NUMBERS = ["1e400", "-1E+999", "NaN", "-Infinity", "1" * 5000, "00", "1.", "0x1", "1e-400", "0." + "9" * 400, "١"]
PIECES = ["\\ud800", "\\udc00\\ud800", "\\u12", "\\x41", "\0", "\n", "\ufeff", "//", ",", "]", "}", "'", '"', "\u2029"]
BYTES = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\0", b"\x80", b"\xef\xbb\xbf"]


MAX_BYTES = 60_000
"""The limit for frames. A mutation may exceed it, and the server then closes the socket."""


def valid(chance: random.Random, ids: list[str]) -> Any:
    """Return a valid frame, whose generations may be unknown."""
    messages = chance.choice(MESSAGES)
    kind = chance.random()
    if kind < 0.1:
        return {"type": "ping"}
    if kind < 0.3:
        return {"type": "cancel", "id": chance.choice(ids)} if chance.random() < 0.8 else {"type": "cancel"}
    if kind < 0.5:
        return {"type": "resume", "id": chance.choice(ids), "after": chance.choice([0, 0, 1, 2, 3, 9])}
    if kind < 0.6:
        return messages
    frame = {"messages": messages}
    if chance.random() < 0.3:
        frame["type"] = "chat"
    if chance.random() < 0.5:
        frame["id"] = chance.choice(ids)
    if chance.random() < 0.3:
        frame["previous_id"] = chance.choice(ids)
    for name in chance.sample(sorted(PARAMETERS), chance.randrange(4)):
        frame[name] = chance.choice(PARAMETERS[name])
    return frame


def hostile(chance: random.Random, ids: list[str]) -> bytes:
    """Return a frame as bytes: in one of three left as it is, else changed once or more as a value, a text or bytes."""
    value = valid(chance, ids)
    change = chance.random()
    if change < 0.33:
        return written(value).encode()
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        value = changed(chance, value)
    text = written(value, lambda: change > 0.8 and chance.random() < 0.2)
    if change > 0.66:
        for _ in range(chance.choice([0, 1, 1, 2])):
            text = misspelt(chance, text)
    data = text.encode()
    if change > 0.9:
        for _ in range(chance.choice([1, 1, 3])):
            data = broken(chance, data)
    return data


def written(value: Any, twice: Callable[[], bool] = lambda: False) -> str:
    """Return a value as JSON text, in which an object has a key `twice`."""
    if isinstance(value, dict):
        pairs = [(key, inner) for key, inner in value.items() for _ in range(1 + twice())]
        return "{" + ",".join(f"{json.dumps(key)}:{written(inner, twice)}" for key, inner in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inner, twice) for inner in value) + "]"
    if type(value) is int and abs(value) > 10**100:
        return "1" + "0" * 400  # Python refuses to write long ones
    return json.dumps(value)


def changed(chance: random.Random, value: Any) -> Any:
    """Return a value with one thing inside it put in, taken out, replaced or wrapped."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if inside and chance.random() < 0.6:
        place = chance.choice(inside)
        copied = value.copy()
        copied[place] = changed(chance, value[place])
        return copied
    odd = chance.choice(ODD)
    match chance.randrange(6):
        case 0 if isinstance(value, dict):
            return {**value, chance.choice(KEYS): odd}
        case 1 if inside:
            copied = value.copy()
            del copied[chance.choice(inside)]
            return copied
        case 2:
            odd = chance.choice([[value], {chance.choice(KEYS): value}])
        case 3 if isinstance(value, dict) and inside:
            name = chance.choice(inside)
            other = chance.choice([name.upper(), name + " ", "\ud800", "", "__class__"])
            return {other if key == name else key: inner for key, inner in value.items()}
        case 4 if isinstance(value, list):
            odd = [*value, odd] * chance.choice([1, 3])
    return odd


def misspelt(chance: random.Random, text: str) -> str:
    """Return a text with something put in, taken out, doubled or cut off, at any place."""
    start = chance.randrange(len(text) + 1)
    end = start + chance.choice([0, 0, 1, 2, 10])
    return chance.choice(
        [
            text[:start] + chance.choice(PIECES) + text[end:],
            text[:start] + text[end:],
            text[:end] + text[start:],
            text[:start],
            text + chance.choice([text, " ", "\0", "x"]),
            re.sub(r"-?\d[\d.e+-]*|true|null", lambda _: chance.choice(NUMBERS), text, count=1),
            deep(chance.choice(["[", '{"a":', '[{"a":']), chance.choice([50, 190, 210, 2000, 4000])),
        ]
    )


def deep(opening: str, count: int) -> str:
    """Return a chat with a content so many levels deep."""
    closing = opening.replace('"a":', "")[::-1].translate({ord("["): "]", ord("{"): "}"})
    return '{"messages":[{"role":"user","content":' + opening * count + "1" + closing * count + "}]}"


def broken(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with some changed, most often into what is not UTF-8."""
    place = chance.randrange(len(data) + 1)
    match chance.randrange(4):
        case 0 if data:
            place %= len(data)
            return data[:place] + bytes((data[place] ^ 1 << chance.randrange(8),)) + data[place + 1 :]
        case 1:
            return data[:place] + chance.randbytes(chance.randrange(1, 9)) + data[place:]
        case 2:
            return data.decode(errors="replace").encode(chance.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return data[:place] + chance.choice(BYTES) + data[place:]
