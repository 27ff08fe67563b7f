"""The events of a response: a fold over the deltas of its log, one by one. Pure.

An event's `sequence_number` counts the events of the deltas as they were logged. So it is the same for every reader, on
every replica, at every pace: only neighbouring pieces of text may be joined, under the last number of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from ws_chat.protocol.deltas import MERGE_SIZE
from ws_chat.protocol.frames import Done
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
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Refusal,
    RefusalDelta,
    RefusalDone,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    Status,
    TextDelta,
    TextDone,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.server.responses.types import Echo, Part, ResponseEvent

_INCOMPLETE: Final = {
    "length": IncompleteDetails("max_output_tokens"),
    "content_filter": IncompleteDetails("content_filter"),
}
"""The finish_reasons of an answer that was cut short."""
_OPENING: Final = b'{"content":"'
_decode_text: Final = msgspec.json.Decoder(str).decode
_ERRORS: Final = {"upstream_rate_limited": "rate_limit_exceeded", "upstream_rejected": "invalid_prompt"}


@dataclass(slots=True)
class _Open:
    """The message or reasoning item that is open, and its last part."""

    item: OutputMessage | ReasoningItem
    output_index: int
    part: Part
    texts: list[str]
    """The pieces of the part's text, which are joined once."""
    before: bytes = b""
    """The JSON of a piece of an OutputText before its text, and after it."""
    after: bytes = b""


@dataclass(slots=True)
class _Call:
    """A tool call; it is open until the end of the answer."""

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
            **{name: getattr(echo, name) for name in echo.__struct_fields__},
        )
        self._custom = {tool["name"] for tool in echo.tools if tool["type"] == "custom"}
        self.number = -1
        """The `sequence_number` of the last event."""
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
        return [
            ResponseCreated(sequence_number=self._next(), response=self.response),
            ResponseInProgress(sequence_number=self._next(), response=self.response),
        ]

    def feed(self, delta: Mapping[str, Any]) -> list[Event]:
        """Return the events of the next delta."""
        events: list[Event] = []
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning and type(reasoning) is str:
            opened = self._text(events, ReasoningItem, ReasoningText, reasoning)
            events.append(ReasoningDelta(**self._place(opened), delta=reasoning))
        content = delta.get("content")
        if content and type(content) is str:
            opened = self._text(events, OutputMessage, OutputText, content)
            logprobs = _logprobs(delta["logprobs"]) if "logprobs" in delta else []
            cast("OutputText", opened.part).logprobs += logprobs
            events.append(TextDelta(**self._place(opened), delta=content, logprobs=logprobs))
        refusal = delta.get("refusal")
        if refusal and type(refusal) is str:
            opened = self._text(events, OutputMessage, Refusal, refusal)
            events.append(RefusalDelta(**self._place(opened), delta=refusal))
        calls = delta.get("tool_calls")
        if type(calls) is list:
            for piece in calls:
                if type(piece) is dict:
                    self._call(events, piece)
        return events

    def plain(self, delta: bytes) -> bytes | None:
        """Return the event of the next delta as JSON, if it is only a piece of the open text, as nearly all are.

        The event is the one of `feed`. None, and nothing happens, for other deltas.
        """
        opened = self._open
        # A quote inside of the text is escaped: `","` is before another field.
        if not (opened and opened.before and delta.startswith(_OPENING) and delta.endswith(b'"}')) or b'","' in delta:
            return None
        text = delta[len(_OPENING) - 1 : -1]
        opened.texts.append(_decode_text(text))
        self.number += 1
        return b"%b%b%b%d}" % (opened.before, text, opened.after, self.number)

    def end(self, terminal: Terminal) -> list[Event]:
        """Return the events of the terminal frame: what is open is closed, then the last one."""
        events: list[Event] = []
        if not isinstance(terminal, Done):
            self._close_all(events, "incomplete")
            error = ResponseError(_ERRORS.get(terminal.error.code, "server_error"), terminal.error.message)  # type: ignore[arg-type]
            response = self._ended("failed", error=error)
            events.append(ResponseFailed(sequence_number=self._next(), response=response))
        elif terminal.status == "completed" and terminal.finish_reason not in _INCOMPLETE:
            self._close_all(events, "completed")
            # The log's own time, so that it is the same in every replay.
            at = int(self.response.created_at + terminal.timing["total_ms"] / 1000)
            response = self._ended("completed", terminal, completed_at=at)
            events.append(ResponseCompleted(sequence_number=self._next(), response=response))
        else:
            self._close_all(events, "incomplete")
            if terminal.status == "cancelled":
                response = self._ended("cancelled", terminal)
            else:
                reason = _INCOMPLETE[terminal.finish_reason or ""]
                response = self._ended("incomplete", terminal, incomplete_details=reason)
            events.append(ResponseIncomplete(sequence_number=self._next(), response=response))
        return events

    def whole(self, terminal: Terminal) -> Response:
        """Return the response object of the end, instead of its events."""
        *_, last = self.end(terminal)
        return cast("ResponseEvent", last).response

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _place(self, opened: _Open) -> dict[str, Any]:
        return {
            "sequence_number": self._next(),
            "item_id": opened.item.id,
            "output_index": opened.output_index,
            "content_index": len(opened.item.content) - 1,
        }

    def _text(
        self, events: list[Event], kind: type[OutputMessage | ReasoningItem], part: type[Part], text: str
    ) -> _Open:
        """Return the open item with a part of this type, after adding `text` to it. Others are closed."""
        opened = self._open
        if opened and type(opened.part) is part:
            opened.texts.append(text)
            return opened
        if opened and type(opened.item) is kind:
            self._close_part(events, opened)
            opened.part, opened.texts = part(), [text]
        else:
            self._close_item(events)
            index = len(self._output)
            item = kind(f"{'msg' if kind is OutputMessage else 'rs'}_{self._digits}_{index}")
            self._output.append(item)
            # A copy, because the item changes until it is encoded.
            events.append(ItemAdded(sequence_number=self._next(), output_index=index, item=kind(item.id)))
            self._open = opened = _Open(item, index, part(), [text])
        opened.item.content.append(opened.part)  # type: ignore[arg-type]
        index = len(opened.item.content) - 1
        opened.before = opened.after = b""
        if part is OutputText:
            place = (opened.item.id.encode(), opened.output_index)
            opened.before = b'{"type":"response.output_text.delta","item_id":"%b","output_index":%d,"delta":' % place
            opened.after = b',"content_index":%d,"logprobs":[],"sequence_number":' % index
        events.append(PartAdded(**self._place(opened), part=part()))
        return opened

    def _close_part(self, events: list[Event], opened: _Open) -> None:
        part = opened.part
        text = "".join(opened.texts)
        match part:
            case OutputText():
                part.text = text
                events.append(TextDone(**self._place(opened), text=text, logprobs=part.logprobs))
            case Refusal():
                part.refusal = text
                events.append(RefusalDone(**self._place(opened), refusal=text))
            case ReasoningText():
                part.text = text
                events.append(ReasoningDone(**self._place(opened), text=text))
        events.append(PartDone(**self._place(opened), part=part))

    def _close_item(self, events: list[Event], status: Status = "completed") -> None:
        if opened := self._open:
            self._close_part(events, opened)
            self._open = None
            opened.item.status = status
            events.append(ItemDone(sequence_number=self._next(), output_index=opened.output_index, item=opened.item))

    def _call(self, events: list[Event], piece: Mapping[str, Any]) -> None:
        """Add a piece of a tool call to the open call with its index, or start a call."""
        function = piece.get("function")
        fields = function if type(function) is dict else {}
        index, call_id = piece.get("index"), _str(piece.get("id"))
        name, arguments = _str(fields.get("name")), _str(fields.get("arguments"))
        call = self._by_index.get(index) if type(index) is int else None
        if call is None or (call.given_id and call_id and call.given_id != call_id):
            self._close_item(events)
            call = self._start_call(events, index if type(index) is int else None, call_id, name)
        call.given_id = call.given_id or call_id
        call.item.name = call.item.name or name
        if not arguments:
            return
        call.pieces.append(arguments)
        if type(call.item) is FunctionCall:
            place: dict[str, Any] = {"item_id": call.item.id, "output_index": call.output_index}
            events.append(ArgumentsDelta(sequence_number=self._next(), delta=arguments, **place))

    def _start_call(self, events: list[Event], index: int | None, call_id: str, name: str) -> _Call:
        at = len(self._output)
        kind, prefix = (CustomToolCall, "ctc") if name in self._custom else (FunctionCall, "fc")
        known_id = call_id or f"call_{len(self._calls) if index is None else index}"
        item = kind(f"{prefix}_{self._digits}_{at}", known_id, name)
        call = _Call(item, at, call_id)
        self._output.append(item)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        added = kind(item.id, known_id, name)
        events.append(ItemAdded(sequence_number=self._next(), output_index=at, item=added))
        return call

    def _close_all(self, events: list[Event], status: Status) -> None:
        self._close_item(events, status)
        for call in self._calls:
            item, index, text = call.item, call.output_index, "".join(call.pieces)
            place: dict[str, Any] = {"item_id": item.id, "output_index": index}
            item.status = status
            if isinstance(item, FunctionCall):
                item.arguments = text
                events.append(ArgumentsDone(sequence_number=self._next(), arguments=text, **place))
            else:
                item.input = text = _custom_input(text)
                events.append(InputDelta(sequence_number=self._next(), delta=text, **place))
                events.append(InputDone(sequence_number=self._next(), input=text, **place))
            events.append(ItemDone(sequence_number=self._next(), output_index=index, item=item))

    def _ended(self, status: str, terminal: Done | None = None, **fields: Any) -> Response:
        if terminal:
            fields |= {"model": terminal.model, "usage": _usage(terminal.usage)}
        return msgspec.structs.replace(self.response, status=status, output=self._output, **fields)


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
