"""What a person says of decision models elsewhere: one table each in a TOML file, checked whole."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from app.domain.canonical import content_hash
from app.domain.errors import DeciderError, InvalidRecord, ModelFileError
from app.domain.fields import Record, ShortText, Text
from app.domain.model.brief import BRIEF_VERSION
from app.domain.model.inquiry import Inquiry, Template, listed
from app.domain.model.manifest import ModelManifest
from app.policy.versions.files import read_text

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,59}$"
SHIPPED_AT = datetime(2026, 11, 1, tzinfo=UTC)
"""Nobody knows when a model elsewhere was made: a manifest that told the time of a start would be
another one at each."""
Share = Annotated[float, Field(ge=0, le=1)]


class Protocol(StrEnum):
    """How a server is spoken to."""

    SYSTEMONE = "systemone"
    DECISIONS = "decisions"
    CHAT = "chat"


class Order(StrEnum):
    """In which order options are listed, where they are not named one by one."""

    LISTED = "listed"
    REVERSED = "reversed"


class Declared(Record):
    """One table of the file."""

    name: str = Field(pattern=NAME_PATTERN)
    protocol: Protocol
    url: ShortText = Field(description="what stands before /v1/...")
    model: ShortText = Field(min_length=1, description="its name there")
    key: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable of the key"
    )
    question: Template = Template.ACTION
    instructions: Text | None = None
    order: Order | tuple[str, ...] = Order.LISTED
    masked: bool = False
    share: Share = Field(1.0, description="of decisions that it is asked about")
    permuted_share: Share = Field(0.0, description="of those, asked again in another order")
    repeated_share: Share = Field(0.0, description="of those, asked the same again")
    timeout_s: float = Field(10.0, ge=0.1, le=60)
    at_once: int = Field(2, ge=1, le=32)
    waiting: int = Field(16, ge=0, le=1000)
    per_day: int = Field(1000, ge=1, description="questions, by UTC day")
    cost_per_day: float | None = Field(None, gt=0, description="US dollars, by UTC day")
    price_in: float | None = Field(None, ge=0, description="US dollars per million tokens")
    price_out: float | None = Field(None, ge=0, description="US dollars per million tokens")
    proxy: ShortText | None = None

    @field_validator("url", "proxy")
    @classmethod
    def plain_address(cls, value: str | None) -> str | None:
        """http or https, a host, and nothing that could be a secret."""
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write https://HOST or http://HOST:PORT")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("name the key with `key`; no user, query or fragment stands here")
        return value.rstrip("/")

    @model_validator(mode="after")
    def sound(self) -> Self:
        """The order fits the question; a key travels encrypted, or not beyond this machine; money
        can be counted where it is limited."""
        try:
            self.inquiry()
        except InvalidRecord as error:
            raise ValueError(str(error)) from error
        parts = urlsplit(self.url)
        if self.key is not None and parts.scheme == "http" and not _here(str(parts.hostname)):
            raise ValueError("a key is sent over https, or to this machine")
        if self.cost_per_day is not None and self.price_in is None:
            raise ValueError(
                "cost_per_day needs price_in (and price_out): a server need not tell what it costs"
            )
        return self

    def inquiry(self) -> Inquiry:
        """What it is asked."""
        order: tuple[str, ...] = listed(self.question)
        if self.order is Order.REVERSED:
            order = order[::-1]
        elif not isinstance(self.order, Order):
            order = self.order
        return Inquiry.from_json(
            {
                "template": self.question,
                "instructions": self.instructions,
                "order": order,
                "masked": self.masked,
            }
        )

    def manifest(self) -> ModelManifest:
        """The version that a server, a model and a question make together. Its name ends with their
        hash: what is asked otherwise is another version."""
        identity = {
            "protocol": self.protocol.value,
            "url": self.url,
            "model": self.model,
            "inquiry": self.inquiry().as_json(),
            "brief": BRIEF_VERSION,
        }
        mark = content_hash(identity).removeprefix("sha256:")[:8]
        return ModelManifest(
            model_version=f"{self.name}-{mark}",
            base_model=self.model,
            licence="of the server that is asked",
            created_at=SHIPPED_AT,
            files={},
            provenance={"decider": identity},
        )


def read_deciders(path: Path) -> tuple[Declared, ...]:
    """The tables of a file. Raises `DeciderError`, which names everything that is wrong."""
    try:
        document = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, ModelFileError) as error:
        raise DeciderError(f"{path} is not a TOML file: {error}") from error
    declared, wrong = [], []
    for name, table in document.items():
        try:
            declared.append(Declared.from_json(_named(name, table)))
        except InvalidRecord as error:
            wrong.append(f"[{name}] {error}")
    if wrong:
        raise DeciderError(f"{path}: {'; '.join(wrong)}")
    return tuple(declared)


def keys_of(
    declared: tuple[Declared, ...], secret: Callable[[str], str | None]
) -> dict[str, str | None]:
    """The key of each by its name; None where none is named. Raises `DeciderError` when a variable
    is not set."""
    missing = [each for each in declared if each.key is not None and not secret(each.key)]
    if missing:
        wanted = ", ".join(f"{each.key} of [{each.name}]" for each in missing)
        raise DeciderError(f"environment variables of keys are not set: {wanted}")
    return {each.name: None if each.key is None else secret(each.key) for each in declared}


def _named(name: str, table: Any) -> dict[str, Any]:
    """A table with its name. Raises `InvalidRecord` where it is no table, or has a name already."""
    if not isinstance(table, dict) or "name" in table:
        raise InvalidRecord("write a table: its name stands in square brackets")
    return {"name": name, **table}


def _here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
