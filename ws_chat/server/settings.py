"""The settings: environment variables (docs/settings.md), read once into a frozen value."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ws_chat.protocol.urls import redact_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails


_OTHER_VARIABLES: Final = frozenset({"WS_CHAT_URL", "WS_CHAT_API_KEY", "WS_CHAT_SYSTEM", "WS_CHAT_KEY"})
"""Variables of `ws-chat chat`, and of the commands that the page shows."""
_OPTIONS: Final = frozenset(
    [
        "app",
        "host",
        "port",
        "uds",
        "uds-mode",
        "workers",
        "log-level",
        "ssl-keyfile",
        "ssl-certfile",
        "forwarded-allow-ips",
        "root-path",
    ]
)
"""Options of `ws-chat serve` (server/run.py, ServeOptions), which have no variables."""


class SettingsError(ValueError):
    """A setting is wrong. The message names each variable, its value (never a secret), the fault and an example."""


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = tuple(part for part in map(str.strip, value.split(",")) if part)
    if not parts:  # as of "$KEY,$OTHER_KEY" with neither set: without keys, everybody would have access
        raise ValueError("must have at least one entry, or not be set")
    return parts


def _matches(pattern: str, fault: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(fault)
        return value

    return AfterValidator(check)


_COMMA_SEPARATED: Final = BeforeValidator(_split)
_STRIPPED: Final = BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)
_PLACE: Final = r"://([^][/?#]*@)?(\[[^]/?#]*\]|[^][/?#:@]*)(:\d*)?([/?#].*)?"
_QUOTING: Final = "percent-encode special characters of a password"

Count: TypeAlias = Annotated[int, Field(gt=0)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# A key that was read from a file may end in a line break; any other character that a header cannot hold is a mistake.
Key: TypeAlias = Annotated[str, _STRIPPED, _matches(r"[!-~]+", "must consist of visible ASCII characters")]
BaseURL: TypeAlias = Annotated[str, _matches("https?" + _PLACE, f"must be an http:// or https:// URL; {_QUOTING}")]
RedisURL: TypeAlias = Annotated[
    str,
    _matches(
        r"(rediss?(\+cluster|\+sentinel)?|unix)" + _PLACE,
        f"must be a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL; {_QUOTING}",
    ),
]
Origin: TypeAlias = Annotated[
    str,
    _matches(r"\*|null|[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]+/?", "must be a scheme and a host, without a path"),
    AfterValidator(lambda origin: origin.lower().rstrip("/")),
]
Host: TypeAlias = Annotated[
    str,
    _matches(r"[^\s/@]+", "must be host names or shell patterns, without a scheme and a path"),
    AfterValidator(str.lower),
]


class Settings(BaseModel):
    """How this process runs. Sizes are bytes, times are seconds.

    The variable of a field is `WS_CHAT_` and its name, unless an alias says otherwise.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=lambda name: f"WS_CHAT_{name.upper()}",
        validate_by_name=True,
        validate_by_alias=True,
    )

    openai_api_key: Key | None = Field(None, alias="OPENAI_API_KEY", repr=False, examples=["your-key"])
    openai_base_url: BaseURL | None = Field(
        None, alias="OPENAI_BASE_URL", repr=False, examples=["http://127.0.0.1:11434/v1"]
    )
    upstream: Literal["auto", "openai", "demo"] = "auto"
    model: str = "gpt-4o-mini"
    models: Annotated[tuple[str, ...], _COMMA_SEPARATED] = ()
    api_keys: Annotated[tuple[Key, ...], _COMMA_SEPARATED] = Field((), repr=False, examples=["a-long-random-key"])
    allowed_origins: Annotated[tuple[Origin, ...], _COMMA_SEPARATED] = Field((), examples=["https://chat.example.com"])
    allowed_hosts: Annotated[tuple[Host, ...], _COMMA_SEPARATED] = Field((), examples=["chat.example.com"])
    resume_window: Seconds = 30
    retention: Seconds = 300
    max_frame_bytes: Count = 4 * 1024 * 1024
    max_answer_bytes: Count = 64 * 1024 * 1024
    max_connections: Count = 20_000
    max_generations: Count = 10_000
    max_generations_per_connection: Count = 16
    max_generations_per_principal: Count | None = Field(None, examples=[4])
    requests_per_minute: Count | None = Field(None, examples=[60])
    free_requests_per_minute: Count = 60_000
    upstream_timeout: Seconds = Field(120, gt=0)
    write_timeout: Seconds = Field(30, gt=0, le=2_000_000)
    drain_delay: Seconds = 0
    drain_timeout: Seconds = 25
    redis_urls: Annotated[tuple[RedisURL, ...], _COMMA_SEPARATED] = Field(
        (), alias="WS_CHAT_REDIS_URL", repr=False, examples=["redis://127.0.0.1:6379"]
    )
    log_content: bool = Field(default=False, examples=["true"])

    @model_validator(mode="after")
    def _has_an_upstream(self) -> Settings:
        if self.upstream == "openai" and not (self.openai_api_key or self.openai_base_url):
            raise ValueError("WS_CHAT_UPSTREAM=openai needs OPENAI_API_KEY or OPENAI_BASE_URL")
        return self

    @property
    def uses_demo(self) -> bool:
        """Whether the built-in demo answers: chosen, or because no upstream is configured."""
        if self.upstream == "auto":
            return not (self.openai_api_key or self.openai_base_url)
        return self.upstream == "demo"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables; an empty one counts as not set. Raises SettingsError."""
        names = {field.alias for field in cls.model_fields.values()}
        given = {name: value for name, value in environ.items() if name in names and value.strip()}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError("; ".join(map(_message, error.errors()))) from None

    @classmethod
    def load(cls) -> Settings:
        """Read the process's environment, and the file `.env` for what is not set there. Raises SettingsError."""
        return cls.from_environment(_environment())


def unknown_variables() -> list[str]:
    """Return a warning for each variable of the environment or `.env` that has our prefix and is no setting."""
    known = {str(field.alias) for field in Settings.model_fields.values()} | _OTHER_VARIABLES
    warnings = []
    for name in sorted(_environment()):
        if name.startswith("WS_CHAT_") and name not in known:
            # Compared without the prefix, which alone makes short names alike.
            names = [each.removeprefix("WS_CHAT_") for each in known if each.startswith("WS_CHAT_")]
            near = difflib.get_close_matches(name.removeprefix("WS_CHAT_"), names, 1)
            option = name.removeprefix("WS_CHAT_").lower().replace("_", "-")
            if option in _OPTIONS:
                hint = f" It is an option of the command line: ws-chat serve --{option}."
            else:
                hint = f" Is it WS_CHAT_{near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting and has no effect.{hint}")
    return warnings


def _environment() -> dict[str, str]:
    try:
        file = dotenv_values(".env")
    except UnicodeDecodeError as error:
        raise SettingsError(f"the file .env is not UTF-8: {error}") from None
    return {**{name: value for name, value in file.items() if value}, **os.environ}


def _message(error: ErrorDetails) -> str:
    fault = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be").partition(", unable to")[0]
    if not error["loc"]:
        return fault
    name, value = error["loc"][0], error["input"]
    field = next(field for field in Settings.model_fields.values() if field.alias == name)
    if name == "OPENAI_BASE_URL":
        value = redact_url(value)
    shown = f", got {value!r}" if field.repr or name == "OPENAI_BASE_URL" else ""
    return f"{name} {fault}{shown} (example: {name}={field.examples[0] if field.examples else field.default})"
