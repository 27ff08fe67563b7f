"""The events of a response: a fold over the deltas of its log, one by one. Pure.

An event's `sequence_number` counts the events of the deltas as they were logged. So it is the same for every reader, on
every replica, at every pace: only neighbouring pieces of text may be joined, under the last number of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from ws_chat.protocol.deltas import MERGE_SIZE, join_text
from ws_chat.protocol.frames import Done
from ws_chat.server.responses.kinds import REASONING, REFUSAL, TEXT, TextKind
from ws_chat.server.responses.types import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomToolCall,
    DeltaEvent,
    Event,
    FunctionCall,
    IncompleteDetails,
    InputDelta,
    InputDone,
    Item,
    ItemAdded,
    ItemDone,
    OutputMessage,
    OutputText,
    Part,
    PartAdded,
    PartDone,
    ReasoningItem,
    ReasoningText,
    Refusal,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    Status,
    TextDelta,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.server.responses.types import Echo, ResponseEvent

_INCOMPLETE: Final = {
    "length": IncompleteDetails("max_output_tokens"),
    "content_filter": IncompleteDetails("content_filter"),
}
"""The finish_reasons of an answer that was cut short."""
_ERRORS: Final = {"upstream_rate_limited": "rate_limit_exceeded", "upstream_rejected": "invalid_prompt"}
_encode: Final = msgspec.json.Encoder().encode
_decode_text: Final = msgspec.json.Decoder(str).decode


@dataclass(slots=True)
class _Open:
    """The open part of a message or reasoning item. The item is as it was added: without parts."""

    kind: TextKind
    item: OutputMessage | ReasoningItem
    output_index: int
    parts: list[Part]
    """The item's closed parts."""
    texts: list[str] = field(default_factory=list)
    """The pieces of the open part, which are joined once."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    json: tuple[bytes, bytes] | None = None
    """The JSON of a piece before and after its text, without the `sequence_number` at its end."""


@dataclass(slots=True)
class _Call:
    """A tool call; it is open until the end of the answer. The item is as it was added: without arguments."""

    item: FunctionCall | CustomToolCall
    output_index: int
    given_id: str
    pieces: list[str] = field(default_factory=list)


class Fold:
    """The events of one log, whose start frame is `start`, and whose request had the fields `echo`."""

    def __init__(self, start: Start, echo: Echo) -> None:
        self._digits = start.id.removeprefix("resp_")
        self.response = Response(  # without output, as long as it runs
            id=start.id,
            created_at=int(self._digits[:8], 16),
            model=start.model,
            **msgspec.structs.asdict(echo),
        )
        self._custom = {tool["name"] for tool in echo.tools if tool["type"] == "custom"}
        self.number = -1
        """The `sequence_number` of the last event."""
        self._events: list[Event] = []  # not yet returned
        self._output: list[Item] = []
        self._open: _Open | None = None
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    @property
    def began(self) -> bool:
        """Whether there was an event of a delta."""
        return bool(self._output)

    def start(self) -> list[Event]:
        """Return the events before the first delta."""
        self._emit(ResponseCreated, response=self.response)
        self._emit(ResponseInProgress, response=self.response)
        return self._emitted()

    def feed(self, delta: Mapping[str, Any]) -> list[Event]:
        """Return the events of the next delta."""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        for kind, text in ((REASONING, reasoning), (TEXT, delta.get("content")), (REFUSAL, delta.get("refusal"))):
            if text and type(text) is str:
                self._add_text(kind, text, delta)
        calls = delta.get("tool_calls")
        for piece in calls if type(calls) is list else ():
            if type(piece) is dict:
                self._add_call(piece)
        return self._emitted()

    def plain(self, deltas: Sequence[bytes]) -> bytes | None:
        """Return the joined event of the next deltas as JSON, if they are only pieces of the open text, as nearly all are.

        It is what `feed` and `join` make of them. None, and nothing happens, for other deltas.
        """
        opened = self._open
        if opened is None:
            return None
        delta = deltas[0] if len(deltas) == 1 else join_text(deltas)
        # A quote inside of the text is escaped: `","` is before another field.
        if delta is None or not (delta.startswith(opened.kind.openings) and delta.endswith(b'"}')) or b'","' in delta:
            return None
        text = delta[delta.index(b':"') + 1 : -1]
        opened.texts.append(_decode_text(text))
        self.number += len(deltas)
        if opened.json is None:
            empty = _encode(opened.kind.delta(**_place(opened), delta="", sequence_number=0))
            before, after = empty.split(b'""', 1)
            opened.json = before, after.removesuffix(b"0}")
        before, after = opened.json
        return b"%b%b%b%d}" % (before, text, after, self.number)

    def end(self, terminal: Terminal) -> list[Event]:
        """Return the events of the terminal frame: what is open is closed, then the last one."""
        event: type[ResponseEvent] = ResponseIncomplete
        fields: dict[str, Any]
        if not isinstance(terminal, Done):
            event = ResponseFailed
            error = ResponseError(_ERRORS.get(terminal.error.code, "server_error"), terminal.error.message)  # type: ignore[arg-type]
            fields = {"status": "failed", "error": error}
        elif terminal.status == "cancelled":
            fields = {"status": "cancelled"}
        elif details := _INCOMPLETE.get(terminal.finish_reason or ""):
            fields = {"status": "incomplete", "incomplete_details": details}
        else:
            event = ResponseCompleted
            # The log's own time, so that it is the same in every replay.
            at = int(self.response.created_at + terminal.timing["total_ms"] / 1000)
            fields = {"status": "completed", "completed_at": at}
        if isinstance(terminal, Done):
            fields |= {"model": terminal.model, "usage": _usage(terminal.usage)}
        status: Status = "completed" if event is ResponseCompleted else "incomplete"
        self._close_item(status)
        for call in self._calls:
            self._close_call(call, status)
        self._emit(event, response=msgspec.structs.replace(self.response, output=self._output, **fields))
        return self._emitted()

    def whole(self, terminal: Terminal) -> Response:
        """Return the response object of the end, instead of its events."""
        *_, last = self.end(terminal)
        return cast("ResponseEvent", last).response

    def _emit(self, event: type[Event], **fields: Any) -> None:
        self.number += 1
        self._events.append(event(sequence_number=self.number, **fields))

    def _emitted(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _add_item(self, item: Item) -> int:
        """Add an item to the output, and return its index."""
        index = len(self._output)
        self._output.append(item)
        self._emit(ItemAdded, output_index=index, item=item)
        return index

    def _item_id(self, prefix: str) -> str:
        """Return the id of the next item."""
        return f"{prefix}_{self._digits}_{len(self._output)}"

    def _end_item(self, index: int, item: Item) -> None:
        """Replace an item of the output by what it has become: events that are not yet encoded have the old one."""
        self._output[index] = item
        self._emit(ItemDone, output_index=index, item=item)

    def _add_text(self, kind: TextKind, text: str, delta: Mapping[str, Any]) -> None:
        opened = self._open
        if opened is None or opened.kind is not kind:
            opened = self._open_part(kind)
        opened.texts.append(text)
        more = {}
        if kind is TEXT:
            more["logprobs"] = logprobs = _logprobs(delta.get("logprobs"))
            opened.logprobs += logprobs
        self._emit(kind.delta, **_place(opened), delta=text, **more)

    def _open_part(self, kind: TextKind) -> _Open:
        """Open a part in the open item, or in a new one if that is of another type."""
        before = self._open
        if before and before.kind.item is kind.item:
            self._close_part(before)
            opened = _Open(kind, before.item, before.output_index, before.parts)
        else:
            self._close_item("completed")
            item = kind.item(self._item_id(kind.prefix))
            opened = _Open(kind, item, self._add_item(item), [])
        self._open = opened
        self._emit(PartAdded, **_place(opened), part=kind.part())
        return opened

    def _close_part(self, opened: _Open) -> None:
        kind, place, text = opened.kind, _place(opened), "".join(opened.texts)
        if kind is REFUSAL:
            part: Part = Refusal(text)
            self._emit(kind.done, **place, refusal=text)
        elif kind is TEXT:
            part = OutputText(text, logprobs=opened.logprobs)
            self._emit(kind.done, **place, text=text, logprobs=opened.logprobs)
        else:
            part = ReasoningText(text)
            self._emit(kind.done, **place, text=text)
        self._emit(PartDone, **place, part=part)
        opened.parts.append(part)

    def _close_item(self, status: Status) -> None:
        if opened := self._open:
            self._close_part(opened)
            self._open = None
            item = msgspec.structs.replace(opened.item, status=status, content=opened.parts)
            self._end_item(opened.output_index, item)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        """Add a piece of a tool call to the open call with its index, or start a call."""
        function = piece.get("function")
        fields = function if type(function) is dict else {}
        index = given if type(given := piece.get("index")) is int else None
        call_id, name, arguments = _str(piece.get("id")), _str(fields.get("name")), _str(fields.get("arguments"))
        call = None if index is None else self._by_index.get(index)
        if call is None or (call.given_id and call_id and call.given_id != call_id):
            self._close_item("completed")
            call = self._start_call(index, call_id, name)
        call.given_id = call.given_id or call_id
        if name and not call.item.name:
            call.item = msgspec.structs.replace(call.item, name=name)
        if not arguments:
            return
        call.pieces.append(arguments)
        if type(call.item) is FunctionCall:
            self._emit(ArgumentsDelta, item_id=call.item.id, output_index=call.output_index, delta=arguments)

    def _start_call(self, index: int | None, call_id: str, name: str) -> _Call:
        kind, prefix = (CustomToolCall, "ctc") if name in self._custom else (FunctionCall, "fc")
        known_id = call_id or f"call_{len(self._calls) if index is None else index}"
        item = kind(self._item_id(prefix), known_id, name)
        call = _Call(item, self._add_item(item), call_id)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call

    def _close_call(self, call: _Call, status: Status) -> None:
        item, text = call.item, "".join(call.pieces)
        place = {"item_id": item.id, "output_index": call.output_index}
        if isinstance(item, FunctionCall):
            self._emit(ArgumentsDone, **place, arguments=text)
            item = msgspec.structs.replace(item, status=status, arguments=text)
        else:
            text = _custom_input(text)
            self._emit(InputDelta, **place, delta=text)
            self._emit(InputDone, **place, input=text)
            item = msgspec.structs.replace(item, status=status, input=text)
        self._end_item(call.output_index, item)


def _place(opened: _Open) -> dict[str, Any]:
    return {"item_id": opened.item.id, "output_index": opened.output_index, "content_index": len(opened.parts)}


def join(events: Iterable[Event]) -> Iterator[Event]:
    """Join neighbouring pieces of one part's text, each time up to MERGE_SIZE characters."""
    run: list[DeltaEvent] = []
    size = 0
    for event in events:
        if run and not (type(event) is type(run[0]) and _part(event) == _part(run[0]) and size <= MERGE_SIZE):
            yield _joined(run)
            run, size = [], 0
        if isinstance(event, DeltaEvent):
            run.append(event)
            size += len(event.delta)
        else:
            yield event
    if run:
        yield _joined(run)


def _part(event: Any) -> tuple[str, int]:
    return event.item_id, getattr(event, "content_index", 0)


def _joined(run: list[DeltaEvent]) -> DeltaEvent:
    last = run[-1]
    if len(run) > 1:
        last.delta = "".join([event.delta for event in run])
        if isinstance(last, TextDelta):
            last.logprobs = [entry for event in run for entry in cast("TextDelta", event).logprobs]
    return last


def _logprobs(logprobs: Any) -> list[dict[str, Any]]:
    """Return the logprobs of a piece of content, with lists where chat completions have null."""
    content = logprobs.get("content") if type(logprobs) is dict else None
    found = []
    for entry in content if type(content) is list else ():
        if type(entry) is dict:
            top = [_entry(other) for other in entry.get("top_logprobs") or () if type(other) is dict]
            found.append({**_entry(entry), "top_logprobs": top})
    return found


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry.get("token", ""), "bytes": entry.get("bytes") or [], "logprob": entry.get("logprob", 0.0)}


def _custom_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of the function that stands for it."""
    try:
        value = msgspec.json.decode(arguments)
    except ValueError:
        return arguments
    if type(value) is dict and len(value) == 1 and type(text := value.get("input")) is str:
        return text
    return arguments


def _str(value: Any) -> str:
    return value if type(value) is str else ""


def _usage(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return an upstream's usage in the names of this protocol."""
    if not usage:
        return None

    def count(of: Any, name: str) -> int:
        value = of.get(name) if isinstance(of, dict) else None
        return value if type(value) is int else 0

    given, made = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": count(usage.get("prompt_tokens_details"), "cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": made,
        "output_tokens_details": {
            "reasoning_tokens": count(usage.get("completion_tokens_details"), "reasoning_tokens"),
        },
        "total_tokens": count(usage, "total_tokens") or given + made,
    }
