"""A conversation: its turns, the next question (of which only the new message is sent if possible), and its file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ws_chat.client import Chat, Reply
    from ws_chat.client.reply import ReplyState


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `id` is the generation that the server can continue from, None where it cannot."""

    question: str
    answer: str
    id: str | None
    model: str | None
    images: tuple[dict[str, Any], ...] = ()


class Conversation:
    """The turns so far, the system message before them, and the model, parameters and images for the next one."""

    def __init__(
        self,
        *,
        system: str | None = None,
        model: str | None = None,
        parameters: dict[str, Any] | None = None,
        images: tuple[dict[str, Any], ...] = (),
    ) -> None:
        self.turns: list[Turn] = []
        self.parameters = parameters or {}
        self.images = images
        """For the next question."""
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

    def messages(self, question: str | None = None) -> list[dict[str, Any]]:
        """Return the conversation as a message list, with a question at the end."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append(_user(turn.question, turn.images))
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append(_user(question, self.images))
        return messages

    def dump(self) -> dict[str, Any]:
        """Return what `restore` needs to go on with this conversation in another run."""
        turns = [{"question": t.question, "answer": t.answer, "model": t.model, "images": t.images} for t in self.turns]
        return {"system": self.system, "model": self.model, "turns": turns}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on with what `dump` returned; a system message and a model of this run come first. Raises ValueError."""
        try:
            self.turns = [
                Turn(str(t["question"]), str(t["answer"]), None, t["model"], tuple(t["images"])) for t in kept["turns"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"The last conversation cannot be read: {error!r}.") from None
        self._system = self._system or kept.get("system")
        self._model = self._model or kept.get("model")

    def ask(self, chat: Chat, question: str, *, whole: bool = False) -> Reply:
        """Ask the next question; `whole` sends the whole conversation. Raises ValueError for lone surrogates."""
        previous = None if whole or not self.turns else self.turns[-1].id
        messages = self.messages(question) if previous is None else [_user(question, self.images)]
        return chat.ask(messages, model=self.model, previous=previous, **self.parameters)

    def record(self, question: str, reply: ReplyState) -> None:
        """Add the turn of an answer that has ended. One that failed without any text is not added."""
        self._unanswered = None
        images, self.images = self.images, ()
        if reply.status == "failed" and not reply.text:
            self.images = images
            self._unanswered = question
            return
        # Without a model the server has not accepted it. After a tool call, upstreams require the tool's result first.
        known = reply.model is not None and not reply.tool_calls
        answer = reply.text or reply.refusal
        self.turns.append(Turn(question, answer, reply.id if known else None, reply.model, images))

    def pop_question(self) -> str | None:
        """Remove the last question with its turn, and return it; None when there is none."""
        question, self._unanswered = self._unanswered, None
        if question is None and self.turns:
            last = self.turns.pop()
            question, self.images = last.question, last.images
        return question

    def clear(self) -> None:
        self.turns.clear()
        self._unanswered = None
        self.images = ()

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


def _user(question: str, images: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    content = [{"type": "text", "text": question}, *images] if images else question
    return {"role": "user", "content": content}
