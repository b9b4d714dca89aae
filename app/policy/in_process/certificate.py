"""What vouches for rough readings of a version: how far they were from exact ones, on many prompts,
on processors of this kind.

A rough reading reads the user's text in bfloat16 and everything behind it in float32. What that
moves depends on the version's adapter, on what multiplies bfloat16, and on the library that calls
it; a certificate is good for these alone. `advisor-train certify` makes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import structlog
import torch
from pydantic import Field, model_validator

from app.domain.canonical import canonical_json
from app.domain.errors import InvalidRecord, ModelFileError
from app.domain.fields import Hash, Instant, Record, ShortText
from app.domain.model.manifest import ModelManifest
from app.policy.versions.files import read_object

LEAST_PROMPTS = 2000
SLACK = 1.5
"""Of the largest difference seen, so that what is watched afterwards does not pass it by luck."""
CONFIDENCE = 0.95
MOST_NATS = 0.1
"""What is rougher than this is no reading of the same version."""
log = structlog.get_logger()


class Certificate(Record):
    """How far rough readings were from exact ones; nats, of any label's log-probability."""

    model_version: ShortText
    manifest_hash: Hash
    kind: ShortText = Field(description="of processor: what multiplies bfloat16")
    torch: ShortText = Field(description="version of the library that calls it")
    created_at: Instant
    prompts: int = Field(ge=LEAST_PROMPTS)
    mean: float = Field(ge=0)
    largest: float = Field(gt=0)
    within: float = Field(gt=0, le=MOST_NATS, description="what a rough reading may be off by")
    actions_equal: float = Field(ge=0, le=1, description="share of prompts, before any check")
    read_again: float = Field(
        ge=0, le=1, description="share of prompts whose action is not ahead by enough"
    )

    @model_validator(mode="after")
    def allows_for_what_was_seen(self) -> Self:
        """Raises ValueError where less is allowed for than was measured."""
        if not self.mean <= self.largest <= self.within:
            raise ValueError("`mean`, `largest` and `within` must not fall: this was not measured")
        return self

    @property
    def quantile(self) -> float:
        """At least this share of such prompts differ by no more than `largest`, at 95 %
        confidence, whatever the distribution (Wilks 1941)."""
        return float((1 - CONFIDENCE) ** (1 / self.prompts))

    @classmethod
    def find(cls, manifest: ModelManifest, places: Sequence[Path]) -> Self | None:
        """The first that vouches for this version on this machine; None where none does, or nothing
        here multiplies bfloat16 fast."""
        kind = kind_here()
        if kind is None:
            return None
        for place in places:
            path = place / _name_of(manifest.model_version, kind)
            if not path.is_file():
                continue
            try:
                found = cls.from_json(read_object(path))
            except (InvalidRecord, ModelFileError) as error:
                log.error("a certificate cannot be read", path=str(path), error=str(error)[:300])
                continue
            if (found.manifest_hash, found.kind, found.torch) == (
                manifest.hash(),
                kind,
                torch.__version__,
            ):
                return found
            log.warning("a certificate is of another version, processor or torch", path=str(path))
        return None

    def write(self, place: Path) -> Path:
        """Keep it where `find` looks."""
        place.mkdir(parents=True, exist_ok=True)
        path = place / _name_of(self.model_version, self.kind)
        path.write_bytes(canonical_json(self.as_json()) + b"\n")
        return path


def _name_of(model_version: str, kind: str) -> str:
    return f"{model_version}.{kind}.json"


def kind_here() -> str | None:
    """What multiplies bfloat16 on this processor; None where nothing does so fast."""
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else None


def apart(some: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference of any number; infinite where there is none to compare."""
    found = max(abs(a - b) for a, b in zip(some, others, strict=True))
    return found if math.isfinite(found) else math.inf
