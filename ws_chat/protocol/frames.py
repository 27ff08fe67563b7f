"""The wire: what clients may say, what the server says, and how each becomes bytes (docs/protocol.md).

A frame is one JSON object. Client frames are decoded and checked here, so that everything behind works on values that
are known to be right; server frames are encoded here for both doors. Knows no connection, no upstream, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

import msgspec
from pydantic_core import from_json

from ws_chat.protocol.errors import ChatError, ErrorInfo
from ws_chat.protocol.types import ID_PATTERN, MAX_MODEL, Id, Model, Seq, Timing

if TYPE_CHECKING:
    from collections.abc import Callable

_ID: Final = re.compile(ID_PATTERN + r"\Z")


# Client frames


@dataclass(frozen=True, slots=True)
class Chat:
    """Start a generation. `body` is the chat-completions request as the client gave it (`messages` and parameters)."""

    type: ClassVar[str] = "chat"
    body: Mapping[str, Any]
    model: Model | None = None
    id: Id | None = None
    previous_id: Id | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a generation: `id`, or the only one of the connection."""

    type: ClassVar[str] = "cancel"
    id: Id | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Follow a named generation from after the seq `after`."""

    type: ClassVar[str] = "resume"
    id: Id
    after: Seq = 0


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a pong, where a client cannot send a ping of the WebSocket protocol."""

    type: ClassVar[str] = "ping"


ClientFrame: TypeAlias = Chat | Cancel | Resume | Ping


class InvalidFrameError(ChatError):
    """A client frame that was refused; `id` is the one it carried, when that was a valid one."""

    id: str | None = None


def decode(data: str | bytes) -> ClientFrame:
    """Read one client frame: a JSON object, or a bare message list. Of a key given twice, the last counts.

    Raises InvalidFrameError (`invalid_json` or `invalid_request`).
    """
    try:
        if isinstance(data, str):
            data = data.encode()
        value = from_json(data, allow_inf_nan=False)  # bounds the nesting
    except ValueError as error:
        raise InvalidFrameError("invalid_json", f"This is not JSON: {error}.") from None
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise InvalidFrameError("invalid_request", "A frame is a JSON object or a list of messages.")
    try:
        _check_numbers(data)
        return _client_frame(value)
    except InvalidFrameError as error:
        error.id = _valid_id(value.get("id"))
        raise


def _check_numbers(data: bytes) -> None:
    """Refuse a number that overflows: from_json makes Infinity of it, which is no JSON."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        raise InvalidFrameError("invalid_json", "A number is too large to be passed on as JSON.") from None


def _client_frame(value: dict[str, Any]) -> ClientFrame:
    match value.get("type", "chat"):
        case "chat":
            return _chat(value)
        case "cancel":
            return Cancel(_id(value, "id") if "id" in value else None)
        case "resume":
            return Resume(_id(value, "id"), _after(value))
        case "ping":
            return Ping()
    raise InvalidFrameError("invalid_request", '"type" is one of "chat", "cancel", "resume" and "ping".', param="type")


def _chat(value: dict[str, Any]) -> Chat:
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidFrameError("invalid_request", '"messages" is a list of at least one message.', param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidFrameError(
                "invalid_request",
                f'messages[{place}] is not an object with a string "role".',
                param="messages",
            )
    model = value.get("model")
    if "model" in value and not (isinstance(model, str) and 0 < len(model) <= MAX_MODEL):
        raise InvalidFrameError(
            "invalid_request", f'"model" is the name of a model: 1 to {MAX_MODEL} characters.', param="model"
        )
    if value.get("stream", True) is not True:
        raise InvalidFrameError(
            "invalid_request", 'Answers are always streamed: "stream" is true or left out.', param="stream"
        )
    choices = value.get("n")
    if isinstance(choices, int | float) and choices > 1:
        raise InvalidFrameError("invalid_request", 'One answer a request: "n" is 1 or left out.', param="n")
    return Chat(
        body={key: given for key, given in value.items() if key not in _OURS},
        model=model,
        id=_id(value, "id") if "id" in value else None,
        previous_id=_id(value, "previous_id") if "previous_id" in value else None,
    )


_OURS: Final = frozenset({"type", "id", "previous_id", "model", "stream"})


def _id(value: dict[str, Any], key: str) -> str:
    valid = _valid_id(value.get(key))
    if valid is None:
        raise InvalidFrameError("invalid_request", f'"{key}" is 1 to 128 characters of A-Z a-z 0-9 . _ : -', param=key)
    return valid


def _valid_id(value: Any) -> str | None:
    return value if isinstance(value, str) and _ID.match(value) else None


def _after(value: dict[str, Any]) -> int:
    after = value.get("after", 0)
    if type(after) is not int or after < 0:
        raise InvalidFrameError("invalid_request", '"after" is a seq: a whole number from 0.', param="after")
    return after


# Server frames


@dataclass(frozen=True, slots=True)
class Start:
    """A chat or resume was accepted; the frames that follow come after `seq`."""

    type: ClassVar[str] = "start"
    id: Id
    seq: Seq
    model: str

    def as_dict(self) -> dict[str, Any]:
        return {"type": "start", "id": self.id, "seq": self.seq, "model": self.model}


Token: TypeAlias = dict[str, Any]
"""All deltas after the previous frame's seq, up to and including `seq`, joined: the JSON object itself (`type`, `id`,
`seq`, and the fields of the delta), because it is made once a token. `shapes.TokenFrame` is its type."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation that completed or was cancelled. `finish_reason` and `usage` are the upstream's."""

    type: ClassVar[str] = "done"
    id: Id
    seq: Seq
    status: Literal["completed", "cancelled"]
    finish_reason: str | None
    model: str
    usage: Mapping[str, Any] | None
    timing: Timing

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "done",
            "id": self.id,
            "seq": self.seq,
            "status": self.status,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "usage": self.usage,
            "timing": self.timing,
        }


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a generation that failed."""

    type: ClassVar[str] = "error"
    id: Id
    seq: Seq
    error: ErrorInfo

    def as_dict(self) -> dict[str, Any]:
        return {"type": "error", "id": self.id, "seq": self.seq, "error": self.error.as_dict()}


@dataclass(frozen=True, slots=True)
class Refused:
    """A client frame was refused and nothing else changed."""

    type: ClassVar[str] = "error"
    error: ErrorInfo
    id: Id | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"type": "error", **({"id": self.id} if self.id else {}), "error": self.error.as_dict()}


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    type: ClassVar[str] = "pong"

    def as_dict(self) -> dict[str, Any]:
        return {"type": "pong"}


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server is about to stop: what runs may end in the milliseconds that are left, all else goes elsewhere."""

    type: ClassVar[str] = "goaway"
    deadline_ms: int

    def as_dict(self) -> dict[str, Any]:
        return {"type": "goaway", "deadline_ms": self.deadline_ms}


Terminal: TypeAlias = Done | Failed
ServerFrame: TypeAlias = Start | Done | Failed | Refused | Pong | GoAway
"""Any frame but a token."""


def encode(frame: ServerFrame) -> bytes:
    """Return a frame as single-line JSON in UTF-8, `type` first."""
    return encode_token(frame.as_dict())


encode_token: Final[Callable[[Token], bytes]] = msgspec.json.Encoder().encode
"""Return a token frame as single-line JSON in UTF-8."""
