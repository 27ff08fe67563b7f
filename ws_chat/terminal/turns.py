"""A conversation: who said what, and how to ask the next thing so that a turn costs the new message only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ws_chat.client.errors import NotFoundError

if TYPE_CHECKING:
    from ws_chat.client.chat import Chat
    from ws_chat.client.reply import Reply


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `id` is what the server can go on from, None where it cannot."""

    question: str
    answer: str
    id: str | None
    model: str | None


class Conversation:
    """The turns so far, with the system message that stands before them and the model for the next one."""

    def __init__(self, *, system: str | None = None, model: str | None = None) -> None:
        self.turns: list[Turn] = []
        self._system = system
        self._model = model
        self._unanswered: str | None = None

    @property
    def system(self) -> str | None:
        """The system message. With another one, the server is sent all anew."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._system = text
        self._begin_anew()

    @property
    def model(self) -> str | None:
        """The model; None: the server's own choice."""
        return self._model

    @model.setter
    def model(self, name: str | None) -> None:
        self._model = name
        if name is None:
            self._begin_anew()  # what goes on from an answer would inherit its model

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """Return all of it as a message list, with a question after it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def ask(self, chat: Chat, question: str, *, whole: bool = False) -> Reply:
        """Ask the next question; `whole`: of a server that has forgotten the rest. Raises ValueError for half text."""
        previous = None if whole or not self.turns else self.turns[-1].id
        messages = self.messages(question) if previous is None else [{"role": "user", "content": question}]
        return chat.ask(messages, model=self.model, previous=previous)

    def hear(self, question: str, reply: Reply) -> None:
        """Take what came of a question. One that failed with no word said is no part of the conversation."""
        self._unanswered = None
        if reply.status == "failed" and not reply.text:
            self._unanswered = question
            return
        known = reply.model is not None and not reply.tool_calls  # after a tool call, upstreams want its result first
        self.turns.append(Turn(question, reply.text or reply.refusal, reply.id if known else None, reply.model))

    def take_back(self) -> str | None:
        """Forget the last question, and return it; None when there is none."""
        question, self._unanswered = self._unanswered, None
        if question is None and self.turns:
            question = self.turns.pop().question
        return question

    def clear(self) -> None:
        """Forget all turns."""
        self.turns.clear()
        self._unanswered = None

    def _begin_anew(self) -> None:
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], id=None)


def is_forgotten(error: BaseException) -> bool:
    """Whether the server no longer knows what a question goes on from."""
    return isinstance(error, NotFoundError) and error.param == "previous_id"
