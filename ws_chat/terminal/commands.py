"""What begins with a slash: the commands of a chat, told from messages."""

from __future__ import annotations

import difflib
import re
from typing import Final, NamedTuple

_COMMAND: Final = re.compile(r"/([A-Za-z]*)(?:\s+(.*))?\s*\Z", re.DOTALL)  # and /usr/bin is none


class Command(NamedTuple):
    """A command, what may follow it, and what it does, for people."""

    name: str
    argument: str
    does: str


COMMANDS: Final = (
    Command("model", "NAME", "ask another model; without a name: tell which; - leaves the choice to the server"),
    Command("system", "TEXT", "put a system message first; without a text: show it; - takes it away"),
    Command("retry", "", "ask the last question again"),
    Command("new", "", "begin a new conversation"),
    Command("save", "FILE", "write the conversation to a file, as Markdown or, where it ends in .json, as messages"),
    Command("stats", "", "tell how fast each answer comes, or no longer"),
    Command("help", "", "show this"),
    Command("quit", "", "leave, as Ctrl-D does"),
)
KEYS: Final = (
    ("Enter", "sends"),
    ("Alt-Enter, Ctrl-J", "a new line; so does Enter after a \\"),
    ("Ctrl-C", "stops an answer; what it has said so far stays a part of the conversation"),
    ("Up, Ctrl-R", "what was asked before, and looking for it"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
)


class UnknownCommandError(ValueError):
    """There is no such command."""


def read_command(line: str) -> tuple[str, str] | None:
    """Return the name and the argument of a command; None: it is a message. Raises UnknownCommandError."""
    found = _COMMAND.match(line)
    if not found:
        return None
    name, argument = found[1].lower(), (found[2] or "").strip()
    name = "quit" if name == "exit" else name
    names = [command.name for command in COMMANDS]
    if name in names:
        return name, argument
    near = difflib.get_close_matches(name, names, 1) or ["help"]
    meant = "/help shows them" if near == ["help"] else f"/{near[0]} is one"
    raise UnknownCommandError(
        f"There is no command /{found[1]}; {meant}. A message that begins so needs a space first."
    )
