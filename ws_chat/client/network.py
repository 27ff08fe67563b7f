"""The address of a server, and the handshake with it. Foreign exceptions are translated to ours here."""

from __future__ import annotations

import json
import os
import re
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

from ws_chat.client.errors import ConnectionLostError, ReplyError, UntrustedServerError, error_from
from ws_chat.protocol.urls import redact_url

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

HANDSHAKE_TIMEOUT: Final = (1.0, 10.0)
"""Seconds for one handshake: at least, even if less of the budget is left, and at most."""
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Address:
    """A server and the key for it. Raises ValueError for an invalid URL or key."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if api_key and not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError("An API key must be printable ASCII without spaces.")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = _websocket_url(url)

    def __str__(self) -> str:
        scheme, host, path, *_ = urlsplit(self.url)
        return urlunsplit((scheme, host.rpartition("@")[2], path, "", ""))

    async def open(self, timeout: float) -> ClientConnection:
        """Open a WebSocket within `timeout` seconds, bounded by HANDSHAKE_TIMEOUT.

        Raises ReplyError for a refusal, ConnectionLostError when there is no server, ValueError for a redirect to an
        invalid URL.
        """
        shortest, longest = HANDSHAKE_TIMEOUT
        try:
            return await connect(
                self.url,
                additional_headers=self._headers,
                max_size=None,
                compression=None,
                open_timeout=min(longest, max(shortest, timeout)),
                close_timeout=1,
                ping_interval=None,  # ChatConnection pings, as a full write buffer does not mean a dead peer
            )
        except InvalidStatus as error:
            raise _refusal(error, str(self)) from error
        except InvalidURI as error:
            raise ValueError(str(error)) from error
        except (OSError, EOFError, WebSocketException) as error:
            untrusted = isinstance(error, ssl.SSLCertVerificationError)
            kind = UntrustedServerError if untrusted else ConnectionLostError
            raise kind(f"{self} cannot be reached: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the text of an error, without asyncio's "[Errno 111] Connect call failed" for each address of a name."""
    numbers = set(re.findall(r"\[Errno (\d+)\] Connect call failed", str(error)))
    return os.strerror(int(numbers.pop())) if len(numbers) == 1 else str(error)


def _websocket_url(url: str) -> str:
    shown = repr(redact_url(url))
    try:
        scheme, host, path, query, _ = urlsplit(url if "://" in url else f"ws://{url}")
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
        if scheme not in ("ws", "wss"):
            raise InvalidURI(url, "it must start with http://, https://, ws:// or wss://")
        given = urlunsplit((scheme, host, _socket_path(path), query, ""))
        parse_uri(given)
    except InvalidURI as error:
        raise ValueError(f"{shown} is not the URL of a server: {error.msg}") from None
    except ValueError:  # its message may repeat a part of a password
        raise ValueError(f"{shown} is not the URL of a server: invalid host or port") from None
    if re.search(r"\s", url):
        raise ValueError(f"{shown} is not the URL of a server: it contains a space")
    return given


def _socket_path(path: str) -> str:
    """Return the path of the WebSocket under a mount prefix; one that ends in `/ws` is that of the WebSocket."""
    path = path.rstrip("/")
    return path if path.endswith("/ws") else f"{path.removesuffix('/v1')}/v1/chat/ws"


def _refusal(refused: InvalidStatus, address: str) -> ReplyError:
    response = refused.response
    status = response.status_code
    retry_after = response.headers.get("Retry-After", "")
    error: dict[str, Any] = {
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "code": "refused",
        "message": f"{address} answered with status {status}",
        "status": status,
        "retryable": status in _RETRYABLE,
    }
    try:
        given = json.loads(response.body or b"")["error"]
    except (ValueError, KeyError, TypeError):
        given = None
    if isinstance(given, dict) and isinstance(given.get("code"), str) and isinstance(given.get("message"), str):
        error |= given
    if error.get("retry_after") is None and retry_after.isdecimal():
        error["retry_after"] = float(retry_after)
    return error_from(error)
