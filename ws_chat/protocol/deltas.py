"""Deltas: which of their fields are sent, and how neighbouring deltas are joined without loss.

A delta is the `delta` object of an OpenAI chat completion chunk (its streaming reference). It is kept as the bytes of its
JSON, and decoded (`Fields`) only where its fields matter. Text is joined by concatenation, lists by appending, tool calls
by their `index`. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Delta: TypeAlias = bytes
"""One JSON object in UTF-8 with at least one field, without whitespace between its tokens. It contains no line break."""
Fields: TypeAlias = dict[str, Any]
"""A decoded delta."""

MERGE_LIMIT: Final = 512
"""Deltas that are joined to one at most, so that a long replay does not become one huge frame."""
MERGE_SIZE: Final = 256 * 1024
"""Bytes above which nothing more is joined to a delta."""

# `role` is always the assistant's, and some servers repeat it in each delta; the others are a frame's own keys.
_NEVER_SENT: Final = frozenset({"role", "type", "id", "seq"})
_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
# Given once per tool call. Servers that repeat them send the same value again.
_CALL_CONSTANTS: Final = frozenset({"index", "id", "type", "name"})


class Outcome(msgspec.Struct):
    """What an upstream reports of its answer besides the deltas. None: not reported, or not yet."""

    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None


decode_delta: Final[Callable[[Delta], Fields]] = msgspec.json.Decoder(Fields).decode
_encode: Final = msgspec.json.Encoder().encode


def encode_delta(fields: Mapping[str, Any]) -> Delta:
    """Encode a delta without the role, null and empty fields. Returns no bytes if nothing is left: that is no delta."""
    left = {key: value for key, value in fields.items() if value not in _EMPTY and key not in _NEVER_SENT}
    return _encode(left) if left else b""


def merge(deltas: Sequence[Delta]) -> tuple[Delta, int]:
    """Join as many leading deltas as can be joined without loss, at most MERGE_LIMIT.

    Returns the joined delta and how many went into it (at least one; `deltas` must not be empty). It stops when the
    joined delta is larger than MERGE_SIZE, and before a delta whose fields cannot be joined exactly, such as another
    number under the same key. So joining the fields of all frames gives the same result at any pace.
    """
    deltas = leading(deltas)
    if len(deltas) == 1:
        return deltas[0], 1
    if text := _join_text(deltas):
        return text, len(deltas)
    joined = _Object(decode_delta(deltas[0]))
    count = 1
    for delta in deltas[1:]:
        fields = decode_delta(delta)
        if not joined.fits(fields):
            break
        joined.add(fields)
        count += 1
    return (_encode(joined.result()) if count > 1 else deltas[0]), count


def leading(deltas: Sequence[Delta]) -> Sequence[Delta]:
    """Return the leading deltas that may be joined: not more than MERGE_LIMIT, nor any after MERGE_SIZE bytes."""
    deltas = deltas[:MERGE_LIMIT]
    if sum(map(len, deltas)) <= MERGE_SIZE:
        return deltas
    size = 0
    for count, delta in enumerate(deltas):
        if size > MERGE_SIZE:
            return deltas[:count]
        size += len(delta)
    return deltas


def _join_text(deltas: Sequence[Delta]) -> Delta | None:
    """Join deltas with one text field, the same in all (nearly always), without decoding them; None for others.

    A quote inside of a text is escaped. So `","` in what follows the first text's opening quote belongs to a delta with
    another field, and a line break, which no delta contains, to a pair of deltas that do not have the same text field.
    """
    opening = deltas[0].find(b':"') + 2
    head = deltas[0][:opening]
    if head.count(b'"') != 3 or b"\\" in head:
        return None
    text = b"\n".join(deltas).replace(b'"}\n' + head, b"")
    if b"\n" in text or not text.endswith(b'"}') or b'","' in text[opening:-2]:
        return None
    return text


class _Text:
    """Text being joined: once, at the end, so that a long text takes linear time."""

    def __init__(self, text: str) -> None:
        self.parts = [text]


class _Object:
    """An object being joined from its pieces. A field that cannot be joined gets the later value."""

    kind = dict

    def __init__(self, first: dict[str, Any], constants: frozenset[str] = frozenset()) -> None:
        self._constants = constants
        self._fields: dict[str, Any] = {}
        self.add(first)

    def fits(self, piece: dict[str, Any]) -> bool:
        """Return whether a piece can be joined exactly."""
        for key, new in piece.items():
            old = self._fields.get(key)
            kind = type(old)
            if key in self._constants:
                fits = not new or old == new
            elif old is None or new is None or (kind is _Text and type(new) is str):
                continue
            elif kind is _Object or kind is ToolCalls:
                fits = type(new) is old.kind and old.fits(new)
            else:
                fits = type(new) is kind and (kind is list or old == new)
            if not fits:
                return False
        return True

    def add(self, piece: dict[str, Any]) -> None:
        fields = self._fields
        for key, value in piece.items():
            old = fields.get(key)
            kind = type(old)
            if old is None:
                fields[key] = self._start(key, value)
            elif value is None or (key in self._constants and not value):
                pass
            elif kind is _Text and type(value) is str:
                old.parts.append(value)
            elif kind is list and type(value) is list and key not in self._constants:
                old += value
            elif (kind is _Object or kind is ToolCalls) and type(value) is old.kind:
                old.add(value)
            else:
                fields[key] = self._start(key, value)

    def _start(self, key: str, value: Any) -> Any:
        if key in self._constants:
            return value
        kind = type(value)
        if kind is list:
            return ToolCalls(value, exact=True) if key == "tool_calls" else [*value]
        return _Text(value) if kind is str else _Object(value, self._constants) if kind is dict else value

    def result(self) -> dict[str, Any]:
        # A copy: the client without async reads while the thread of its event loop adds.
        return {key: _result(value) for key, value in list(self._fields.items())}

    def get(self, key: str) -> Any:
        return _result(self._fields.get(key))


def _result(value: Any) -> Any:
    match value:
        case _Text():
            return "".join(value.parts)
        case _Object() | ToolCalls():
            return value.result()
    return value


class ToolCalls:
    """Tool calls being joined from their pieces: those with the same `index`, until one comes with another `id`.

    A piece without an index is a call of its own. `exact` is for a frame, whose pieces readers join to earlier ones:
    only pieces that can be joined without loss are joined. Otherwise the calls are those of a whole message.
    """

    kind = list

    def __init__(self, pieces: Sequence[Any] = (), *, exact: bool = False) -> None:
        self._exact = exact
        self._calls: list[Any] = []
        self._open: dict[int | None, _Object] = {}  # by index: the last call that it started
        self.add(pieces)

    def fits(self, pieces: Sequence[Any]) -> bool:
        """Return whether no piece would start another call under an index that has one."""
        seen = set()
        for piece in pieces:
            index = _index(piece)
            if call := self._open.get(index):
                if index in seen or not call.fits(piece):
                    return False
                seen.add(index)
        return True

    def add(self, pieces: Sequence[Any]) -> None:
        """Add pieces; in a frame, those that fit."""
        started = set()
        for piece in pieces:
            index = _index(piece)
            call = self._open.get(index)
            if call and (index not in started if self._exact else _is_same(call, piece)):
                call.add(piece)
                continue
            self._calls.append(_Object(piece, _CALL_CONSTANTS) if isinstance(piece, dict) else piece)
            if index is not None:
                self._open[index] = self._calls[-1]
                started.add(index)

    def result(self) -> list[Any]:
        """Return the calls in the order in which they started; those of a message without empty fields."""
        if self._exact:
            return [call.result() if isinstance(call, _Object) else call for call in self._calls]
        return [_whole(call.result()) for call in self._calls if isinstance(call, _Object)]


def _is_same(call: _Object, piece: dict[str, Any]) -> bool:
    known, given = call.get("id"), piece.get("id")
    return not (known and given and known != given)


def _whole(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict) and function:
        named = {key: value for key, value in function.items() if value}
        call["function"] = {**named, "arguments": function.get("arguments") or ""}
    return {key: value for key, value in call.items() if value or key == "index"}


def _index(call: Any) -> int | None:
    index = call.get("index") if isinstance(call, dict) else None
    return index if type(index) is int else None
