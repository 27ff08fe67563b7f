"""`ws-chat chat`: one plain answer when something is asked, a chat when nothing is and a person is there."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, TextIO, cast

from ws_chat.terminal.faults import INTERRUPTED, WRONG
from ws_chat.terminal.options import read_options
from ws_chat.terminal.plain import answer, tell
from ws_chat.terminal.question import read_question
from ws_chat.terminal.quiet import keys_unseen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import TextIOWrapper

    from ws_chat.terminal.options import Options


def main(arguments: Sequence[str]) -> int:
    """Chat as the command line says; return the exit status."""
    options = read_options(arguments)
    if sys.stdout is None or sys.stderr is None:  # a shell has closed it
        return WRONG
    for stream in (sys.stdout, sys.stderr):
        _never_fail(stream)
    try:
        return _chat(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _chat(options: Options) -> int:
    with contextlib.ExitStack() as stack:
        where = options.url
        try:
            question = read_question(options.question)
            if question is None:
                stack.enter_context(keys_unseen())
            if options.local:
                from ws_chat.terminal.local import local_server

                server = stack.enter_context(local_server())
                options = dataclasses.replace(options, url=server.url, key=server.key)
                where = server.answers
        except ValueError as error:
            tell(str(error))
            return WRONG
        if question is not None:
            return answer(options, question)
        from ws_chat.terminal.interactive import chat

        return chat(options, where)


def _never_fail(stream: TextIO) -> None:
    """Let a terminal or a locale that lacks a character show a question mark."""
    cast("TextIOWrapper", stream).reconfigure(errors="replace")
