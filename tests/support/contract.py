"""The contract of docs/protocol.md as checks, which use no code of the server but its error table."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ws_chat.protocol.errors import CODES

ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
EPOCH = re.compile(r"[A-Za-z0-9_]{1,32}\Z")
REFUSALS = {"invalid_request", "not_found", "id_conflict", "generation_gone", "too_many_generations", "overloaded"}
DELTA_FIELDS = {"content", "reasoning_content", "refusal", "tool_calls", "logprobs"}
"""The fields of the fake upstream's deltas."""


class ContractError(AssertionError):
    """The server broke the contract."""


def check(holds: object, what: str, *seen: object) -> None:
    """Raise ContractError unless this holds."""
    if not holds:
        raise ContractError(f"not so: {what}: " + " ".join(f"{value!r:.2000}" for value in seen))


def check_error(error: Any, status: int | None = None) -> None:
    """Check an error object, and that it came with its status."""
    keys = ["type", "code", "message", "param", "status", "retryable", "retry_after"]
    check(isinstance(error, dict) and list(error) == keys, "an error object has these keys", error)
    kind = CODES.get(error["code"])
    check(kind, "the code is one of the table", error)
    passed_on = error["code"] == "upstream_rejected" and 400 <= error["status"] < 500
    check(error["status"] == kind.status or passed_on, "the status follows the code", error)
    check((error["type"], error["retryable"]) == (kind.type, kind.retryable), "so do the others", error)
    check(isinstance(error["message"], str) and error["message"], "there is a message", error)
    check(error["param"] is None or isinstance(error["param"], str), "param is a name", error)
    after = error["retry_after"]
    check(after is None or (isinstance(after, int | float) and after >= 0), "retry_after is seconds", error)
    check(error["code"] != "internal_error", "nothing went wrong inside the server", error)
    check(status in (None, error["status"]), "it came with its status", error, status)


class Followed:
    """One reader's view of one generation: a start, tokens whose seq rises, one terminal frame."""

    def __init__(self, start: dict[str, Any]) -> None:
        check(list(start)[:4] == ["type", "id", "seq", "model"], "a start frame has these keys", start)
        check(list(start)[4:] in ([], ["epoch"]), "and that of a named generation one more", start)
        check(EPOCH.match(start.get("epoch", "x")), "an epoch has its characters", start)
        check(ID.match(start["id"]) and start["model"], "it names id and model", start)
        self.id = start["id"]
        self.seq = start["seq"]
        self.ended = False

    def take(self, frame: dict[str, Any]) -> None:
        """Check the next frame of this id."""
        check(not self.ended, "no frame follows the terminal frame", frame)
        check(list(frame)[:3] == ["type", "id", "seq"], "a frame starts with type, id and seq", frame)
        rest = {key: value for key, value in frame.items() if key not in ("type", "id", "seq")}
        match frame["type"]:
            case "token":
                check(frame["seq"] > self.seq, "seq rises", frame)
                check(
                    rest and rest.keys() <= DELTA_FIELDS and all(rest.values()), "no field is empty or unknown", frame
                )
                self.seq = frame["seq"]
                return
            case "done":
                check(list(rest) == ["status", "finish_reason", "model", "usage", "timing"], "these keys", frame)
                check(frame["status"] in ("completed", "cancelled"), "it completed or was cancelled", frame)
                check(frame["status"] == "cancelled" or frame["finish_reason"], "it has a reason", frame)
            case "error":
                check(list(rest) == ["error"], "only the error", frame)
                check_error(frame["error"])
                check(frame["error"]["code"] not in REFUSALS, "a refusal ends nothing", frame)
            case _:
                check(False, "a generation has these types of frames", frame)
        # A resume at exactly the end repeats the terminal frame.
        check(frame["seq"] in (self.seq, self.seq + 1), "the last seq counts the deltas", frame, self.seq)
        self.ended = True


def read_frame(text: str | bytes) -> dict[str, Any]:
    """Return a server's frame: one line of JSON, type first."""
    text = text.decode() if isinstance(text, bytes) else text
    frame = json.loads(text, parse_constant=lambda name: check(False, "JSON has no such number", name))
    check(isinstance(frame, dict) and next(iter(frame)) == "type" and "\n" not in text, "it is a frame", text)
    return frame


class Expected(NamedTuple):
    """The type of a client frame (None: invalid), its possible answers, and its id if that is valid.

    Answers are `start`, `pong`, None for no answer, and error codes.
    """

    kind: str | None
    answers: set[str | None]
    id: str | None = None
    after: int = 0


def expected(data: bytes) -> Expected:
    """Return how a client frame may be answered, whatever the state of the server."""
    try:
        value, doubts = _parsed(data)
    except (ValueError, RecursionError):
        return Expected(None, {"invalid_json"})
    except OverflowError:
        # A number by itself may be refused for being no object.
        return Expected(
            None, {"invalid_json"} if data.strip()[:1] in (b"{", b"[") else {"invalid_json", "invalid_request"}
        )
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        return Expected(None, {"invalid_request", *doubts})
    kind = value.get("type", "chat")
    allowed: dict[str, set[str | None]] = {
        "chat": {"start", *REFUSALS} - {"invalid_request", "generation_gone"},
        "resume": {"start", "not_found", "too_many_generations", "invalid_request", "generation_gone"},
        "cancel": {None, "not_found", "invalid_request"},
        "ping": {"pong"},
    }
    fine = isinstance(kind, str) and kind in allowed and (kind != "chat" or _is_chat(value))
    if kind in ("resume", "cancel", "chat"):
        fine = fine and ("id" in value or kind != "resume") and _is_id(value.get("id", "x"))
    after = value.get("after", 0) if kind == "resume" else 0
    if kind == "resume":
        epoch = value.get("epoch", "x")
        fine = fine and type(after) is int and after >= 0 and isinstance(epoch, str) and EPOCH.match(epoch) is not None
    given = value.get("id")
    answers = allowed[kind] if fine else {"invalid_request"}
    given_id = given if _is_id(given) else None
    return Expected(kind if fine else None, answers | doubts, given_id, after if fine else 0)


def _parsed(data: bytes) -> tuple[Any, set[str]]:
    """Decode JSON; return it with the codes that may refuse it: deep nesting and long numbers are accepted or refused."""
    doubts = set()

    def number(digits: str) -> int | float:
        if len(digits) > 300:
            doubts.add("invalid_json")
            return int(digits[:300])
        return int(digits)

    def fraction(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise OverflowError
        return value

    def constant(name: str) -> Any:
        raise ValueError(name)

    value = json.loads(data.decode(), parse_int=number, parse_float=fraction, parse_constant=constant)
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    hidden = b"\\ud" in data.lower()  # a lone surrogate under a key that is given twice
    if hidden or data.count(b"[") + data.count(b"{") > 100:
        doubts.add("invalid_json")
    return value, doubts


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and ID.match(value) is not None


def _is_chat(value: dict[str, Any]) -> bool:
    messages, count, model = value.get("messages"), value.get("n"), value.get("model", "x")
    return (
        isinstance(messages, list)
        and len(messages) > 0
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages)
        and (isinstance(model, str) and 0 < len(model) <= 256)
        and value.get("stream", True) is True
        and (count is None or (type(count) in (int, float) and count <= 1))
        and _is_id(value.get("previous_id", "x"))
    )
