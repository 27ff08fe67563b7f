"""The algebra of deltas: what an upstream says, what of it is worth a frame, and how neighbours become one.

A delta is the `delta` object of an OpenAI chat completion chunk (its streaming reference), as parsed JSON. Deltas are
only ever joined: text by concatenation, lists by appending, tool calls by their `index`. Pure functions over JSON
values; nothing here knows a frame, a log or a clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

Delta: TypeAlias = dict[str, Any]

MERGE_SIZE: Final = 256 * 1024
"""How large a joined delta may grow before it is left at that, in characters, more or less."""

# `role` is the same in every delta of an answer and some servers repeat it in each; the others are a frame's own keys.
_NEVER_SENT: Final = frozenset({"role", "type", "id", "seq"})
_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
# Given once per tool call. Servers that repeat them send the same value again.
_CALL_CONSTANTS: Final = frozenset({"index", "id", "type", "name"})


class Outcome(msgspec.Struct):
    """What an upstream says of its answer besides the deltas, as far as it has said it."""

    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None


def strip_empty(delta: Delta) -> Delta:
    """Remove what is never sent: the role, null and empty fields. `{}` makes no frame."""
    return {key: value for key, value in delta.items() if value not in _EMPTY and key not in _NEVER_SENT}


def merge(deltas: Sequence[Delta]) -> tuple[Delta, int]:
    """Join as many leading deltas as can be joined without loss.

    Returns the joined delta and how many went into it (at least one; `deltas` must not be empty). It stops when the
    joined delta is larger than MERGE_SIZE, and before a delta whose fields cannot be joined exactly, such as another
    number under the same key: whatever the pace of a reader, joining the fields of all its frames gives the same.
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
    """Return deltas that are all the same field of text, which nearly always they are, up to MERGE_SIZE."""
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
    """Text being joined. It is put together once, so that a long answer costs linear time."""

    def __init__(self, text: str) -> None:
        self.parts = [text]


class _Object:
    """An object being joined from its pieces; what cannot be joined is replaced by what comes later."""

    def __init__(self, first: dict[str, Any], constants: frozenset[str] = frozenset()) -> None:
        self._constants = constants
        self._fields: dict[str, Any] = {}
        self.add(first)

    def fits(self, piece: dict[str, Any]) -> bool:
        """Return whether a piece can be joined exactly."""
        return all(self._fits(key, value) for key, value in piece.items())

    def _fits(self, key: str, new: Any) -> bool:
        old = self._fields.get(key)
        if key in self._constants:
            return not new or old == new
        if old is None or new is None:
            return True
        match old:
            case _Text():
                return isinstance(new, str)
            case _Object():
                return isinstance(new, dict) and old.fits(new)
            case ToolCalls():
                return isinstance(new, list) and old.fits(new)
            case list():
                return isinstance(new, list)
        return bool(type(old) is type(new) and old == new)

    def add(self, piece: dict[str, Any]) -> None:
        for key, value in piece.items():
            match self._fields.get(key), value:
                case _Text() as old, str():
                    old.parts.append(value)
                case (_Object() as old, dict()) | (ToolCalls() as old, list()):
                    old.add(value)
                case list() as old, list():
                    old += value
                case old, _ if old is None or (value if key in self._constants else value is not None):
                    self._fields[key] = self._start(key, value)

    def _start(self, key: str, value: Any) -> Any:
        match value:
            case _ if key in self._constants:
                return value
            case str():
                return _Text(value)
            case dict():
                return _Object(value, self._constants)
            case list():
                return ToolCalls(value, exact=True) if key == "tool_calls" else [*value]
        return value

    def result(self) -> dict[str, Any]:
        return {key: _result(value) for key, value in self._fields.items()}

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

    A piece without an index only ever stands for itself. `exact` is for a frame, which readers join to those before it:
    there, only pieces that lose nothing by it are joined.
    """

    def __init__(self, pieces: Sequence[Any] = (), *, exact: bool = False) -> None:
        self._exact = exact
        self._calls: list[Any] = []
        self._open: dict[int, _Object] = {}  # by index: the last call that was started under it
        self.add(pieces)

    def fits(self, pieces: Sequence[Any]) -> bool:
        """Return whether no piece would start another call under an index that has one."""
        known = [(index, piece) for piece in pieces if (index := _index(piece)) in self._open]
        repeated = len({index for index, _ in known}) < len(known)
        return not repeated and all(self._open[index].fits(piece) for index, piece in known if index is not None)

    def add(self, pieces: Sequence[Any]) -> None:
        for piece in pieces:
            index = _index(piece)
            if index is None:
                self._calls.append(piece)
            elif (call := self._open.get(index)) and self._continues(call, piece):
                call.add(piece)
            else:
                self._open[index] = call = _Object(piece, _CALL_CONSTANTS)
                self._calls.append(call)

    def result(self) -> list[Any]:
        """Return the calls in the order in which they started, as far as they have come."""
        return [call.result() if isinstance(call, _Object) else call for call in self._calls]

    def _continues(self, call: _Object, piece: dict[str, Any]) -> bool:
        if self._exact:
            return call.fits(piece)
        known, given = call.get("id"), piece.get("id")
        return not (known and given and known != given)


def _index(call: Any) -> int | None:
    index = call.get("index") if isinstance(call, dict) else None
    return index if type(index) is int else None
