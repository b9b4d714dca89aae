"""Comparing two arms: agreement beyond chance, and the regime that comparisons are grouped by."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from app.domain.candidate import Candidate

CALM_BELOW = 0.33
VOLATILE_FROM = 0.75


class Regime(StrEnum):
    """By ATR percentile: below 0.33, below 0.75, from 0.75, or not known."""

    CALM = "calm"
    NORMAL = "normal"
    VOLATILE = "volatile"
    UNKNOWN = "unknown"


def regime(candidate: Candidate) -> Regime:
    """The candidate's regime."""
    percentile = candidate.volatility_pct
    if percentile is None:
        return Regime.UNKNOWN
    if percentile < CALM_BELOW:
        return Regime.CALM
    return Regime.NORMAL if percentile < VOLATILE_FROM else Regime.VOLATILE


def cohens_kappa(pairs: Iterable[tuple[bool, bool]]) -> float:
    """Cohen (1960): (p_o - p_e) / (1 - p_e); NaN without pairs or when chance agreement is
    certain."""
    both = [(int(a), int(b)) for a, b in pairs]
    if not both:
        return float("nan")
    n = len(both)
    observed = sum(a == b for a, b in both) / n
    first, second = sum(a for a, _ in both) / n, sum(b for _, b in both) / n
    expected = first * second + (1 - first) * (1 - second)
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)
