"""What is asked: the command line, standard input, or both."""

from __future__ import annotations

import sys


def read_question(given: str | None) -> str | None:
    """Return the question; None: there is a person at a terminal who has not asked anything yet.

    What a pipe or a file gives comes after what the command line says, as in `cat file | ws-chat chat "Summarise"`.
    Raises ValueError when nothing is asked, or what comes is no text.
    """
    if sys.stdin is None or (sys.stdin.isatty() and given is not None):
        piped = ""
    elif sys.stdin.isatty() and sys.stdout.isatty():
        return None
    else:
        if sys.stdin.isatty():
            print("Ask; Ctrl-D on a line of its own ends the question.", file=sys.stderr)
        try:
            piped = sys.stdin.buffer.read().decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"Standard input is not UTF-8: {error}.") from None
    question = "\n\n".join(part for part in (given, piped) if part and part.strip())
    if not question:
        raise ValueError("Nothing is asked: the question is empty.")
    return question
