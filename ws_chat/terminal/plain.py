"""One answer for a pipe, a file or a script: text or frames on standard output, all else on standard error.

Standard output may be slow, so it is written without an event loop that would wait for it. Control characters are
shown when a terminal reads; anything else gets exactly what the model said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from ws_chat.client.errors import ClientError
from ws_chat.client.reply import answer_of
from ws_chat.client.sync import SyncChat, connect_sync
from ws_chat.terminal.faults import (
    FAILED,
    INTERRUPTED,
    READER_GONE,
    UNREACHABLE,
    exit_status,
    no_server,
    went_with_its_server,
)
from ws_chat.terminal.stats import Stopwatch
from ws_chat.terminal.visible import visible
from ws_chat.terminal.waiting import telling_of_waits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from ws_chat.client.sync import SyncReply
    from ws_chat.terminal.options import Options

ATTEMPTS = 3
"""How often something is asked of servers that go away before they have said anything."""


def answer(options: Options, question: str) -> int:
    """Print the answer to a question; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # by way of what cancels the answer
    chat = connect_sync(options.url, api_key=options.key)
    try:
        with contextlib.closing(chat), telling_of_waits(lambda reason: tell(f"{reason}; trying again")):
            try:
                chat.open()
            except ClientError as error:
                tell(no_server(error, options))
                return exit_status(error)
            return _ask(chat, options, question)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # the next prompt gets a line of its own
        return INTERRUPTED
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail again, at the exit of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        tell(f"The answer cannot be written: {error.strerror}.")
        return FAILED


def tell(message: str) -> None:
    """Say something on standard error."""
    print(visible(f"ws-chat: {message}"), file=sys.stderr, flush=True)


def _ask(chat: SyncChat, options: Options, question: str) -> int:
    messages = [{"role": "system", "content": options.system}] if options.system else []
    messages.append({"role": "user", "content": question})
    printed = _Printed(as_frames=options.json)
    for attempt in range(1, ATTEMPTS + 1):
        watch = Stopwatch()
        with chat.ask(messages, model=options.model) as reply:
            try:
                printed.start(reply)
                for frame in reply:
                    watch.token()
                    printed.token(frame)
            except ClientError as error:
                if went_with_its_server(error) and not printed.something and attempt < ATTEMPTS:
                    continue
                printed.end(reply)
                tell(str(error))
                return exit_status(error)
        printed.end(reply)
        if options.stats:
            tell(watch.line(reply))
        return _judged(reply)
    return UNREACHABLE


def _judged(reply: SyncReply) -> int:
    """Tell what is not in the text of an answer; return the exit status."""
    if reply.refusal:
        tell(f"The model refuses: {reply.refusal}")
        return FAILED
    if reply.status == "cancelled":
        tell("The answer was cancelled from elsewhere.")
        return FAILED
    if reply.finish_reason not in (None, "stop", "tool_calls"):
        tell(f"The answer was cut short: {reply.finish_reason}.")
    for call in reply.tool_calls:
        function = call.get("function", {})
        tell(f"The model calls {function.get('name')}({function.get('arguments', '')}), and there are no tools here.")
    return 0


class _Printed:
    """Standard output, and whether anything of an answer stands on it already."""

    def __init__(self, *, as_frames: bool) -> None:
        self.something = False
        self._as_frames = as_frames
        self._to_terminal = sys.stdout.isatty()
        self._last = "\n"

    def start(self, reply: SyncReply) -> None:
        self._frame(answer_of(reply.begin()).first)

    def token(self, frame: Any) -> None:
        self.something = True
        self._frame(frame)
        if not self._as_frames:
            self._write(frame.get("content") or "")

    def end(self, reply: SyncReply) -> None:
        self._frame(answer_of(reply).last)
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


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
