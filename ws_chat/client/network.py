"""Where a server is, and how a socket to it is opened. What goes wrong there is told in our own exceptions."""

from __future__ import annotations

import json
import re
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

from ws_chat.client.errors import ClientError, ConnectionLostError, ReplyError, UntrustedServerError, told

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

HANDSHAKE: Final = (1.0, 10.0)
"""Seconds that a handshake may take at least, however little patience is left, and at most: then it is tried again."""
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Address:
    """A server and the key for it. Raises ValueError when either cannot be one."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if api_key and not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError("An API key is printable ASCII without spaces.")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = _socket_url(url)

    def __str__(self) -> str:
        scheme, host, path, *_ = urlsplit(self.url)
        return urlunsplit((scheme, host.rpartition("@")[2], path, "", ""))

    async def open(self, patience: float) -> ClientConnection:
        """Open a socket within `patience` seconds, or about as long.

        Raises ReplyError where the server refuses, ConnectionLostError where there is none, ValueError where it
        redirects to what is no URL.
        """
        shortest, longest = HANDSHAKE
        try:
            return await connect(
                self.url,
                additional_headers=self._headers,
                max_size=None,
                compression=None,
                open_timeout=min(longest, max(shortest, patience)),
                close_timeout=1,
                ping_interval=None,  # the link has a heart of its own, which beats under a full write buffer too
            )
        except InvalidStatus as error:
            raise _refusal(error) from error
        except InvalidURI as error:
            raise ValueError(str(error)) from error
        except (OSError, EOFError, WebSocketException) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClientError:
        kind = UntrustedServerError if isinstance(error, ssl.SSLCertVerificationError) else ConnectionLostError
        return kind(f"{self} cannot be reached: {error}")


def _socket_url(url: str) -> str:
    shown = repr(re.sub(r"^(\w+://)?.*@", r"\1", url).partition("?")[0])  # without a password or a token
    try:
        scheme, host, path, query, _ = urlsplit(url if "://" in url else f"ws://{url}")
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
        given = urlunsplit((scheme, host, path if path.strip("/") else "/v1/chat/ws", query, ""))
        parse_uri(given)
    except InvalidURI as error:
        raise ValueError(f"{shown} is no URL of a server: {error.msg}") from None
    except ValueError:  # whose message repeats what may belong to a password
        raise ValueError(f"{shown} is no URL of a server: its host or port is none") from None
    if re.search(r"\s", url):
        raise ValueError(f"{shown} is no URL of a server: there is a space in it")
    return given


def _refusal(refused: InvalidStatus) -> ReplyError:
    response = refused.response
    status = response.status_code
    retry_after = response.headers.get("Retry-After", "")
    error: dict[str, Any] = {
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "code": "refused",
        "message": f"the server answered with status {status}",
        "status": status,
        "retryable": status in _LATER,
    }
    try:
        given = json.loads(response.body or b"")["error"]
    except (ValueError, KeyError, TypeError):
        given = None
    if isinstance(given, dict) and isinstance(given.get("code"), str) and isinstance(given.get("message"), str):
        error |= given
    return told(error, float(retry_after) if retry_after.isdecimal() else None)
