"""A conversation as a file: Markdown to read, or JSON to go on with: a message list, as the server takes it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ws_chat.terminal.turns import Conversation


def save(conversation: Conversation, name: str, *, again: Path | None) -> Path:
    """Write a conversation to a file and return its path. Without a name it is that of `again`, or a new one.

    A file that is there is only written over when it is `again`. Raises OSError.
    """
    path = again if again and not name else Path(name or time.strftime("chat-%Y%m%d-%H%M%S.md"))
    path = path.expanduser().absolute()
    content = _json(conversation) if path.suffix == ".json" else _markdown(conversation)
    with path.open("w" if path == again else "x", encoding="utf-8", errors="replace") as file:
        file.write(content)
    return path


def _json(conversation: Conversation) -> str:
    return json.dumps(conversation.messages(), ensure_ascii=False, indent=2) + "\n"


def _markdown(conversation: Conversation) -> str:
    parts = [f"## System\n\n{conversation.system}"] if conversation.system else []
    for turn in conversation.turns:
        parts.append(f"## You\n\n{turn.question}")
        parts.append(f"## {turn.model or 'Assistant'}\n\n{turn.answer.rstrip()}")
    return "\n\n".join(parts) + "\n"
