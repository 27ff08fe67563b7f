"""A conversation: its turns, the next question (of which only the new message is sent if possible), and its file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ws_chat.client import Chat, Reply


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `id` is the generation that the server can continue from, None where it cannot."""

    question: str
    answer: str
    id: str | None
    model: str | None


class Conversation:
    """The turns so far, the system message before them, and the model for the next one."""

    def __init__(self, *, system: str | None = None, model: str | None = None) -> None:
        self.turns: list[Turn] = []
        self._system = system
        self._model = model
        self._unanswered: str | None = None

    @property
    def system(self) -> str | None:
        """The system message. After a change, the next question sends the whole conversation."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._system = text
        self._send_all_next()

    @property
    def model(self) -> str | None:
        """The model; None is the server's default."""
        return self._model

    @model.setter
    def model(self, name: str | None) -> None:
        self._model = name
        if name is None:
            self._send_all_next()  # a request with `previous_id` inherits the model

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """Return the conversation as a message list, with a question at the end."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def ask(self, chat: Chat, question: str, *, whole: bool = False) -> Reply:
        """Ask the next question; `whole` sends the whole conversation. Raises ValueError for lone surrogates."""
        previous = None if whole or not self.turns else self.turns[-1].id
        messages = self.messages(question) if previous is None else [{"role": "user", "content": question}]
        return chat.ask(messages, model=self.model, previous=previous)

    def record(self, question: str, reply: Reply) -> None:
        """Add the turn of an answer that has ended. One that failed without any text is not added."""
        self._unanswered = None
        if reply.status == "failed" and not reply.text:
            self._unanswered = question
            return
        # Without a model the server has not accepted it. After a tool call, upstreams require the tool's result first.
        known = reply.model is not None and not reply.tool_calls
        self.turns.append(Turn(question, reply.text or reply.refusal, reply.id if known else None, reply.model))

    def pop_question(self) -> str | None:
        """Remove the last question with its turn, and return it; None when there is none."""
        question, self._unanswered = self._unanswered, None
        if question is None and self.turns:
            question = self.turns.pop().question
        return question

    def clear(self) -> None:
        self.turns.clear()
        self._unanswered = None

    def save(self, name: str, *, last: Path | None) -> Path:
        """Write the conversation to a file: a message list if the name ends in .json, else Markdown. Return its path.

        Without a name, the file is `last` or a new one. An existing file is overwritten only if it is `last`. Raises
        OSError.
        """
        path = last if last and not name else Path(name or time.strftime("chat-%Y%m%d-%H%M%S.md"))
        path = path.expanduser().absolute()
        content = self._json() if path.suffix == ".json" else self._markdown()
        with path.open("w" if path == last else "x", encoding="utf-8", errors="replace") as file:
            file.write(content)
        return path

    def _json(self) -> str:
        return json.dumps(self.messages(), ensure_ascii=False, indent=2) + "\n"

    def _markdown(self) -> str:
        parts = [f"## System\n\n{self.system}"] if self.system else []
        for turn in self.turns:
            parts.append(f"## You\n\n{turn.question}")
            parts.append(f"## {turn.model or 'Assistant'}\n\n{turn.answer.rstrip()}")
        return "\n\n".join(parts) + "\n"

    def _send_all_next(self) -> None:
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], id=None)
