"""The line that a person types into: several lines, a history that lasts, commands that complete."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from ws_chat.terminal.commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent


def line_editor(history: Path, *, dumb: bool) -> PromptSession[str]:
    """Return what reads messages; on a `dumb` terminal it moves no cursor.

    Reading raises KeyboardInterrupt at Ctrl-C, EOFError at Ctrl-D on an empty line.
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
        completer=WordCompleter([f"/{command.name}" for command in COMMANDS], sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_open_in_editor=True,
        enable_suspend=True,
        output=PlainTextOutput(sys.stdout) if dumb else None,
        style=Style.from_dict({"prompt": "ansicyan bold"}),
    )


def history_path() -> Path:
    """Return where the history is kept: the state directory of the user (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return folder / "ws-chat" / "history"


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()  # a home that cannot be written to, or a folder in its place
    return FileHistory(str(path))
