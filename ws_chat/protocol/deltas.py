"""Deltas: which of their fields are sent, and how neighbouring deltas are joined without loss.

A delta is the `delta` object of an OpenAI chat completion chunk (its streaming reference), as parsed JSON. Text is joined
by concatenation, lists by appending, tool calls by their `index`. Pure functions over JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

Delta: TypeAlias = dict[str, Any]

MERGE_SIZE: Final = 256 * 1024
"""Characters, roughly, above which nothing more is joined to a delta."""

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


def strip_empty(delta: Delta) -> Delta:
    """Return a delta without the role, null and empty fields. `{}` makes no frame."""
    return {key: value for key, value in delta.items() if value not in _EMPTY and key not in _NEVER_SENT}


def merge(deltas: Sequence[Delta]) -> tuple[Delta, int]:
    """Join as many leading deltas as can be joined without loss.

    Returns the joined delta and how many went into it (at least one; `deltas` must not be empty). It stops when the
    joined delta is larger than MERGE_SIZE, and before a delta whose fields cannot be joined exactly, such as another
    number under the same key. So joining the fields of all frames gives the same result at any pace.
    """
    if texts := _texts(deltas):
        key, parts = texts
        return {key: "".join(parts)}, len(parts)
    joined = _Object(deltas[0])
    size = _size(deltas[0])
    count = 1
    for delta in deltas[1:]:
        if size > MERGE_SIZE or not joined.fits(delta):
            break
        joined.add(delta)
        size += _size(delta)
        count += 1
    return (joined.result() if count > 1 else deltas[0]), count


def _texts(deltas: Sequence[Delta]) -> tuple[str, list[str]] | None:
    """Return the key and the texts of deltas with one text field, the same in all (nearly always), up to MERGE_SIZE."""
    key, *more = deltas[0]
    parts: list[str] = []
    size = 0
    if not more:
        for delta in deltas:
            text = delta.get(key)
            if type(text) is not str or len(delta) != 1 or size > MERGE_SIZE:
                break
            parts.append(text)
            size += len(text)
    return (key, parts) if len(parts) == len(deltas) or size > MERGE_SIZE else None


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values())) + 8 * len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8


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
