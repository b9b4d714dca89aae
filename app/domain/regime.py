"""Volatility regime of a candidate: what metrics, views and reports group by."""

from __future__ import annotations

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
    return (
        Regime.CALM
        if percentile < CALM_BELOW
        else Regime.NORMAL
        if percentile < VOLATILE_FROM
        else Regime.VOLATILE
    )
