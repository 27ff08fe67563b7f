"""One answer for a pipe, a file or a script: text or frames on standard output, everything else on standard error.

Standard output may be slow, so it is written in this thread, not in the client's event loop. On a terminal, control
characters are made visible; a pipe or a file gets exactly what the model wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from ws_chat.client import ClientError, SyncChat, connect_sync
from ws_chat.terminal.messages import (
    BROKEN_PIPE,
    FAILED,
    INTERRUPTED,
    UNREACHABLE,
    Stopwatch,
    connection_failure,
    exit_status,
    explained,
    lost_with_server,
    remarks,
    report,
    text_of,
    visible,
)
from ws_chat.terminal.state import save_last

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from ws_chat.client import Frame, SyncReply
    from ws_chat.terminal.conversation import Conversation
    from ws_chat.terminal.main import Options

ATTEMPTS: Final = 3
"""Attempts for one question when servers shut down before the first token."""


def answer(options: Options, question: str, conversation: Conversation) -> int:
    """Print the answer to a question; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    chat = connect_sync(options.url, api_key=options.key, on_retry=_Reporter())
    try:
        with contextlib.closing(chat):
            try:
                chat.open()
            except ClientError as error:
                report(connection_failure(error, options.url, key=options.key))
                return exit_status(error)
            return _ask(chat, options, question, conversation)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # the shell's prompt gets its own line
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        _discard_output()
        report(f"The answer cannot be written: {error.strerror}.")
        return FAILED


class _Reporter:
    """Reports why the client waits, once per reason."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, reason: ClientError, _: float) -> None:
        if str(reason) != self._last:
            self._last = str(reason)
            report(f"{reason}; trying again")


def _ask(chat: SyncChat, options: Options, question: str, conversation: Conversation) -> int:
    messages = conversation.messages(question)
    output = _Output(as_frames=options.json)
    for attempt in range(1, ATTEMPTS + 1):
        watch = Stopwatch()
        with chat.ask(messages, model=conversation.model, **conversation.parameters) as reply:
            try:
                output.start(reply)
                for frame in reply:
                    watch.token()
                    output.token(frame)
            except ClientError as error:
                if lost_with_server(error) and not output.has_tokens and attempt < ATTEMPTS:
                    continue
                output.end(reply)
                report(explained(error, options.url))
                return exit_status(error)
        output.end(reply)
        conversation.record(question, reply)
        save_last(conversation)
        if options.stats:
            report(watch.summary(reply))
        return _finish(reply)
    return UNREACHABLE


def _finish(reply: SyncReply) -> int:
    """Report what is not in the text of an ended answer; return the exit status."""
    if reply.refusal:
        report(f"The model refuses: {reply.refusal}")
        return FAILED
    if reply.status == "cancelled":
        report("The answer was cancelled by another client.")
        return FAILED
    for remark in remarks(reply):
        report(remark)
    return 0


class _Output:
    """Standard output. `has_tokens`: a part of an answer was written."""

    def __init__(self, *, as_frames: bool) -> None:
        self.has_tokens = False
        self._as_frames = as_frames
        self._to_terminal = sys.stdout.isatty()
        self._last = "\n"

    def start(self, reply: SyncReply) -> None:
        self._frame(reply.begin().start_frame)

    def token(self, frame: Frame) -> None:
        self.has_tokens = True
        if self._as_frames:
            self._frame(frame)
        else:
            self._write(text_of(frame, "content"))

    def end(self, reply: SyncReply) -> None:
        self._frame(reply.end_frame)
        if self._last != "\n":
            self._write("\n")

    def _frame(self, frame: Mapping[str, Any] | None) -> None:
        if self._as_frames and frame:
            self._write(json.dumps(frame, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(visible(text) if self._to_terminal else text)
            sys.stdout.flush()


def _discard_output() -> None:
    """Discard buffered output: the interpreter would write it when it exits, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # leaves the `with` blocks, which cancels the answer
