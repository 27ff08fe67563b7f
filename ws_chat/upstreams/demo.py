"""The built-in demo: answers without a key, a network or a model.

`demo` talks about the user's last message, and knows the answers to the examples of the web page. With the other models, developers of front ends can try tool calls, reasoning,
failures and silence.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ws_chat.protocol.errors import ChatError
from ws_chat.upstreams.demo_answers import known_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ws_chat.protocol.deltas import Fields, Outcome
    from ws_chat.upstreams.base import Emit


@dataclass(frozen=True, slots=True)
class _Behaviour:
    """How a demo model answers. `rate`: deltas per second, 0 for no pacing; `length`: deltas of an answer of numbers."""

    rate: float = 30.0
    reasons: bool = False
    calls_tools: bool = False
    length: int | None = None
    fails: bool = False
    breaks: bool = False
    falls_silent: bool = False


MODELS: Final = {
    "demo": _Behaviour(),
    "demo-fast": _Behaviour(rate=0),
    "demo-slow": _Behaviour(rate=3),
    "demo-long": _Behaviour(rate=200, length=2000),
    "demo-tools": _Behaviour(calls_tools=True),
    "demo-reasoning": _Behaviour(reasons=True),
    "demo-error": _Behaviour(fails=True),
    "demo-break": _Behaviour(breaks=True),
    "demo-silent": _Behaviour(falls_silent=True),
}
DELTAS_BEFORE_FAILURE: Final = 5
MAX_EXAMPLE: Final = 200
"""Characters of a question in which an example of the web page is looked for."""

_PIECE: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef]|\s*[^\s\u3040-\u30ff\u3400-\u9fff\uff00-\uffef]+|\s+"
)
_CALLS: Final = (("get_weather", {"city": "Kyoto", "unit": "celsius"}), ("get_time", {"zone": "Asia/Tokyo"}))


class DemoUpstream:
    """The built-in demo. `timeout`: seconds after which the silence of `demo-silent` ends with `upstream_timeout`."""

    def __init__(self, *, timeout: float = 120.0) -> None:
        self._timeout = timeout

    def resolve(self, model: str | None) -> str:
        """Return the demo model of that name, else `demo`."""
        return model if model in MODELS else "demo"

    async def models(self) -> list[str]:
        """Return the names of the demo models."""
        return list(MODELS)

    async def generate(self, request: Mapping[str, Any], emit: Emit, outcome: Outcome) -> None:
        """Answer the last message. Raises ChatError for the models that fail."""
        behaviour = MODELS[request["model"]]
        if behaviour.fails:
            raise ChatError("upstream_unavailable", "This is the demo model that always fails.")
        loop = asyncio.get_running_loop()
        pause = 1 / behaviour.rate if behaviour.rate else 0
        due = loop.time()
        count = 0
        last = request["messages"][-1]
        for delta in _answer(behaviour, last):
            if count == DELTAS_BEFORE_FAILURE and behaviour.breaks:
                return
            if count == DELTAS_BEFORE_FAILURE and behaviour.falls_silent:
                await asyncio.sleep(self._timeout)
                raise ChatError("upstream_timeout", "This is the demo model that falls silent.")
            due += pause
            await asyncio.sleep(due - loop.time())
            emit([delta])
            count += 1
        outcome.finish_reason = "tool_calls" if _calls_tools(behaviour, last) else "stop"
        # OpenAI's rule of thumb: four characters a token.
        prompt = 1 + sum(len(_text(message)) for message in request["messages"]) // 4
        outcome.usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

    async def close(self) -> None:
        """Do nothing: nothing is open."""


def _answer(behaviour: _Behaviour, last: Mapping[str, Any]) -> Iterator[Fields]:
    if behaviour.length:
        for number in range(1, behaviour.length + 1):
            yield {"content": f"{number}" + ("\n" if number % 20 == 0 else " ")}
        return
    if _calls_tools(behaviour, last):
        yield from _tool_calls()
        return
    if behaviour.reasons:
        for piece in _PIECE.findall("The user wants to see reasoning. So I think a little, aloud, and then I answer."):
            yield {"reasoning_content": piece}
    for piece in _PIECE.findall(_reply(last)):
        yield {"content": piece}


def _calls_tools(behaviour: _Behaviour, last: Mapping[str, Any]) -> bool:
    return behaviour.calls_tools and last["role"] != "tool"


def _tool_calls() -> Iterator[Fields]:
    """Yield two parallel calls in pieces, as OpenAI streams them: the head of each, then its arguments."""
    for index, (name, arguments) in enumerate(_CALLS):
        head = {"index": index, "id": f"call_demo_{index}", "type": "function"}
        yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
        for piece in re.findall(r".{1,8}", json.dumps(arguments)):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _reply(last: Mapping[str, Any]) -> str:
    text = _text(last).strip()
    if last["role"] == "user" and (known := known_answer(text[:MAX_EXAMPLE])):
        return known
    quoted = text if len(text) <= 200 else text[:200] + "…"
    echo = f"The tool says: {quoted}" if last["role"] == "tool" else f"You said: “{quoted}”"
    return (
        f"{echo}\n\n"
        f"That is {len(text)} character{'' if len(text) == 1 else 's'}. "
        "I am the built-in demo, so no model has seen them: これはデモの返事です 🎈\n"
        "Set OPENAI_API_KEY or OPENAI_BASE_URL, start the server again, and a real model answers here."
    )


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message: its content, or the text parts of that."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
