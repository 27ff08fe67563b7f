"""The frames that the client sends, checked and encoded in the caller's own call, so that a mistake raises there."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ws_chat.protocol.types import EPOCH_PATTERN, ID_PATTERN

Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""Chat messages, or the text of one message of the user."""

_ARGUMENTS: Final = {"id": "request_id", "previous_id": "previous", "type": None}
"""Fields of the frame that are not chat-completions parameters, and the arguments that set them."""


def chat_frame(
    messages: Messages, request_id: str, *, model: str | None, previous_id: str | None, parameters: Mapping[str, Any]
) -> str:
    """Return an encoded chat frame. Raises TypeError, ValueError."""
    for name, argument in _ARGUMENTS.items():
        if name in parameters:
            hint = f"; use {argument}=" if argument else ""
            raise TypeError(f"{name} is not a chat-completions parameter{hint}")
    request = {"messages": _message_list(messages), "id": request_id, **parameters}
    if model is not None:
        request["model"] = model
    if previous_id is not None:
        request["previous_id"] = previous_id
    return _encode(request)


def resume_frame(request_id: str, after: int, epoch: str | None) -> str:
    frame = {"type": "resume", "id": request_id, "after": after}
    return _encode({**frame, "epoch": epoch} if epoch else frame)


def cancel_frame(request_id: str) -> str:
    return _encode({"type": "cancel", "id": request_id})


def ping_frame(request_id: str) -> str:
    return _encode({"type": "ping", "id": request_id})


def same_request(one: str, other: str) -> bool:
    """Whether two encoded frames are equal as JSON values. (For Python's `==`, true is 1.)"""
    return one == other or _sorted(one) == _sorted(other)


def _sorted(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def valid_id(given: str | uuid.UUID | None) -> str:
    """Return an id as text; a new UUID for None. Raises TypeError, ValueError."""
    if given is None or isinstance(given, uuid.UUID):
        return str(given or uuid.uuid4())
    if not isinstance(given, str):
        raise TypeError(f"an id must be a str or a UUID, got {type(given).__name__}")
    if not re.fullmatch(ID_PATTERN, given):
        raise ValueError(f"an id must be 1 to 128 characters of A-Z a-z 0-9 . _ : - , got {given!a}")
    return given


def valid_epoch(given: str | None) -> str | None:
    """Return an epoch as it is. Raises TypeError, ValueError."""
    if given is not None and not isinstance(given, str):
        raise TypeError(f"an epoch must be a str, got {type(given).__name__}")
    if given is not None and not re.fullmatch(EPOCH_PATTERN, given):
        raise ValueError(f"an epoch must be 1 to 32 characters of A-Z a-z 0-9 _ , got {given!a}")
    return given


def _encode(frame: Mapping[str, Any]) -> str:
    """Encode a frame. Raises TypeError or ValueError for values that are not JSON: NaN, lone surrogates, objects."""
    try:
        text = json.dumps(frame, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"the request contains a lone surrogate, {error.object[error.start]!a}") from None
    return text


def _message_list(given: Messages) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"messages must be a str or a list of messages, got {type(given).__name__}")
    messages = list(given)
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{place}] must be a mapping, got {type(message).__name__}")
    return [dict(message) for message in messages]
