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


def substance(delta: Delta) -> Delta:
    """Return what of a delta is worth sending: no role, no null, nothing empty. `{}` means that it makes no frame."""
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
    joined = _Joined(deltas[0])
    count = 1
    for delta in deltas[1:]:
        if joined.size > MERGE_SIZE or not joined.add(delta):
            break
        count += 1
    return joined.result(), count


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


class _UnjoinableError(Exception):
    """Two values that cannot be told as one."""


class _Joined:
    """Deltas being joined. Text is collected and concatenated once, so that a long replay costs linear time."""

    def __init__(self, first: Delta) -> None:
        self._fields = dict(first)
        self._texts = {key: [value] for key, value in first.items() if isinstance(value, str)}
        self.size = _size(first)

    def add(self, delta: Delta) -> bool:
        """Join one more; False, with nothing changed, when that cannot be done exactly."""
        texts = []
        others = {}
        try:
            for key, value in delta.items():
                if key not in self._fields:
                    others[key] = value
                elif isinstance(value, str) and key in self._texts:
                    texts.append((key, value))
                elif key == "tool_calls":
                    others[key] = _join_calls(self._fields[key], value)
                else:
                    others[key] = _join(self._fields[key], value)
        except _UnjoinableError:
            return False
        self.size += _size(delta)
        for key, value in texts:
            self._texts[key].append(value)
        for key, value in others.items():
            if isinstance(value, str):
                self._texts[key] = [value]
            self._fields[key] = value
        return True

    def result(self) -> Delta:
        for key, parts in self._texts.items():
            self._fields[key] = "".join(parts)
        return self._fields


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values())) + 8 * len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8


def _join(old: Any, new: Any) -> Any:
    if new is None:
        return old
    if old is None:
        return new
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _join(old[key], value) if key in old else value for key, value in new.items()}}
    if old == new and type(old) is type(new):
        return old
    raise _UnjoinableError


def _join_calls(old: Any, new: Any) -> Any:
    """Join two lists of tool call pieces by their `index`; a piece without one only ever stands for itself."""
    if not (isinstance(old, list) and isinstance(new, list)):
        raise _UnjoinableError
    calls = list(old)
    places = {call["index"]: place for place, call in enumerate(calls) if _index(call) is not None}
    for piece in new:
        index = _index(piece)
        if index in places:
            calls[places[index]] = _join_call(calls[places[index]], piece)
        else:
            if index is not None:
                places[index] = len(calls)
            calls.append(piece)
    return calls


def _index(call: Any) -> int | None:
    index = call.get("index") if isinstance(call, dict) else None
    return index if type(index) is int else None


def _join_call(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    joined = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if key in _CALL_CONSTANTS:
            # Another id under the same index is another call: only separate frames keep the two apart.
            if value and before != value:
                raise _UnjoinableError
        elif isinstance(before, dict) and isinstance(value, dict):
            joined[key] = _join_call(before, value)
        else:
            joined[key] = _join(before, value)
    return joined
