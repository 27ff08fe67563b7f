"""The errors of the client: ClientError and its subclasses. Mistakes in a call raise TypeError or ValueError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClientError(Exception):
    """A request failed. `retryable`: the same request may succeed later."""

    retryable: bool = False
    retry_after: float | None = None
    """Seconds to wait before the next attempt, where the server named them."""


class ConnectionLostError(ClientError):
    """The server could not be reached (again) within the client's `patience`, or the client was closed."""

    retryable = True


class UntrustedServerError(ConnectionLostError):
    """The server's certificate could not be verified."""

    retryable = False


class ProtocolError(ClientError):
    """The peer does not speak the protocol of ws_chat."""


class ReplyError(ClientError):
    """An error object of the server: `code`, `message`, `param`, `status`, … as in docs/protocol.md."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error)  # unpickling passes `args` to the constructor
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.param: str | None = error.get("param")
        self.status: int = error.get("status", 500)
        self.retryable = error.get("retryable", False)
        retry_after = error.get("retry_after")
        self.retry_after = retry_after if isinstance(retry_after, int | float) else None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class AuthenticationError(ReplyError):
    """The key is missing or wrong."""


class PermissionDeniedError(ReplyError):
    """This origin, this model or this use of the connection is not allowed."""


class InvalidRequestError(ReplyError):
    """The request is malformed (`param` names the field), conflicts with another one, or is too large."""


class NotFoundError(InvalidRequestError):
    """The server does not have this generation, or no longer has it."""


class RateLimitError(ReplyError):
    """A rate limit was reached: the server's or the upstream's."""


class UpstreamError(ReplyError):
    """The upstream failed, or the replica that requested the answer from it."""


class ServerError(ReplyError):
    """The server failed, is full, or is shutting down."""


class HistoryGoneError(ReplyError):
    """The connection was lost, and the server no longer has the rest of the answer: it restarted, or removed it.

    Ask again; `previous` cannot continue from this answer.
    """


class GenerationGoneError(HistoryGoneError):
    """The server no longer has the rest of the answer, and its id names another one now, of which nothing was taken.

    Ask again under a new id; `previous` cannot continue from this answer.
    """


GONE_CODE: Final = "generation_gone"
_CLASSES: Final[dict[str, type[ReplyError]]] = {
    "authentication_error": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "invalid_request_error": InvalidRequestError,
    "rate_limit_error": RateLimitError,
    "upstream_error": UpstreamError,
}


def error_from(error: Mapping[str, Any]) -> ReplyError:
    """Build the exception for an error object of the server."""
    if error["code"] == "not_found":
        return NotFoundError(error)
    if error["code"] == GONE_CODE:
        return GenerationGoneError(error)
    return _CLASSES.get(error.get("type", ""), ServerError)(error)


def history_gone(error: Mapping[str, Any]) -> HistoryGoneError:
    """Build the exception for a resume that the server refused with this error object."""
    if error["code"] == GONE_CODE:
        message = (
            "The server no longer has this answer: it did not keep it for so long, and another answer has its id now. "
            "What was received is still in `text`. Ask again, with a new id; `previous` cannot continue from this."
        )
        return GenerationGoneError({**error, "message": message})
    message = (
        "The connection was lost, and the server no longer has this answer: it restarted, or the retention time is over. "
        "`text` has what was received. Ask again; `previous` cannot continue from this answer."
    )
    return HistoryGoneError({**error, "message": message, "param": None})


def too_large(size: int) -> InvalidRequestError:
    """Build the exception for a request of `size` bytes that made the server close the connection (code 1009)."""
    message = f"The request is larger than the server accepts: {size} bytes."
    return InvalidRequestError({"code": "too_large", "message": message, "status": 413})


def policy_violation(reason: str) -> PermissionDeniedError:
    """Build the exception for a request that made the server close the connection (code 1008), with its reason."""
    message = f"The server closed the connection on this request: {reason or 'it violates its policy'}."
    return PermissionDeniedError({"code": "policy_violation", "message": message, "status": 403})
