"""The environment, read once into a frozen value. Every setting of docs/settings.md, its default and its unit."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

UpstreamName = Literal["auto", "openai", "demo"]


class SettingsError(ValueError):
    """The environment does not make sense; the message names each variable and what is wrong with it."""


class Settings(BaseModel):
    """How this process runs. Sizes are bytes, times are seconds."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    openai_api_key: str | None = Field(None, alias="OPENAI_API_KEY", repr=False, pattern=r"^[!-~]+$")
    openai_base_url: str | None = Field(None, alias="OPENAI_BASE_URL", pattern=r"^https?://")
    upstream: UpstreamName = Field("auto", alias="WS_CHAT_UPSTREAM")
    model: str = Field("gpt-4o-mini", alias="WS_CHAT_MODEL")
    models: tuple[str, ...] = Field((), alias="WS_CHAT_MODELS")
    api_keys: tuple[str, ...] = Field((), alias="WS_CHAT_API_KEYS", repr=False)
    allowed_origins: tuple[str, ...] = Field((), alias="WS_CHAT_ALLOWED_ORIGINS")
    resume_window: float = Field(30.0, alias="WS_CHAT_RESUME_WINDOW", ge=0, allow_inf_nan=False)
    retention: float = Field(300.0, alias="WS_CHAT_RETENTION", ge=0, allow_inf_nan=False)
    max_frame_bytes: int = Field(4 * 1024 * 1024, alias="WS_CHAT_MAX_FRAME_BYTES", gt=0)
    max_connections: int = Field(20_000, alias="WS_CHAT_MAX_CONNECTIONS", gt=0)
    max_generations: int = Field(10_000, alias="WS_CHAT_MAX_GENERATIONS", gt=0)
    max_generations_per_connection: int = Field(16, alias="WS_CHAT_MAX_GENERATIONS_PER_CONNECTION", gt=0)
    max_generations_per_principal: int | None = Field(None, alias="WS_CHAT_MAX_GENERATIONS_PER_PRINCIPAL", gt=0)
    requests_per_minute: int | None = Field(None, alias="WS_CHAT_REQUESTS_PER_MINUTE", gt=0)
    upstream_timeout: float = Field(120.0, alias="WS_CHAT_UPSTREAM_TIMEOUT", gt=0, allow_inf_nan=False)
    write_timeout: float = Field(30.0, alias="WS_CHAT_WRITE_TIMEOUT", gt=0, le=2_000_000, allow_inf_nan=False)
    drain_timeout: float = Field(25.0, alias="WS_CHAT_DRAIN_TIMEOUT", ge=0, allow_inf_nan=False)
    redis_urls: tuple[str, ...] = Field((), alias="WS_CHAT_REDIS_URL", repr=False)
    log_content: bool = Field(default=False, alias="WS_CHAT_LOG_CONTENT")

    @field_validator("models", "api_keys", "allowed_origins", "redis_urls", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return tuple(part for part in map(str.strip, value.split(",")) if part) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _fit_for_headers(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"[!-~]+", key) for key in keys):
            raise ValueError("a key is made of visible ASCII characters")
        return keys

    @field_validator("allowed_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin not in ("*", "null") and not re.fullmatch(
                r"[a-z][a-z0-9+.-]*://[^/?#]+/?", origin, re.IGNORECASE
            ):
                raise ValueError(f"{origin!r} is no origin, such as https://chat.example.com")
        return tuple(origin.lower().rstrip("/") for origin in origins)

    @field_validator("redis_urls")
    @classmethod
    def _leads_to_redis(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.match(r"(rediss?(\+cluster)?|unix)://", url) for url in urls):
            raise ValueError("a URL of Redis begins with redis://, rediss://, unix:// or redis+cluster://")
        return urls

    @property
    def uses_demo(self) -> bool:
        """Whether the built-in demo answers: asked for, or nothing else is configured."""
        if self.upstream == "auto":
            return not (self.openai_api_key or self.openai_base_url)
        return self.upstream == "demo"

    @field_validator("openai_api_key", mode="before")
    @classmethod
    def _no_line_break(cls, value: Any) -> Any:
        # A key read from a file ends in a line break; anything else that a header cannot hold is a mistake.
        return value.strip() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_an_upstream(self) -> Settings:
        if self.upstream == "openai" and not (self.openai_api_key or self.openai_base_url):
            raise ValueError("WS_CHAT_UPSTREAM=openai needs OPENAI_API_KEY or OPENAI_BASE_URL")
        return self

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables; one that is set to nothing counts as not set.

        Raises SettingsError.
        """
        names = {field.alias for field in cls.model_fields.values()}
        given = {name: value for name, value in environ.items() if name in names and value.strip()}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError("; ".join(map(_told, error.errors()))) from None

    @classmethod
    def load(cls) -> Settings:
        """Read the process's environment and the file `.env` of the working directory, which it goes before.

        Raises SettingsError.
        """
        try:
            file = dotenv_values(".env")
        except UnicodeDecodeError as error:
            raise SettingsError(f"the file .env is not UTF-8: {error}") from None
        return cls.from_environment({**{name: value for name, value in file.items() if value}, **os.environ})


def _told(fault: ErrorDetails) -> str:
    if not fault["loc"]:
        return fault["msg"]
    name = fault["loc"][0]
    value = "" if name in ("OPENAI_API_KEY", "WS_CHAT_API_KEYS", "WS_CHAT_REDIS_URL") else f"={fault['input']!r}"
    return f"{name}{value}: {fault['msg']}"
