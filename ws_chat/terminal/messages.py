"""Messages besides the answers: errors with what to do about them, remarks, figures. Also the exit statuses.

Text from the server goes through `visible` before it is written to a terminal.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from ws_chat.client import (
    AuthenticationError,
    ClientError,
    ConnectionLostError,
    HistoryGoneError,
    NotFoundError,
    ProtocolError,
    ReplyError,
    UntrustedServerError,
)
from ws_chat.client.network import Address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ws_chat.client.reply import ReplyState

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

# A terminal executes control sequences in its text (ECMA-48: ESC, and the C1 characters): they could rename its window,
# fill the clipboard, or rewrite what is above.
_CONTROL_PICTURES: Final = 0x2400  # Unicode's pictures of the characters 0 to 31
_SHOWN: Final = {
    **{code: chr(_CONTROL_PICTURES + code) for code in range(0x20) if chr(code) not in "\t\n"},
    ord("\r"): None,  # of a CRLF, or one that would overwrite its line
    0x7F: "\u2421",
    **{code: f"<{code:02x}>" for code in range(0x80, 0xA0)},
    # Bidirectional controls reorder the text around them.
    **{code: f"<{code:04x}>" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    **dict.fromkeys(range(0xD800, 0xE000), "�"),  # lone surrogates, which cannot be encoded
}


def visible(text: str) -> str:
    """Return a text with visible control characters. Line feeds and tabs stay; carriage returns are removed."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)


def text_of(frame: Mapping[str, object], *names: str) -> str:
    """Return the first of these fields that is a text. Anything else that an upstream puts there is not shown."""
    return next((value for name in names if isinstance(value := frame.get(name), str) and value), "")


def report(message: str) -> None:
    print(visible(f"ws-chat: {message}"), file=sys.stderr, flush=True)


def exit_status(error: BaseException) -> int:
    """Return the exit status of a program that ends with `error`."""
    return UNREACHABLE if isinstance(error, (ConnectionLostError, ProtocolError)) else FAILED


_HINTS: Final = {
    "model_not_allowed": "/models in a chat lists the models; -m chooses one.",
    "not_found": "The server no longer has it. /retry, or asking again, sends the whole conversation.",
    "rate_limited": "Wait a moment, then ask again.",
    "too_large": "The server takes 4 MiB at once unless WS_CHAT_MAX_FRAME_BYTES says otherwise: attach smaller images.",
    "too_many_generations": "Wait until an answer has ended, then ask again.",
    "upstream_auth": "The server's own key was refused: its operator has to set OPENAI_API_KEY.",
    "upstream_rejected": "The model's server refused this request: check the model (-m) and the parameters (-o).",
    "upstream_timeout": "The model's server is slow or away: ask again, or try another model (-m).",
    "upstream_unavailable": "The model's server is away: ask again, or try another model (-m).",
}


def explained(error: ClientError, url: str) -> str:
    """Return an error with the server that it came from, and what to do about it."""
    hint = _HINTS.get(error.code, "") if isinstance(error, ReplyError) else ""
    return "\n".join(filter(None, [f"{error}", hint, f"Server: {Address(url, None)}"]))


def connection_failure(error: ClientError, url: str, *, key: str | None) -> str:
    """Return why there is no connection, and what to do about it."""
    match error:
        case AuthenticationError():
            wrong = "does not accept this key" if key else "requires a key"
            return f"{error}\nThe server {Address(url, None)} {wrong}: set WS_CHAT_API_KEY."
        case NotFoundError():
            return f"{error}\nServer: {Address(url, None)}\n--url is the address of the server, as of its page, without a path of its own."
        case UntrustedServerError() | ProtocolError():
            return explained(error, url)
        case ConnectionLostError():  # its message names the address
            return (
                f"{error}\nStart a server with `ws-chat serve`, name another one with --url or WS_CHAT_URL, or run "
                "without one: `ws-chat chat --local`"
            )
    return explained(error, url)


def lost_with_server(error: ClientError) -> bool:
    """Whether an answer was lost because its server stopped: the question can be asked again."""
    return isinstance(error, HistoryGoneError) or (
        isinstance(error, ReplyError) and error.code in ("draining", "generation_lost")
    )


def is_forgotten(error: ClientError) -> bool:
    """Whether the server no longer knows the conversation that a question continues."""
    return isinstance(error, NotFoundError) and error.param == "previous_id"


_REASONS: Final = {"length": "length limit reached", "content_filter": "content filter"}


def remarks(reply: ReplyState) -> Iterator[str]:
    """Yield remarks on an ended answer: why it was cut short, tool calls."""
    if reply.finish_reason not in (None, "stop", "tool_calls"):
        yield f"cut short: {_REASONS.get(reply.finish_reason, reply.finish_reason)}"
    for call in reply.tool_calls:
        function = call.get("function", {})
        yield f"calls {function.get('name')}({function.get('arguments', '')}); there are no tools here"


class Stopwatch:
    """Times an answer, from the creation of the stopwatch."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first_token: float | None = None

    def token(self) -> None:
        if self._first_token is None:
            self._first_token = time.monotonic()

    def summary(self, reply: ReplyState) -> str:
        """Return the figures of an ended answer.

        The time to the first token is measured here, with the network; the rate is computed from the server's times,
        without it. If the upstream sends no usage, deltas are counted.
        """
        parts = []
        if self._first_token is not None:
            parts.append(f"{self._first_token - self._start:.2f} s to the first token")
        completion, prompt = _count(reply, "completion_tokens"), _count(reply, "prompt_tokens")
        count, unit = (completion, "tokens") if completion is not None else (max(reply.seq - 1, 0), "deltas")
        if reply.timing and (ttft := reply.timing["ttft_ms"]) is not None:
            seconds = (reply.timing["total_ms"] - ttft) / 1000
            if seconds > 0:
                parts.append(f"{count / seconds:.1f} {unit}/s")
        parts.append(
            f"{count} {unit}" if prompt is None else f"{prompt} token{'' if prompt == 1 else 's'} in, {count} out"
        )
        if reply.model:
            parts.append(reply.model)
        return " · ".join(parts)


def _count(reply: ReplyState, name: str) -> int | None:
    """Return a number of the usage, which is as the upstream sent it, if it sent any."""
    value = reply.usage.get(name) if isinstance(reply.usage, dict) else None
    return value if isinstance(value, int) else None
