"""The command line: `ws-chat serve`, which is also what `ws-chat` alone and `python -m ws_chat` do."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from ws_chat.server import Binding, run
from ws_chat.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_LEVELS: Final = ("critical", "error", "warning", "info", "debug", "trace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (2: the options or the environment are wrong)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in ("serve", "-h", "--help"):
        given.insert(0, "serve")
    options = vars(_parser().parse_args(given))
    del options["command"]
    try:
        settings = Settings.load()
    except SettingsError as error:
        print(f"ws-chat: {error}", file=sys.stderr)
        return 2
    run(settings, Binding(**options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ws-chat",
        description="Streams chat-model answers over WebSocket and SSE, from any OpenAI-compatible server.",
        epilog="Without a command: serve. Everything else is set in the environment, see docs/protocol.md.",
    )
    commands = parser.add_subparsers(dest="command")
    default = Binding()
    serve = commands.add_parser("serve", help="run the server", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    serve.add_argument("--host", default=default.host, help="address to listen on")
    serve.add_argument("--port", type=int, default=default.port, help="port to listen on; 0 takes a free one")
    serve.add_argument("--uds", metavar="PATH", help="listen on this Unix domain socket instead")
    serve.add_argument("--workers", type=int, default=default.workers, help="processes that serve the address")
    serve.add_argument("--log-level", choices=LOG_LEVELS, default=default.log_level, help="what is logged")
    serve.add_argument("--ssl-keyfile", metavar="FILE", help="private key, for https and wss")
    serve.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain, for https and wss")
    serve.add_argument(
        "--forwarded-allow-ips",
        metavar="IPS",
        help="proxies whose X-Forwarded headers count, comma-separated",
    )
    serve.add_argument("--root-path", default=default.root_path, help="path prefix that a proxy takes off")
    return parser
