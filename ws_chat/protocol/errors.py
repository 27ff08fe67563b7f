"""All errors on one page: code, type, HTTP status, and whether the same request may succeed later.

The same error object goes out over every transport. Its shape follows the OpenAI reference (`type`, `code`, `message`,
`param`), with `status`, `retryable` and `retry_after` added.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, Self

import msgspec
from msgspec import Meta


class Kind(NamedTuple):
    """What follows from a code."""

    type: str
    status: int
    retryable: bool


CODES: Final[dict[str, Kind]] = {
    "invalid_json": Kind("invalid_request_error", 400, False),
    "invalid_request": Kind("invalid_request_error", 400, False),
    "previous_response_not_found": Kind("invalid_request_error", 400, False),  # these two: the Responses protocol
    "invalid_stream_id": Kind("invalid_request_error", 400, False),
    "unauthorized": Kind("authentication_error", 401, False),
    "origin_not_allowed": Kind("permission_error", 403, False),
    "host_not_allowed": Kind("permission_error", 403, False),
    "model_not_allowed": Kind("permission_error", 403, False),
    "not_found": Kind("invalid_request_error", 404, False),
    "id_conflict": Kind("invalid_request_error", 409, False),
    "generation_gone": Kind("invalid_request_error", 410, False),
    "too_large": Kind("invalid_request_error", 413, False),
    "rate_limited": Kind("rate_limit_error", 429, True),
    "too_many_generations": Kind("rate_limit_error", 429, True),
    "upstream_rejected": Kind("upstream_error", 400, False),  # the status is the upstream's own 4xx
    "upstream_rate_limited": Kind("rate_limit_error", 429, True),
    "upstream_auth": Kind("upstream_error", 502, False),
    "upstream_unavailable": Kind("upstream_error", 502, True),
    "upstream_timeout": Kind("upstream_error", 504, True),
    "upstream_incomplete": Kind("upstream_error", 502, True),
    "upstream_malformed": Kind("upstream_error", 502, False),
    "generation_lost": Kind("upstream_error", 502, True),
    "draining": Kind("server_error", 503, True),
    "overloaded": Kind("server_error", 503, True),
    "internal_error": Kind("server_error", 500, True),
}


class ErrorInfo(msgspec.Struct, frozen=True):
    """What went wrong, the same over every transport. `message` is for people; `param` names the field at fault."""

    # For `message`: no keys, no stack traces, nothing of another client.
    type: Annotated[str, Meta(extra_json_schema={"enum": sorted({kind.type for kind in CODES.values()})})]
    code: Annotated[str, Meta(extra_json_schema={"enum": list(CODES)})]
    message: str
    param: str | None
    status: Annotated[int, Meta(ge=400, le=599, description="As of an HTTP response.")]
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed later.")]
    retry_after: Annotated[float | None, Meta(description="Seconds to wait before that, where they are known.")]

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> ErrorInfo:
        """Build the error for a code, with the code's own status where none is given."""
        kind = CODES[code]
        return cls(kind.type, code, message, param, status or kind.status, kind.retryable, retry_after)


class ErrorBody(msgspec.Struct, frozen=True):
    """An error as the body of an HTTP response."""

    error: ErrorInfo


CONNECTION_LIMIT: Final = ErrorInfo.of("overloaded", "Connection limit reached.", retry_after=1)
DRAINING: Final = ErrorInfo.of("draining", "The server is shutting down.", retry_after=1)
GONE: Final = ErrorInfo.of(
    "generation_gone", "This position is of an earlier generation with this id. Start again from 0, without an epoch."
)
INTERNAL_ERROR: Final = ErrorInfo.of("internal_error", "Something went wrong inside the server.")
LOST: Final = ErrorInfo.of("generation_lost", "The replica that produced this answer was lost.")
RESTORING: Final = ErrorInfo.of("overloaded", "The shared log is being restored.", retry_after=1)
START_TIMED_OUT: Final = ErrorInfo.of("overloaded", "The generation could not be started in time.", retry_after=1)
UNREACHABLE: Final = ErrorInfo.of("overloaded", "The shared log cannot be reached.", retry_after=1)


class ChatError(Exception):
    """An error for the client: `info`. Foreign exceptions are translated to it at the boundary where they appear."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        limit: str | None = None,
    ) -> None:
        """Build the error for a code. `limit` names the limit that was reached, for the metrics."""
        super().__init__(message)
        self.limit = limit
        self.info = ErrorInfo.of(code, message, param=param, status=status, retry_after=retry_after)

    @classmethod
    def of(cls, info: ErrorInfo, *, limit: str | None = None) -> Self:
        """Build the exception for `info`."""
        error = cls(info.code, info.message, param=info.param, status=info.status, limit=limit)
        error.info = info
        return error
