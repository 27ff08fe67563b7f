"""What the client sends, checked and encoded when it is asked for: a mistake in a call is told where it is made."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""Chat messages, or the text of one message of the user."""

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_GIVEN_OTHERWISE: Final = {"id": "request_id", "previous_id": "previous", "type": None}


def encode(frame: Mapping[str, Any]) -> str:
    """Return a frame as JSON. Raises TypeError or ValueError for what is no JSON: NaN, lone surrogates, objects."""
    try:
        text = json.dumps(frame, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise ValueError("This is nested too deeply to be sent.") from None
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise ValueError(f"A text holds half of a character, {surrogate!a}, which cannot be sent.") from None
    return text


def is_same(one: str, other: str) -> bool:
    """Whether two encoded frames say the same, in whatever order."""
    return one == other or _ordered(one) == _ordered(other)


def _ordered(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def valid_id(given: str | uuid.UUID | None) -> str:
    """Return the id of a request as text; None: a new one. Raises TypeError, ValueError."""
    if given is None or isinstance(given, uuid.UUID):
        return str(given or uuid.uuid4())
    if not isinstance(given, str):
        raise TypeError(f"An id is text or a UUID, not {type(given).__name__}.")
    if not _ID.match(given):
        raise ValueError(f"An id is 1 to 128 characters of A-Z a-z 0-9 . _ : - and not {given!a}.")
    return given


def asking(
    messages: Messages, request_id: str, *, model: str | None, previous_id: str | None, parameters: Mapping[str, Any]
) -> str:
    """Return the frame that asks for an answer, encoded. Raises TypeError, ValueError."""
    for name, instead in _GIVEN_OTHERWISE.items():
        if name in parameters:
            hint = f"; it is given as {instead}" if instead else ""
            raise TypeError(f"{name} is no parameter of a chat-completions request{hint}.")
    request = {"messages": _messages(messages), "id": request_id, **parameters}
    if model is not None:
        request["model"] = model
    if previous_id is not None:
        request["previous_id"] = previous_id
    return encode(request)


def resuming(request_id: str, after: int) -> str:
    """Return the frame that asks for what comes after a seq, encoded."""
    return encode({"type": "resume", "id": request_id, "after": after})


def cancelling(request_id: str) -> str:
    """Return the frame that asks for the end of an answer, encoded."""
    return encode({"type": "cancel", "id": request_id})


PING: Final = encode({"type": "ping"})


def _messages(given: Messages) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"Messages are text or a list of messages, not {type(given).__name__}.")
    messages = list(given)
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{place}] is not a mapping but {type(message).__name__}.")
    return [dict(message) for message in messages]
