"""The line editor with its history, and the commands, which start with a slash."""

from __future__ import annotations

import difflib
import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, ThreadedCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from ws_chat.terminal.state import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyPressEvent

_COMMAND: Final = re.compile(r"/([A-Za-z]*)(?:\s+(.*))?\s*\Z", re.DOTALL)  # /usr/bin is none


class Command(NamedTuple):
    """A command, its argument, and its help text."""

    name: str
    argument: str
    help: str


COMMANDS: Final = (
    Command("model", "NAME", "use another model; without a name: show it; - uses the server's default"),
    Command("models", "", "list the server's models; Tab completes them after /model"),
    Command("attach", "FILE", "send an image with the next question: a file or an https address"),
    Command("system", "TEXT", "set the system message; without a text: show it; - removes it"),
    Command("retry", "", "ask the last question again"),
    Command("new", "", "start a new conversation"),
    Command("save", "FILE", "write the conversation to a file: a message list if it ends in .json, else Markdown"),
    Command("stats", "", "show figures after each answer, or stop showing them"),
    Command("help", "", "show this"),
    Command("quit", "", "exit, as Ctrl-D does"),
)
KEYS: Final = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line; so does Enter after a \\"),
    ("Ctrl-C", "stop an answer; the conversation keeps what it has so far"),
    ("Up, Ctrl-R", "earlier questions, and searching them"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
)


class UnknownCommandError(ValueError):
    """There is no such command."""


def read_command(line: str) -> tuple[str, str] | None:
    """Return the name and the argument of a command; None for a message. Raises UnknownCommandError."""
    found = _COMMAND.match(line)
    if not found:
        return None
    name, argument = found[1].lower(), (found[2] or "").strip()
    name = "quit" if name == "exit" else name
    names = [command.name for command in COMMANDS]
    if name in names:
        return name, argument
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean /{near[0]}?" if near else "/help lists them."
    raise UnknownCommandError(
        f"Unknown command /{found[1]}: {hint} A message that starts with a slash needs a space before it."
    )


class Completions(Completer):
    """Completes commands, and models after `/model`. `models` is called when the first of those is wanted."""

    def __init__(self, models: Callable[[], Sequence[str]]) -> None:
        self._models = models
        self._names = [f"/{command.name}" for command in COMMANDS]

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        begun = text.removeprefix("/model ")
        for name in self._names if begun == text else self._models():
            if name.startswith(begun):
                yield Completion(name, -len(begun))


def line_editor(history: Path, models: Callable[[], Sequence[str]], *, dumb: bool) -> PromptSession[str]:
    """Return the editor for messages; on a `dumb` terminal it does not move the cursor.

    Its prompt raises KeyboardInterrupt at Ctrl-C, EOFError at Ctrl-D on an empty line.
    """
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return PromptSession(
        [("class:prompt", "› ")],
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        history=_history(history),
        completer=ThreadedCompleter(Completions(models)),  # the server is asked for its models
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_open_in_editor=True,
        enable_suspend=True,
        output=PlainTextOutput(sys.stdout) if dumb else None,
        style=Style.from_dict({"prompt": "ansicyan bold"}),
    )


def history_path() -> Path:
    return folder() / "history"


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()  # the home is read-only, or something else has the name
    return FileHistory(str(path))
