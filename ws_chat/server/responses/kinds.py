"""The kinds of text in a response, and the types that each becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ws_chat.server.responses.types import (
    OutputMessage,
    OutputText,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Refusal,
    RefusalDelta,
    RefusalDone,
    TextDelta,
    TextDone,
)

if TYPE_CHECKING:
    from ws_chat.server.responses.types import DeltaEvent, ItemEvent, Part


@dataclass(frozen=True, slots=True)
class TextKind:
    """A kind of text: the types that it becomes, and how a delta with nothing else begins."""

    item: type[OutputMessage | ReasoningItem]
    prefix: str
    part: type[Part]
    delta: type[DeltaEvent]
    done: type[ItemEvent]
    openings: tuple[bytes, ...]


REASONING: Final = TextKind(
    *(ReasoningItem, "rs", ReasoningText, ReasoningDelta, ReasoningDone),
    (b'{"reasoning_content":"', b'{"reasoning":"'),
)
TEXT: Final = TextKind(OutputMessage, "msg", OutputText, TextDelta, TextDone, (b'{"content":"',))
REFUSAL: Final = TextKind(OutputMessage, "msg", Refusal, RefusalDelta, RefusalDone, (b'{"refusal":"',))
