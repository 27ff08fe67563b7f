"""Everything that can go wrong, on one page: code, type, HTTP status, and whether trying again can help.

The same error object goes out at both doors. Its shape follows the OpenAI reference (`type`, `code`, `message`,
`param`), with `status` and `retryable` added. Knows no framework; a door turns an error into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, Self, TypedDict

from msgspec import Meta


class Kind(NamedTuple):
    """What a code always means: its type, its HTTP status and whether the same request may succeed later."""

    type: str
    status: int
    retryable: bool


CODES: Final[dict[str, Kind]] = {
    "invalid_json": Kind("invalid_request_error", 400, False),
    "invalid_request": Kind("invalid_request_error", 400, False),
    "unauthorized": Kind("authentication_error", 401, False),
    "origin_not_allowed": Kind("permission_error", 403, False),
    "model_not_allowed": Kind("permission_error", 403, False),
    "not_found": Kind("invalid_request_error", 404, False),
    "id_conflict": Kind("invalid_request_error", 409, False),
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


class ErrorObject(TypedDict):
    """What went wrong, the same at both doors. `message` is for people; `param` names the field at fault."""

    type: Annotated[str, Meta(extra_json_schema={"enum": sorted({kind.type for kind in CODES.values()})})]
    code: Annotated[str, Meta(extra_json_schema={"enum": list(CODES)})]
    message: str
    param: str | None
    status: Annotated[int, Meta(ge=400, le=599, description="As of an HTTP response.")]
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed later.")]


class ErrorBody(TypedDict):
    """An error as the body of an HTTP response."""

    error: ErrorObject


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """One error as a value: what a log keeps and a frame carries.

    `message` is for people: no keys, no stack traces, nothing of another client. `param` names the field at fault.
    `retry_after` (seconds) becomes the `Retry-After` header where there is one.
    """

    code: str
    message: str
    param: str | None = None
    status: int = 0
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if not self.status:
            object.__setattr__(self, "status", CODES[self.code].status)

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return CODES[self.code].retryable

    def as_dict(self) -> ErrorObject:
        """Return the error object of the contract."""
        kind = CODES[self.code]
        return {
            "type": kind.type,
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "status": self.status,
            "retryable": kind.retryable,
        }


class ChatError(Exception):
    """An error on its way to the caller. `info` is all there is to tell.

    Foreign exceptions are translated to it at the boundary where they appear, and nowhere else.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int = 0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.info = ErrorInfo(code, message, param, status, retry_after)

    @classmethod
    def of(cls, info: ErrorInfo) -> Self:
        """Return the exception for an error that is there as a value."""
        return cls(info.code, info.message, param=info.param, status=info.status, retry_after=info.retry_after)
