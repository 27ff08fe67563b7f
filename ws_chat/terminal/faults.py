"""What went wrong, for the person at the terminal: what it is, what helps, and the exit status for a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ws_chat.client.errors import (
    AuthenticationError,
    ConnectionLostError,
    HistoryGoneError,
    ProtocolError,
    ReplyError,
    UntrustedServerError,
)

if TYPE_CHECKING:
    from ws_chat.terminal.options import Options

FAILED: Final = 1
WRONG: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
READER_GONE: Final = 141

_WITH_THE_SERVER: Final = frozenset({"draining", "generation_lost"})


def went_with_its_server(error: BaseException) -> bool:
    """Whether an answer ended because its server did, so that the one after it can be asked the same."""
    return isinstance(error, HistoryGoneError) or (isinstance(error, ReplyError) and error.code in _WITH_THE_SERVER)


def exit_status(error: BaseException) -> int:
    """Return the exit status of a program that ends with this."""
    return UNREACHABLE if isinstance(error, (ConnectionLostError, ProtocolError)) else FAILED


def no_server(error: BaseException, options: Options) -> str:
    """Say why there is no connection, and what to do about it."""
    match error:
        case AuthenticationError():
            wrong = "The key is not one of the server's" if options.key else "The server wants a key"
            return f"{error}\n{wrong}: WS_CHAT_API_KEY names it."
        case UntrustedServerError() | ProtocolError():
            return str(error)
        case ConnectionLostError():
            return (
                f"{error}\nStart a server with `ws-chat serve`, name another one with --url or WS_CHAT_URL, or do "
                "without: `ws-chat chat --local`"
            )
    return str(error)
