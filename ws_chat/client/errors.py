"""What can go wrong for a caller of the client."""

from __future__ import annotations

from typing import Any


class ReplyError(Exception):
    """An error that the server told: `code`, `message`, `param`, `status` and `retryable` as in docs/protocol.md.

    `retry_after` (seconds) is known only where the server refused the connection and said so.
    """

    def __init__(self, error: dict[str, Any], retry_after: float | None = None) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.param: str | None = error.get("param")
        self.status: int = error.get("status", 500)
        self.retryable: bool = error.get("retryable", False)
        self.retry_after = retry_after


class AuthenticationError(ReplyError):
    """The key is missing or wrong."""


class PermissionDeniedError(ReplyError):
    """This origin or model is not allowed."""


class InvalidRequestError(ReplyError):
    """The request cannot be served as it is; `param` names the field."""


class NotFoundError(InvalidRequestError):
    """There is no such generation (any more)."""


class RateLimitError(ReplyError):
    """Too much, too fast: here or at the upstream."""


class UpstreamError(ReplyError):
    """The model's server failed, or the server that asked it did."""


class ServerError(ReplyError):
    """The server failed, is full, or is about to stop."""


class HistoryGoneError(ReplyError):
    """The connection was lost, and what was missed is not kept any more: the answer cannot be made whole."""


class ConnectionLostError(Exception):
    """The server could not be reached again in time."""


_KINDS = {
    "authentication_error": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "invalid_request_error": InvalidRequestError,
    "rate_limit_error": RateLimitError,
    "upstream_error": UpstreamError,
}


def told(error: dict[str, Any], retry_after: float | None = None) -> ReplyError:
    """Return the exception for an error object of the server."""
    if error["code"] == "not_found":
        return NotFoundError(error, retry_after)
    return _KINDS.get(error.get("type", ""), ServerError)(error, retry_after)
