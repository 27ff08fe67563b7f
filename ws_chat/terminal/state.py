"""What is kept between two runs, in the user's state directory (XDG Base Directory Specification)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ws_chat.terminal.conversation import Conversation


def folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "ws-chat"


def save_last(conversation: Conversation) -> None:
    """Keep a conversation for `--continue`, readable by the user only. One that cannot be written is not kept."""
    path = folder() / "conversation.json"
    fresh = path.with_suffix(".new")
    content = json.dumps(conversation.dump())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(content, encoding="utf-8", errors="surrogatepass")
        fresh.replace(path)
    except OSError:
        return  # the home is read-only, or something else has the name


def load_last() -> dict[str, Any]:
    """Return what `save_last` has kept. Raises ValueError when there is nothing."""
    path = folder() / "conversation.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("turns"), list):
        raise ValueError(f"There is no conversation to continue yet: {path} does not exist, or is not one.")
    return kept
