"""What `ws-chat chat` takes: options, and the environment for those that are not given."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from ws_chat.client.network import Address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

URL: Final = "ws://127.0.0.1:8000"
EXIT_STATUSES: Final = """\
exit status: 0 the answer is complete, 1 it failed or was refused, 2 the command is wrong, 3 no server could be reached,
130 Ctrl-C, 141 nobody reads the output any more.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """How to chat. `question` is what the command line asks, None when it asks nothing."""

    question: str | None = None
    url: str = URL
    key: str | None = None
    model: str | None = None
    system: str | None = None
    local: bool = False
    json: bool = False
    stats: bool = False


def read_options(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Options:
    """Read the command line and the environment. Exits with status 2 and a message when either is wrong."""
    environ = os.environ if environ is None else environ
    parser = _parser()
    given = parser.parse_args(arguments)
    options = Options(
        question=" ".join(given.question) if given.question else None,
        url=given.url or environ.get("WS_CHAT_URL") or URL,
        key=given.key or environ.get("WS_CHAT_API_KEY") or None,
        model=given.model or environ.get("WS_CHAT_MODEL") or None,
        system=given.system or environ.get("WS_CHAT_SYSTEM") or None,
        local=given.local,
        json=given.json,
        stats=given.stats,
    )
    try:
        Address(options.url, options.key)
        for text in (options.question, options.model, options.system):
            (text or "").encode()
    except UnicodeEncodeError:
        parser.error("what is not UTF-8 cannot be sent")
    except ValueError as error:
        parser.error(str(error))
    return options


def _parser() -> argparse.ArgumentParser:
    chat = argparse.ArgumentParser(
        prog="ws-chat chat",
        description="A chat in the terminal. With a question, or with one on standard input (or both: "
        "the question comes first), it prints the answer as plain text and ends.",
        epilog=EXIT_STATUSES,
    )
    chat.add_argument("--version", action="version", version=f"ws_chat {version('ws-chat')}")
    chat.add_argument("question", nargs="*", help="what to ask")
    server = chat.add_mutually_exclusive_group()
    server.add_argument("--url", help=f"the server, ws, wss, http or https (WS_CHAT_URL, else {URL})")
    server.add_argument(
        "--local",
        action="store_true",
        help="needs no server: starts one inside of this program, with the model that OPENAI_API_KEY or "
        "OPENAI_BASE_URL gives, else with the built-in demo",
    )
    chat.add_argument("--model", help="the model to ask (WS_CHAT_MODEL, else the server's)")
    chat.add_argument("--system", metavar="TEXT", help="a system message that comes first (WS_CHAT_SYSTEM)")
    chat.add_argument(
        "--key",
        help="the key for the server; everybody on this computer can see it here, so better: WS_CHAT_API_KEY",
    )
    chat.add_argument("--json", action="store_true", help="print frames, one a line, instead of text")
    chat.add_argument(
        "--stats", action="store_true", help="tell the time to the first token, tokens a second and usage"
    )
    return chat
