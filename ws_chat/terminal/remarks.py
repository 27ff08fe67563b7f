"""What the chat itself says, beside the answers: dimmed, or red where something went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ws_chat.terminal.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from ws_chat.client.reply import Known


def say(console: Console, *lines: str) -> None:
    """Say something."""
    console.print(Text(visible("\n".join(lines)), style="dim"))


def fail(console: Console, text: str) -> None:
    """Say that something went wrong."""
    console.print(Text(visible(text), style="red"))


def remarks(reply: Known) -> Iterator[str]:
    """Yield what the text of an answer does not say."""
    if reply.status in ("cancelled", "running"):  # the second: it was not waited for
        yield "(stopped)"
    elif reply.finish_reason not in (None, "stop", "tool_calls"):
        yield f"(cut short: {reply.finish_reason})"
    for call in reply.tool_calls:
        function = call.get("function", {})
        yield f"(calls {function.get('name')}({function.get('arguments', '')}); there are no tools here)"
