"""Sole reader of environment variables. Entry points read it once and pass values on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.errors import AdvisorError
from app.domain.fields import describe, shown

OWN_CHECKPOINTS = "checkpoints.jsonl"
"""Under ADVISOR_HOME, where `advisor up` has the writer keep them."""
SCRIPTED = "scripted"
"""The value of MODEL that asks for no model at all, but for the shipped fake."""


SECRETS = frozenset(
    {
        *("database_url", "redis_url", "vllm_url", "checkpoints"),
        *("notices", "admin_token", "writer_password", "reader_password", "analyst_password"),
    }
)
"""Settings that hold passwords or tokens, or may: an address has them in front of the host."""
PREFIX = "ADVISOR_"
OF_OTHERS = frozenset(
    {"ADVISOR_URL", "ADVISOR_TOKEN", "ADVISOR_TOKEN_FILE", "ADVISOR_METRICS_TOKEN_FILE"}
)
"""Variables that callers of the service and `advisor-train` read."""
OF_TESTS = ("ADVISOR_TEST_", "ADVISOR_FUZZ_")
"""Variables with these beginnings are read by tests."""


class SettingsError(AdvisorError):
    """An environment variable is missing or wrong."""


class Clock(StrEnum):
    """`wall` judges at the time of the request; `request` judges at the scenario's own time, to
    replay history."""

    WALL = "wall"
    REQUEST = "request"


class Settings(BaseSettings):
    """Variables are prefixed with ADVISOR_, but for DATABASE_URL, REDIS_URL, MODEL and VLLM_URL."""

    model_config = SettingsConfigDict(
        env_prefix="ADVISOR_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    database_url: str | None = Field(
        None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="Postgres of the shadow log; default: what `advisor up` left under HOME",
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Valkey or Redis of the journal; with appendonly yes",
    )
    model: str | None = Field(
        None,
        validation_alias=AliasChoices("MODEL", "model"),
        description=(
            "directory of the primary version, or `scripted`, whatever the aliases say; default:"
            " the version that the alias `shadow` names, else the one that came with this release"
        ),
    )
    shadow_models: str = Field(
        "", description="further model directories in shadow, separated by commas"
    )
    shipped_models: Path = Field(
        Path("models"), description="versions that came with this release; only read"
    )
    prompt_tokens: int = Field(1024, ge=128, description="longest prompt; longer ones abstain")
    vllm_url: str | None = Field(
        None,
        validation_alias=AliasChoices("VLLM_URL", "vllm_url"),
        description="where vLLM serves MODEL, several servers with commas in between; default: the"
        " model runs in the service",
    )
    vllm_model: str | None = Field(
        None,
        description="name under which vLLM serves MODEL; default: MODEL as it stands, of an adapter"
        " the version",
    )
    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8321, ge=0, le=65535, description="port that the API listens on")
    writer_metrics_port: int = Field(
        8322, ge=0, le=65535, description="port of the writer's metrics"
    )
    instance: str = Field(
        "", description="set by `advisor up`, and told by /healthz: what answers is its own child"
    )
    home: Path = Field(
        Path("var"), description="HOME: models, spool, tokens, and what `advisor up` keeps"
    )
    limits: Path = Field(
        Path("limits.toml"), description="limits of the rules; read again when it changes"
    )
    limits_profiles: Path = Field(
        Path("limits"),
        description="folder of limits by principal: NAME.toml judges what NAME asks, ADVISOR_LIMITS"
        " what everybody else does",
    )
    clock: Clock = Field(
        Clock.WALL,
        description="`wall` judges at the time of the request, `request` at the scenario's own, to"
        " replay history",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="API processes on that port, looked after by a parent; with several, one more"
        " runs the model for all",
    )
    threads: int = Field(
        1, ge=1, le=256, description="torch threads; 2 or more only on a quiet host"
    )
    engine: Literal["auto", "torch", "onednn"] = Field(
        "auto",
        description="what multiplies in this process; auto: the fastest that says the same, and"
        " bfloat16 first where a certificate allows it",
    )
    max_batch: int = Field(4, ge=1, le=256, description="prompts that the model reads at once")
    queue_size: int = Field(
        64, ge=1, le=10_000, description="prompts that may wait for the model; further ones abstain"
    )
    deadline_ms: int = Field(
        2000, ge=10, le=60_000, description="time to answer a request that names none"
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="bytes of one body")
    max_candidates: int = Field(32, ge=1, le=256, description="elements of one list")
    max_pending: int = Field(
        2048, ge=1, description="accepted requests (`respond-async`) that may wait to be decided"
    )
    max_values: int = Field(32_768, ge=1024, description="JSON values in one body")
    max_extra_bytes: int = Field(
        32_768, ge=256, description="keys outside the schema, as JSON, in one candidate or report"
    )
    max_header_bytes: int = Field(16_384, ge=1024, description="bytes of one request's header")
    max_headers: int = Field(64, ge=16, description="fields of one request's header")
    max_connections: int = Field(512, ge=8, description="open connections")
    request_s: float = Field(10.0, gt=0, le=600, description="time to send one request")
    idle_s: int = Field(5, ge=1, le=600, description="time from an answer to the next request")
    rate_per_s: float = Field(
        5000.0,
        gt=0,
        description="requests a second of one principal or address, on average over two seconds",
    )
    max_reports: int = Field(
        64, ge=1, description="new reports of one kind on one decision, in the life of a process"
    )
    allowed_hosts: str = Field(
        "", description="names under which callers reach the service, separated by commas"
    )
    public_origin: str = Field(
        "",
        description="addresses of proxies before the service, as browsers name them"
        " (`https://advisor.example`), separated by commas; their names are allowed hosts too",
    )
    max_spool_bytes: int = Field(
        1_073_741_824, ge=65_536, description="bytes that may wait on disk while Valkey is away"
    )
    admin_token: str | None = Field(
        None, min_length=8, description="a token of an operator, beside those of the file"
    )
    tokens: Path | None = Field(
        None, description="file of tokens, hashed; default: HOME/tokens.json"
    )
    open: Literal["loopback"] | None = Field(
        None,
        description="`loopback`: whoever asks from this machine without a token may do everything",
    )
    writer_password: str | None = Field(
        None, description="`advisor migrate` lets the role advisor_writer log in with it"
    )
    reader_password: str | None = Field(
        None, description="`advisor migrate` lets the role advisor_reader log in with it"
    )
    analyst_password: str | None = Field(
        None, description="`advisor migrate` lets the role advisor_analyst log in with it"
    )
    deciders: Path | None = Field(
        None, description="TOML file of decision models elsewhere, asked after the reply"
    )
    checkpoints: str | None = Field(
        None,
        description="where the writer keeps signed checkpoints: a file, the URL of a bucket"
        " (extra `objects`), or `log:`; none by default, a file under ADVISOR_HOME with"
        " `advisor up`",
    )
    checkpoint_key: Path | None = Field(
        None,
        description="Ed25519 key that signs them, made when absent; default: HOME/checkpoint.key",
    )
    bars: Path | None = Field(
        None,
        description="folder of SYMBOL_1h.parquet or .csv that pages draw candles of; default:"
        " HOME/bars, where there is one",
    )
    traces: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]",
        description="URL of an OTLP collector (`http://127.0.0.1:4318/v1/traces`) that gets spans"
        " of decisions asked for with a sampled `traceparent` (extra `otel`)",
    )
    drift: Path | None = Field(
        None,
        description="folder where `advisor-train drift` keeps its newest looks, for a page;"
        " default: HOME/drift",
    )
    notices: str = Field(
        "",
        description="addresses, by apprise's rules and separated by spaces, that `advisor notices"
        " watch` tells what happens (`tgram://...`, `slack://...`, `json://host/path`); `file:PATH`"
        " gets a line of JSON a notice",
    )
    runbooks: str = Field(
        "", description="where this release's folder is found in a browser; notices link to docs"
    )
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = Field(
        "info", description="least level of a line in the log"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`json`: each line of the log is one JSON object"
    )

    @model_validator(mode="after")
    def vllm_needs_a_model(self) -> Self:
        """The tokenizer and the manifest come from MODEL even when vLLM runs the weights."""
        if self.vllm_url and not self.model:
            raise ValueError("VLLM_URL needs MODEL: the directory of the model that vLLM serves")
        return self

    @property
    def logs_json(self) -> bool:
        """Whether the log is JSON."""
        return self.log_format == "json"

    @property
    def models_dir(self) -> Path:
        """Where imported and published model versions live."""
        return self.home / "models"

    @property
    def manifests_dir(self) -> Path:
        """Where manifests of models that bring none are kept."""
        return self.models_dir / "manifests"

    @property
    def certificate_dirs(self) -> tuple[Path, ...]:
        """Where certificates of versions are looked for: made here, or shipped."""
        return (self.models_dir / "certificates", self.shipped_models / "certificates")

    @property
    def model_roots(self) -> tuple[Path, ...]:
        """Where model versions are looked for."""
        beside = (Path(self.model).parent,) if self.model and self.model != SCRIPTED else ()
        return (self.models_dir, self.shipped_models, *beside)

    @property
    def signing_key(self) -> Path:
        """Where the key of the checkpoints lies."""
        return self.checkpoint_key or self.home / "checkpoint.key"

    @field_validator("deciders", mode="before")
    @classmethod
    def empty_is_none(cls, value: object) -> object:
        """Compose writes what is not set as empty."""
        return value or None

    @field_validator("public_origin")
    @classmethod
    def origins_have_a_name(cls, value: str) -> str:
        """A scheme, a name, perhaps a port, and nothing behind them."""
        for origin in _listed(value):
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
                raise ValueError(f"{origin!r} is no origin; write https://advisor.example")
        return value

    @property
    def origins(self) -> frozenset[str]:
        """What the header Origin may be beside the address that was asked."""
        return frozenset(_listed(self.public_origin))

    @property
    def hosts(self) -> frozenset[str]:
        """Names that the header Host may have; numbers and `localhost` always."""
        proxies = (urlsplit(origin).hostname or "" for origin in self.origins)
        names = {"localhost", self.host.lower(), *_listed(self.allowed_hosts), *proxies}
        return frozenset(names - {""})

    @property
    def tokens_file(self) -> Path:
        """Where it is written who holds a token."""
        return self.tokens or self.home / "tokens.json"

    @property
    def token_uses(self) -> Path:
        """Where last uses of tokens are noted."""
        return self.home / "token-uses"

    @property
    def who_may(self) -> tuple[Path, Path, str | None, bool]:
        """What `Tokens` is made of."""
        return (self.tokens_file, self.token_uses, self.admin_token, self.open is not None)

    @property
    def logins(self) -> dict[str, str]:
        """Passwords of the database's roles that were given one."""
        given = {
            "advisor_writer": self.writer_password,
            "advisor_reader": self.reader_password,
            "advisor_analyst": self.analyst_password,
        }
        return {role: password for role, password in given.items() if password}

    @property
    def bars_folder(self) -> Path | None:
        """Where bars for candles lie."""
        default = self.home / "bars"
        return self.bars or (default if default.is_dir() else None)

    @property
    def checkpoints_here(self) -> str | None:
        """Where checkpoints are: ADVISOR_CHECKPOINTS, else the file that `advisor up` keeps; None
        where there is neither."""
        beside = self.home / OWN_CHECKPOINTS
        return self.checkpoints or (str(beside) if beside.exists() else None)

    @property
    def looks_folder(self) -> Path:
        """Where the newest looks at drift lie."""
        return self.drift or self.home / "drift"

    @staticmethod
    def secret(name: str) -> str | None:
        """The value of an environment variable that a file names."""
        return os.environ.get(name) or None

    @property
    def spool_dir(self) -> Path:
        """Where events wait on disk while the stream is away."""
        return self.home / "spool"


def _listed(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",") if part.strip()]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    alias = Settings.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else PREFIX + name.upper()


def with_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment, and more: for a program that is started."""
    return {**os.environ, **more}


def unknown_variables(names: Iterable[str]) -> list[str]:
    """What is wrong with every name that begins like a setting and is none."""
    settings = {variable(name) for name in Settings.model_fields}
    ours = {name.removeprefix(PREFIX): name for name in sorted(settings) if name.startswith(PREFIX)}
    wrong = []
    for name in sorted(names):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in settings | OF_OTHERS:
            continue
        if not upper.startswith(OF_TESTS):
            like = get_close_matches(upper.removeprefix(PREFIX), ours, n=1)
            meant = f"; did you mean {ours[like[0]]}?" if like else ""
            wrong.append(f"{name}: no such setting{meant}")
    return wrong


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment, then from `overrides`. Raises `SettingsError` with every
    violation, also for a variable that looks like a setting and is none."""
    wrong = unknown_variables(os.environ)
    try:
        given = {key: value for key, value in overrides.items() if value is not None}
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong += map(_violation, error.errors())
    if wrong:
        raise SettingsError(f"environment: {'; '.join(wrong)}; docs/settings.md lists all settings")
    return settings


def _violation(error: ErrorDetails) -> str:
    """One violation with the variable that it is about, and its value where that is no secret."""
    name = str(error["loc"][0]) if error["loc"] else ""
    field = name.lower().removeprefix("advisor_")
    if field not in Settings.model_fields:
        return describe([error])
    told = "" if field in SECRETS else f" (got {shown(error['input'])})"
    return f"{variable(field)}: {error['msg']}{told}"
