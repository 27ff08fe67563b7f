"""The command line: `ws-chat serve` (the default, also of `python -m ws_chat`) and `ws-chat chat`."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from ws_chat import __version__
from ws_chat.server.run import ServeOptions, run
from ws_chat.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP: Final = """\
usage: ws-chat [serve] [options]          start a server
       ws-chat chat [options] [question]  chat in the terminal

For the options of each: ws-chat serve --help, ws-chat chat --help
"""
COMMANDS: Final = ("serve", "chat")
LOG_LEVELS: Final = ("critical", "error", "warning", "info", "debug")  # not uvicorn's trace, which logs keys


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (2: an option or a setting is wrong)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["chat"]:
        from ws_chat.terminal.main import main as chat

        return chat(arguments[1:])
    if arguments in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    if arguments[:1] == ["serve"]:
        del arguments[0]
    elif arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"Did you mean `ws-chat {near[0]}`?" if near else f"The commands are {' and '.join(COMMANDS)}."
        print(f"ws-chat: unknown command {arguments[0]!r}. {hint}", file=sys.stderr)
        return 2
    options = ServeOptions(**vars(_parser().parse_args(arguments)))
    try:
        settings = Settings.load()
    except SettingsError as error:
        print(f"ws-chat: {error}", file=sys.stderr)
        return 2
    if options.app != ServeOptions().app:
        sys.path.insert(0, "")  # an application of the user's own may be in the working directory
    run(settings, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    serve = argparse.ArgumentParser(
        prog="ws-chat serve",
        description="Stream chat-model answers over WebSocket and SSE. All other settings are environment variables.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = ServeOptions()
    port, count = partial(_whole_number, 0, 65535), partial(_whole_number, 1, 1024)
    serve.add_argument("--version", action="version", version=f"ws_chat {__version__}")
    serve.add_argument("--app", metavar="MODULE:NAME", default=default.app, help="application that mounts ws_chat")
    serve.add_argument("--host", default=default.host, help="address to listen on")
    serve.add_argument("--port", type=port, default=default.port, help="port to listen on; 0 chooses a free one")
    serve.add_argument("--uds", metavar="PATH", help="listen on this Unix domain socket instead")
    serve.add_argument("--uds-mode", type=_mode, metavar="MODE", default="600", help="who may connect to it")
    serve.add_argument("--workers", type=count, default=default.workers, help="number of server processes")
    serve.add_argument("--log-level", choices=LOG_LEVELS, default=default.log_level, help="lowest level to log")
    serve.add_argument("--ssl-keyfile", metavar="FILE", help="private key, for https and wss")
    serve.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain, for https and wss")
    serve.add_argument(
        "--forwarded-allow-ips", metavar="IPS", help="proxies whose X-Forwarded headers are trusted, comma-separated"
    )
    serve.add_argument("--root-path", default=default.root_path, help="path prefix that a proxy strips")
    return serve


def _mode(text: str) -> int:
    if not re.fullmatch("[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode of three octal digits, such as 660")
    return int(text, 8)


def _whole_number(least: int, most: int, text: str) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
