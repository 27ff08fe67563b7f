"""`ws-chat chat`: its options, the question, and the choice between one plain answer and an interactive chat."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import termios
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar, cast

from ws_chat.client.network import Address
from ws_chat.terminal.conversation import Conversation
from ws_chat.terminal.messages import INTERRUPTED, UNREACHABLE, USAGE, report
from ws_chat.terminal.plain import answer
from ws_chat.terminal.requests import image, parameter
from ws_chat.terminal.state import load_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import TextIOWrapper

DEFAULT_URL: Final = "ws://127.0.0.1:8000"
EXIT_STATUSES: Final = """\
exit status: 0 the answer is complete, 1 it failed or was refused, 2 wrong usage, 3 no server could be reached,
130 Ctrl-C, 141 the output was closed.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How to chat. `question` is that of the command line."""

    question: str | None = None
    url: str = DEFAULT_URL
    key: str | None = None
    model: str | None = None
    system: str | None = None
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: tuple[dict[str, Any], ...] = ()
    goes_on: bool = False
    local: bool = False
    json: bool = False
    stats: bool = False


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    if sys.stdout is None or sys.stderr is None:  # closed by the shell
        return USAGE
    for stream in (sys.stdout, sys.stderr):
        _replace_unencodable(stream)
    try:
        with contextlib.ExitStack() as stack:
            return _chat(options, stack)
    except KeyboardInterrupt:
        return INTERRUPTED


def _chat(options: Options, stack: contextlib.ExitStack) -> int:
    server = options.url
    conversation = Conversation(
        system=options.system, model=options.model, parameters=options.parameters, images=options.images
    )
    try:
        if options.goes_on:
            conversation.restore(load_last())
        question = read_question(options.question)
        if question is None:
            stack.enter_context(hidden_keys())
        if options.local:
            from ws_chat.terminal.local import local_server

            local = stack.enter_context(local_server())
            options = dataclasses.replace(options, url=local.url, key=local.key)
            server = local.description
    except ValueError as error:
        report(str(error))
        return USAGE
    except RuntimeError as error:
        report(str(error))
        return UNREACHABLE
    if question is not None:
        return answer(options, question, conversation)
    from ws_chat.terminal.chat import chat

    return chat(options, server, conversation)


def read_options(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Options:
    """Read the command line and the environment. Exits with status 2 and a message when either is invalid."""
    environ = os.environ if environ is None else environ
    parser = _parser()
    given = parser.parse_args(arguments)
    options = Options(
        question=" ".join(given.question) if given.question else None,
        url=given.url or environ.get("WS_CHAT_URL") or DEFAULT_URL,
        key=given.key or environ.get("WS_CHAT_API_KEY") or None,
        model=given.model or environ.get("WS_CHAT_MODEL") or None,
        system=given.system or environ.get("WS_CHAT_SYSTEM") or None,
        parameters=dict(given.option),
        images=tuple(given.attach),
        goes_on=given.goes_on,
        local=given.local,
        json=given.json,
        stats=given.stats,
    )
    try:
        Address(options.url, options.key)
        for text in (options.question, options.model, options.system):
            (text or "").encode()
    except UnicodeEncodeError:
        parser.error("the question, the model and the system message must be UTF-8")
    except ValueError as error:
        parser.error(str(error))
    return options


def read_question(given: str | None) -> str | None:
    """Return the question: that of the command line, of standard input, or both, in this order.

    None when there is no question yet and a person at a terminal to ask one. Raises ValueError for an empty question,
    and for input that is not UTF-8.
    """
    if sys.stdin is None or (sys.stdin.isatty() and given is not None):
        piped = ""
    elif sys.stdin.isatty() and sys.stdout.isatty():
        return None
    else:
        if sys.stdin.isatty():
            print("Type a question; Ctrl-D on a line of its own ends it.", file=sys.stderr)
        try:
            piped = sys.stdin.buffer.read().decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"Standard input is not UTF-8: {error}.") from None
    question = "\n\n".join(part for part in (given, piped) if part and part.strip())
    if not question:
        raise ValueError("The question is empty: give one as an argument or on standard input.")
    return question


@contextlib.contextmanager
def hidden_keys() -> Iterator[None]:
    """Do not echo keys until the block ends, and keep them for the next prompt; Ctrl-C is still a signal (termios(3)).

    The line editor does so itself while it reads. Otherwise keys would be echoed into the drawn answer, and Enter would
    become Ctrl-J, which starts a new line.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    changed = termios.tcgetattr(descriptor)
    changed[0] &= ~termios.ICRNL
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _replace_unencodable(stream: TextIO) -> None:
    """Print a question mark for a character that the terminal's encoding lacks."""
    cast("TextIOWrapper", stream).reconfigure(errors="replace")


_Value = TypeVar("_Value")


def _checked(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return `read` for argparse, which would leave out the message of a ValueError."""

    def checked(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _parser() -> argparse.ArgumentParser:
    chat = argparse.ArgumentParser(
        prog="ws-chat chat",
        description="A chat in the terminal. With a question as an argument or on standard input (or both: the "
        "argument comes first), it prints the answer as plain text and exits.",
        epilog=EXIT_STATUSES,
    )
    chat.add_argument("--version", action="version", version=f"ws_chat {version('ws-chat')}")
    chat.add_argument("question", nargs="*", help="the question")
    server = chat.add_mutually_exclusive_group()
    server.add_argument("--url", help=f"the server: ws, wss, http or https (WS_CHAT_URL, else {DEFAULT_URL})")
    server.add_argument(
        "--local",
        action="store_true",
        help="start a server inside this program, with the model of OPENAI_API_KEY or OPENAI_BASE_URL, else the "
        "built-in demo",
    )
    chat.add_argument("-m", "--model", help="the model (WS_CHAT_MODEL, else the server's)")
    chat.add_argument("-s", "--system", metavar="TEXT", help="a system message (WS_CHAT_SYSTEM)")
    chat.add_argument(
        *("-o", "--option"),
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_checked(parameter),
        help="a parameter of the request, such as temperature=0.2; may be repeated",
    )
    chat.add_argument(
        *("-a", "--attach"),
        metavar="FILE",
        action="append",
        default=[],
        type=_checked(image),
        help="an image for the first question: a file or an https address; may be repeated",
    )
    chat.add_argument(
        *("-c", "--continue"), dest="goes_on", action="store_true", help="go on with the last conversation"
    )
    chat.add_argument(
        "--key",
        help="the API key; other users of this computer can see it here, so prefer WS_CHAT_API_KEY",
    )
    chat.add_argument("--json", action="store_true", help="print frames, one per line, instead of text")
    chat.add_argument("--stats", action="store_true", help="print time to the first token, tokens per second, usage")
    return chat
