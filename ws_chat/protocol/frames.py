"""The wire: client frames and server frames, decoded and encoded (docs/protocol.md).

A frame is one JSON object, and one struct from which it is decoded, checked, encoded and described. The exception is the
token frame, whose JSON is put together from bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic_core import from_json

from ws_chat.protocol.deltas import Delta
from ws_chat.protocol.errors import ChatError, ErrorInfo
from ws_chat.protocol.types import EPOCH_PATTERN, ID_PATTERN, MAX_MODEL, Epoch, Id, Message, Model, Seq, Timing

DEEP: Final = 150
"""JSON with more opening brackets than this may be nested too deeply to be encoded again."""
MAX_VALUES: Final = 100_000
"""Values in the JSON of a request: its commas and opening brackets. Decoded, each takes a hundred bytes or more."""
DIGEST_SIZE: Final = 16


class Position(NamedTuple):
    """After the seq `seq` of the generation with this epoch; without an epoch, of whichever has the id now."""

    seq: int = 0
    epoch: str | None = None

    @classmethod
    def of(cls, event_id: str) -> Self:
        """Read an event id: `<seq>` or `<seq>-<epoch>`. Raises ChatError (`invalid_request`, param `after`)."""
        if not (found := _EVENT_ID.fullmatch(event_id)):
            raise ChatError("invalid_request", f'"after" must be {_EXPECTED["event id"]}.', param="after")
        return cls(int(found[1]), found[2])


FROM_START: Final = Position()


# Client frames


class ChatRequest(Struct, frozen=True):
    """Start a generation. Every other field is a parameter that reaches the upstream unchanged."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    type: Literal["chat"] = "chat"
    id: Id | UnsetType = UNSET
    previous_id: Id | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    stream: Annotated[bool, Meta(description="Answers are always streamed.", extra_json_schema={"const": True})] = True
    n: Annotated[float, Meta(le=1)] | None = None


class Cancel(Struct, frozen=True, tag_field="type", tag="cancel"):
    """Stop a generation: `id`, or the only one of the connection."""

    id: Id | UnsetType = UNSET


class Resume(Struct, frozen=True, tag_field="type", tag="resume"):
    """Follow a named generation from after the seq `after`."""

    id: Id
    after: Seq = 0
    epoch: Epoch | UnsetType = UNSET

    @property
    def position(self) -> Position:
        return Position(self.after, self.epoch or None)


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Request a pong, for clients that cannot send a ping of the WebSocket protocol.

    With an `id`, it is answered after the frames before it that have this id: a cancel before it was accepted, unless
    its refusal came first.
    """

    id: Id | UnsetType = UNSET


class Chat(Struct, frozen=True):
    """A ChatRequest as it is handled. `body` is the chat-completions request: `messages` and parameters, each as JSON."""

    body: Mapping[str, Raw]
    model: str | None = None
    id: str | None = None
    previous_id: str | None = None
    digest: bytes = b""
    """Of a named request: the same for requests that are equal as JSON values, `type` and `stream` left aside."""
    instructions: str | None = None
    """A system message in front of the whole conversation, which later generations do not inherit."""
    echo: bytes = b""
    """One JSON object that is stored with the request: what the Responses protocol repeats of it."""
    generate: bool = True
    """Whether the upstream is asked at all. If not, the answer is empty, and can be continued from."""

    @classmethod
    def of(cls, body: Mapping[str, Any], **names: Any) -> Self:
        """Encode `body`. `names`: `model`, `id` and `previous_id`."""
        # Encoded again, not cut out of the frame: an upstream must not find another value under a key that is given twice.
        chat = cls(encode_body(body), **names)
        if chat.id is None:
            return chat
        ours = {"model": chat.model, "previous_id": chat.previous_id}
        request = {**chat.body, **encode_body({key: value for key, value in ours.items() if value is not None})}
        return msgspec.structs.replace(chat, digest=_digest(_encode_json(request)))


def encode_body(body: Mapping[str, Any]) -> dict[str, Raw]:
    return {key: Raw(_encode_json(value)) for key, value in body.items()}


ClientFrame: TypeAlias = Chat | Cancel | Resume | Ping


class InvalidFrameError(ChatError):
    """A refused client frame. `id` is that of the frame, if it was valid."""

    id: str | None = None


def decode(data: str | bytes) -> ClientFrame:
    """Decode a client frame: a JSON object, or a bare message list. Of a key given twice, the last counts.

    Raises InvalidFrameError (`invalid_json` or `invalid_request`).
    """
    value = decode_json(data)
    del data  # a large one need not stay while its values are encoded again
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise InvalidFrameError("invalid_request", "A request must be a JSON object or a list of messages.")
    try:
        return _frame(value)
    except InvalidFrameError as error:
        error.id = _valid_id(value)
        raise


def _valid_id(value: Any) -> str | None:
    frame_id = value.get("id") if isinstance(value, dict) else None
    return frame_id if isinstance(frame_id, str) and _ID.fullmatch(frame_id) else None


def decode_json(data: str | bytes) -> Any:
    """Decode JSON that can be encoded again. Raises InvalidFrameError (`invalid_json`, `too_large`)."""
    try:
        if isinstance(data, str):
            data = data.encode()
        if has_too_many_values(data):
            raise InvalidFrameError("too_large", f"A request has at most {MAX_VALUES} JSON values.", limit="values")
        value = _decoder.decode(data)
        if len(data) > 2 * DEEP:
            check_depth(data)
    except RecursionError:
        raise InvalidFrameError("invalid_json", "This JSON is nested too deeply.") from None
    except ValueError as error:
        fault = str(error).removeprefix("JSON is malformed: ")
        refusal = InvalidFrameError("invalid_json", f"This is not valid JSON: {fault}.")
        with suppress(ValueError, TypeError, RecursionError):
            refusal.id = _valid_id(json.loads(data))  # it accepts NaN, numbers that overflow, and lone surrogates
        raise refusal from None
    return value


def has_too_many_values(data: bytes) -> bool:
    """Whether JSON has more than MAX_VALUES values. Does not decode them."""
    if len(data) <= MAX_VALUES or _openings(data) <= MAX_VALUES:
        return False
    # Only those outside of strings count. Without its escapes, every quote starts or ends a string.
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if data.count(b'"') > 4 * MAX_VALUES:  # more than a key and a string for each
        return True
    return _openings(b"".join(data.split(b'"')[::2])) > MAX_VALUES


def _openings(data: bytes) -> int:
    return len(data) - len(data.translate(None, b",[{"))


def _digest(request: bytes) -> bytes:
    return sha256(_encode_sorted(_with_whole_numbers.decode(request))).digest()[:DIGEST_SIZE]


def _number(literal: str) -> int | float:
    """Read a number with a fraction or an exponent: 1.0 is the same JSON value as 1."""
    value = float(literal)
    return int(value) if value.is_integer() else value


def check_depth(data: bytes) -> None:
    """Raise ValueError for JSON, of more than 2 * DEEP bytes, that may be nested too deeply to be encoded again."""
    if data.count(b"[") + data.count(b"{") > DEEP:
        from_json(data)  # refuses deep nesting


def _frame(value: dict[str, Any]) -> ClientFrame:
    kind = value.get("type", "chat")
    for field in ("id", "epoch" if kind == "resume" else "previous_id"):
        given = value.get(field)
        if isinstance(given, str) and given.endswith("\n"):  # in Python, the `$` of a pattern also matches before it
            raise _invalid(field)
    try:
        match kind:
            case "chat":
                return _chat(value)
            case "cancel":
                return msgspec.convert(value, Cancel)
            case "resume":
                return msgspec.convert(value, Resume)
            case "ping":
                return msgspec.convert(value, Ping)
    except msgspec.ValidationError as error:
        raise _invalid(*_place(str(error))) from None
    raise _invalid("type")


def _chat(value: dict[str, Any]) -> Chat:
    request = msgspec.convert(value, ChatRequest)
    if not request.stream:
        raise _invalid("stream")
    return Chat.of(
        {key: given for key, given in value.items() if key not in _OURS},
        model=request.model or None,
        id=request.id or None,
        previous_id=request.previous_id or None,
    )


def _place(fault: str) -> tuple[str, str]:
    """Return the field that a msgspec error is about, and the path to the fault in it."""
    what, _, path = fault.partition(" - at `$")
    path = path.strip(".`") or what.rpartition(" field ")[2].strip("`")
    return re.split(r"[.\[]", path, maxsplit=1)[0], path


def _invalid(field: str, path: str = "") -> InvalidFrameError:
    where = f"{path}: " if path not in ("", field) else ""
    return InvalidFrameError("invalid_request", f'{where}"{field}" must be {_EXPECTED[field]}.', param=field)


_decoder: Final = msgspec.json.Decoder()
_with_whole_numbers: Final = msgspec.json.Decoder(float_hook=_number)
_encode_json: Final = msgspec.json.Encoder().encode
_encode_sorted: Final = msgspec.json.Encoder(order="deterministic").encode
_ID: Final = re.compile(ID_PATTERN)
_EVENT_ID: Final = re.compile(f"0*([0-9]{{1,18}})(?:-({EPOCH_PATTERN}))?")
_OURS: Final = frozenset({"type", "id", "previous_id", "model", "stream"})
_ID_EXPECTED: Final = "1 to 128 characters of A-Z a-z 0-9 . _ : -"
_EXPECTED: Final = {
    "type": '"chat", "cancel", "resume" or "ping"',
    "messages": 'a list of at least one message, each an object with a string "role"',
    "id": _ID_EXPECTED,
    "previous_id": _ID_EXPECTED,
    "model": f"the name of a model, 1 to {MAX_MODEL} characters",
    "stream": "true or left out: answers are always streamed",
    "n": "null or a number up to 1: a request has one answer",
    "after": "a seq: a whole number from 0",
    "epoch": "the epoch of a start frame: 1 to 32 characters of A-Z a-z 0-9 _",
    "event id": "an event id: a seq (a whole number from 0), or <seq>-<epoch>",
}


# Server frames


class Start(Struct, frozen=True, tag_field="type", tag="start"):
    """A chat or resume was accepted; the following frames come after `seq`. A named generation has an epoch."""

    id: Id
    seq: Seq
    model: str
    epoch: Epoch | UnsetType = UNSET


class Token(Struct, gc=False):
    """All deltas after the previous frame's seq, up to and including `seq`, joined to `delta`.

    Its JSON has `type`, `id`, `seq`, and the fields of the delta; `types.TokenFrame` is its type. All readers at the same
    position share one Token, and what was made of it: its JSON, a `message` (WebSocket), an `event` and a `text` (SSE).
    """

    head: bytes  # of its JSON, up to the seq
    seq: Seq
    delta: Delta
    encoded: bytes | None = None
    message: bytes | None = None
    event: bytes | None = None
    text: bytes | None = None

    @classmethod
    def of(cls, generation_id: str, seq: int, delta: Delta) -> Self:
        return cls(token_head(generation_id), seq, delta)

    @property
    def json(self) -> bytes:
        if self.encoded is None:
            self.encoded = b"%b%d,%b" % (self.head, self.seq, self.delta[1:])
        return self.encoded


def token_head(generation_id: str) -> bytes:
    """Return the start of the JSON of a generation's tokens. No id contains a character that JSON escapes."""
    return b'{"type":"token","id":"%b","seq":' % generation_id.encode()


class Done(Struct, frozen=True, tag_field="type", tag="done"):
    """The end of a generation that completed or was cancelled. `finish_reason` and `usage` are the upstream's."""

    id: Id
    seq: Seq
    status: Literal["completed", "cancelled"]
    finish_reason: str | None
    model: str
    usage: Mapping[str, Any] | None
    timing: Timing


class Failed(Struct, frozen=True, tag_field="type", tag="error"):
    """The end of a generation that failed."""

    id: Id
    seq: Seq
    error: ErrorInfo


class Refused(Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """A client frame was refused, and nothing else changed."""

    id: Id | UnsetType = UNSET
    error: ErrorInfo


class Pong(Struct, frozen=True, tag_field="type", tag="pong"):
    """The answer to a ping, with its `id`."""

    id: Id | UnsetType = UNSET


class GoAway(Struct, frozen=True, tag_field="type", tag="goaway", omit_defaults=True):
    """The server is shutting down in `deadline_ms`: finish running answers here, send new requests elsewhere.

    With `move`, other replicas serve this server's named generations: resume them on a new connection now.
    """

    deadline_ms: int
    move: bool = False


Terminal: TypeAlias = Done | Failed
ServerFrame: TypeAlias = Start | Done | Failed | Refused | Pong | GoAway
"""Any frame but a token."""
Frame: TypeAlias = ServerFrame | Token

_encode: Final[Callable[[ServerFrame], bytes]] = msgspec.json.Encoder().encode


def encode(frame: Frame) -> bytes:
    """Encode a frame as single-line JSON in UTF-8, `type` first."""
    return frame.json if isinstance(frame, Token) else _encode(frame)
