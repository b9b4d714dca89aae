"""Looks at drift as they lie in a folder: `advisor-train drift` writes the newest of each version
there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from app.domain.rules.files import read_ordinary

MOST_BYTES = 1_000_000
"""Of one look."""


class _Told(BaseModel):
    """What a look tells; a later release may tell more."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class Span(_Told):
    """What a window covers."""

    begin: AwareDatetime
    end: AwareDatetime
    decisions: int


class Reason(_Told):
    """Why it is not ok."""

    code: str
    name: str
    verdict: str
    observed: float
    limit: float
    says: str


class Shift(_Told):
    """How far one number's distribution moved."""

    name: str
    psi: float
    ks: float
    p_value: float
    reference_mean: float | None
    recent_mean: float | None
    reference_missing: float
    recent_missing: float


class Move(_Told):
    """How far a mean moved."""

    name: str
    reference: float
    recent: float
    p_value: float


class Expected(_Told):
    """Mean R of approvals before their outcomes are known."""

    expected: float
    low: float
    high: float
    reference: float


class Change(_Told):
    """The verdict changed."""

    since: AwareDatetime
    verdict: str


class Limits(_Told):
    """Thresholds that the page names."""

    alpha: float
    psi_watch: float
    psi_refresh: float
    rate_watch: float
    rate_refresh: float
    reward_watch: float
    reward_refresh: float
    min_decisions: int


class Look(_Told):
    """One look at a version."""

    model_version: str
    verdict: str
    looked_at: AwareDatetime
    reasons: tuple[Reason, ...]
    reference: Span
    recent: Span
    reference_features: str
    features: tuple[Shift, ...]
    distributions: tuple[Shift, ...]
    rates: tuple[Move, ...]
    residual: Move | None
    estimate: Expected | None
    age_days: float
    retrain_due: AwareDatetime
    expires: AwareDatetime


class Kept(_Told):
    """The newest look at a version, by which limits, and since when it has said so."""

    look: Look
    limits: Limits
    reasons_since: dict[str, AwareDatetime]
    changes: tuple[Change, ...]

    def since(self, reason: Reason) -> datetime | None:
        """When a look first gave this reason, of all that did without a break."""
        return self.reasons_since.get(f"{reason.code} {reason.name}")

    @property
    def verdict_since(self) -> datetime:
        """When a look first said what the newest says, of all that did without a break."""
        return self.changes[-1].since if self.changes else self.look.looked_at


class Looks(NamedTuple):
    """What lies in the folder: the newest look first; files that cannot be read."""

    kept: list[Kept]
    unreadable: list[str]


def looks_in(folder: Path) -> Looks:
    """Every version's newest look. A folder that is not there holds none."""
    found = Looks([], [])
    for path in sorted(folder.glob("*.json")):
        try:
            found.kept.append(Kept.model_validate_json(read_ordinary(path, MOST_BYTES)))
        except (OSError, ValidationError):
            found.unreadable.append(path.name)
    found.kept.sort(key=lambda kept: kept.look.looked_at, reverse=True)
    return found
