"""What can go wrong for a caller of the client. All of it is a ClientError, but for mistakes in the call itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClientError(Exception):
    """An answer that could not be had. `retryable` says whether asking again later may help."""

    retryable: bool = False
    retry_after: float | None = None
    """Seconds to wait before that, where the server said so."""


class ConnectionLostError(ClientError):
    """The server could not be reached (again) within the patience of the client, or the client was closed."""

    retryable = True


class UntrustedServerError(ConnectionLostError):
    """The certificate of the server is not to be trusted."""

    retryable = False


class ProtocolError(ClientError):
    """What answers there does not speak the protocol of ws_chat."""


class ReplyError(ClientError):
    """An error that the server told: `code`, `message`, `param`, `status` and `retryable` as in docs/protocol.md.

    `retry_after` (seconds) is known only where the server refused the connection and said so.
    """

    def __init__(self, error: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(error, retry_after)  # what it is unpickled from
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.param: str | None = error.get("param")
        self.status: int = error.get("status", 500)
        self.retryable = error.get("retryable", False)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class AuthenticationError(ReplyError):
    """The key is missing or wrong."""


class PermissionDeniedError(ReplyError):
    """This origin, this model or this use of the connection is not allowed."""


class InvalidRequestError(ReplyError):
    """The request cannot be served as it is (`param` names the field), or is larger than the server takes."""


class NotFoundError(InvalidRequestError):
    """There is no such generation (any more)."""


class RateLimitError(ReplyError):
    """Too much, too fast: here or at the upstream."""


class UpstreamError(ReplyError):
    """The model's server failed, or the server that asked it did."""


class ServerError(ReplyError):
    """The server failed, is full, or is about to stop."""


class HistoryGoneError(ReplyError):
    """The connection was lost, and so is what was missed of the answer: it cannot be made whole.

    The server was restarted meanwhile, or did not keep it for so long. Ask again; `previous` cannot continue from it.
    """


_KINDS: Final[dict[str, type[ReplyError]]] = {
    "authentication_error": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "invalid_request_error": InvalidRequestError,
    "rate_limit_error": RateLimitError,
    "upstream_error": UpstreamError,
}


def told(error: Mapping[str, Any], retry_after: float | None = None) -> ReplyError:
    """Return the exception for an error object of the server."""
    if error["code"] == "not_found":
        return NotFoundError(error, retry_after)
    return _KINDS.get(error.get("type", ""), ServerError)(error, retry_after)


def history_gone(error: Mapping[str, Any]) -> HistoryGoneError:
    """Return the exception for a resume that was refused with this error object."""
    message = (
        "The connection was lost, and the server no longer has this answer: it was restarted meanwhile, or did not "
        "keep it for so long. What had come of it is still in `text`. Ask again; `previous` cannot continue from this."
    )
    return HistoryGoneError({**error, "message": message, "param": None})


def too_large(size: int) -> InvalidRequestError:
    """Return the exception for a request of `size` bytes on which the server closed the connection (code 1009)."""
    message = f"The request is larger than the server takes: {size} bytes."
    error = {"code": "too_large", "message": message, "status": 413, "retryable": False}
    return InvalidRequestError(error)


def against_policy(reason: str) -> PermissionDeniedError:
    """Return the exception for a request on which the server closed the connection (code 1008), with its reason."""
    message = f"The server closed the connection on this request: {reason or 'it is against its policy'}."
    return PermissionDeniedError({"code": "policy_violation", "message": message, "status": 403, "retryable": False})
