"""The command line: `ws-chat serve`, which is also what `ws-chat` alone and `python -m ws_chat` do; `ws-chat chat`."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from ws_chat.server.run import Binding, run
from ws_chat.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP: Final = """\
usage: ws-chat [serve] [options]          start a server
       ws-chat chat [options] [question]  chat in the terminal

Each says what it takes: ws-chat serve --help, ws-chat chat --help
"""
LOG_LEVELS: Final = ("critical", "error", "warning", "info", "debug")  # not uvicorn's trace, which logs keys


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (2: the options or the environment are wrong)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] == "chat":
        from ws_chat.terminal.main import main as chat

        return chat(given[1:])
    if given in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    if given and given[0] == "serve":
        del given[0]
    options = _parser().parse_args(given)
    try:
        settings = Settings.load()
    except SettingsError as error:
        print(f"ws-chat: {error}", file=sys.stderr)
        return 2
    if options.app != Binding().app:
        sys.path.insert(0, "")  # it is looked for here too
    run(settings, Binding(**vars(options)))
    return 0


def _parser() -> argparse.ArgumentParser:
    serve = argparse.ArgumentParser(
        prog="ws-chat serve",
        description="Streams chat-model answers over WebSocket and SSE. Everything but this is set in the environment.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Binding()
    serve.add_argument("--version", action="version", version=f"ws_chat {version('ws-chat')}")
    serve.add_argument(
        "--app", metavar="MODULE:NAME", default=default.app, help="an application that ws_chat is mounted into"
    )
    serve.add_argument("--host", default=default.host, help="address to listen on")
    serve.add_argument("--port", type=_port, default=default.port, help="port to listen on; 0 takes a free one")
    serve.add_argument("--uds", metavar="PATH", help="listen on this Unix domain socket instead")
    serve.add_argument("--workers", type=_count, default=default.workers, help="processes that serve the address")
    serve.add_argument("--log-level", choices=LOG_LEVELS, default=default.log_level, help="what is logged")
    serve.add_argument("--ssl-keyfile", metavar="FILE", help="private key, for https and wss")
    serve.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain, for https and wss")
    serve.add_argument(
        "--forwarded-allow-ips",
        metavar="IPS",
        help="proxies whose X-Forwarded headers count, comma-separated",
    )
    serve.add_argument("--root-path", default=default.root_path, help="path prefix that a proxy takes off")
    return serve


def _port(text: str) -> int:
    return _whole_number(text, 0, 65535)


def _count(text: str) -> int:
    return _whole_number(text, 1, 1024)


def _whole_number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
