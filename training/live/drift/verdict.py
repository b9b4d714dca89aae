"""From distances to a verdict: which of them count, how much, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from app.domain.text import counted
from training.config.judging import DriftConfig
from training.live.drift.measures import Change, ExpectedReward, Measure, Move, Shift


class DriftVerdict(StrEnum):
    """What to do. Ordered: the worst reason decides."""

    OK = "ok"
    WATCH = "watch"
    REFRESH = "refresh"


class DriftReason(StrEnum):
    """Why it is not ok."""

    TOO_FEW = "too_few"
    FEATURE = "feature"
    FEATURES = "features"
    RATE = "rate"
    DISTRIBUTION = "distribution"
    RESIDUAL = "residual"
    EXPECTED_REWARD = "expected_reward"
    CHANGE = "change"
    RETRAIN_DUE = "retrain_due"
    EXPIRED = "expired"


class Reason(NamedTuple):
    """One reason, with what was observed and the limit that it passed."""

    code: DriftReason
    verdict: DriftVerdict
    name: str
    observed: float
    limit: float
    says: str


class Compared(NamedTuple):
    """The numbers of a look; p-values corrected for all comparisons of it (Holm)."""

    features: tuple[Shift, ...] = ()
    """Most significant first."""
    measured: tuple[tuple[Measure, Shift | Move], ...] = ()
    residual: Move | None = None
    """Reward minus what the reference's curve expects, in R; None while outcomes are too few."""
    expected: ExpectedReward | None = None
    changes: tuple[Change, ...] = ()
    """Found in the recent window."""


def reasons_of(compared: Compared, config: DriftConfig) -> list[Reason]:
    """Everything about the numbers that asks for more than ok."""
    return [
        *_features(compared.features, config),
        *_measured(compared.measured, config),
        *_expected(compared.expected, config),
        *_residual(compared.residual, config),
        *_changes(compared.changes, config),
    ]


def too_few(reference: int, recent: int, config: DriftConfig) -> Reason:
    """Silence is no good news."""
    least = config.min_decisions
    says = (
        f"{reference} decisions in the reference and {recent} recent ones: {least} of each are"
        " needed to tell"
    )
    observed = min(reference, recent)
    return Reason(DriftReason.TOO_FEW, DriftVerdict.WATCH, "decisions", observed, least, says)


def of_age(days: float, config: DriftConfig) -> list[Reason]:
    """The schedule, whatever the numbers say."""
    old = f"the model is {counted(round(days), 'day')} old"
    if days >= config.expiry_days:
        code, verdict, limit = DriftReason.EXPIRED, DriftVerdict.REFRESH, config.expiry_days
        says = f"{old}: it expired after {limit:g}"
    elif days >= config.retrain_days:
        code, verdict, limit = DriftReason.RETRAIN_DUE, DriftVerdict.WATCH, config.retrain_days
        says = f"{old}: a new one is due every {limit:g}"
    else:
        return []
    return [Reason(code, verdict, "age_days", days, limit, says)]


def _graded(
    code: DriftReason,
    name: str,
    observed: float,
    size: float,
    limits: tuple[float, float],
    says: str,
) -> list[Reason]:
    """A reason when the size reaches a limit: to be watched, or to be made anew."""
    watch, refresh = limits
    if size >= refresh:
        return [Reason(code, DriftVerdict.REFRESH, name, observed, refresh, says)]
    if size >= watch:
        return [Reason(code, DriftVerdict.WATCH, name, observed, watch, says)]
    return []


def _features(shifts: Sequence[Shift], config: DriftConfig) -> list[Reason]:
    """Single features are to be watched; when many have shifted, the model is to be made anew."""
    shifted = [
        shift for shift in shifts if shift.p_value < config.alpha and shift.psi >= config.psi_watch
    ]
    reasons = [
        Reason(
            DriftReason.FEATURE,
            DriftVerdict.WATCH,
            shift.name,
            shift.psi,
            config.psi_watch,
            f"{shift.name} shifted: PSI {shift.psi:.2f}, KS {shift.ks:.2f}",
        )
        for shift in sorted(shifted, key=lambda shift: -shift.psi)
    ]
    far = sum(shift.psi >= config.psi_refresh for shift in shifted)
    share = far / len(shifts) if shifts else 0.0
    if far and share >= config.features_refresh:
        says = f"{far} of {len(shifts)} features have a PSI of {config.psi_refresh} or more"
        limit = config.features_refresh
        reasons.append(
            Reason(DriftReason.FEATURES, DriftVerdict.REFRESH, "features", share, limit, says)
        )
    return reasons


def _measured(
    measured: Sequence[tuple[Measure, Shift | Move]], config: DriftConfig
) -> list[Reason]:
    """Every registered measure that moved, whichever way."""
    reasons = []
    for measure, found in measured:
        code = DriftReason.DISTRIBUTION if isinstance(found, Shift) else DriftReason.RATE
        if found.p_value < config.alpha:
            reasons += _graded(
                code, found.name, found.size, abs(found.size), measure.limits(config), found.says
            )
    return reasons


def _expected(expected: ExpectedReward | None, config: DriftConfig) -> list[Reason]:
    """Only losses count: a model that earns more than before is no reason to replace it."""
    if expected is None or expected.high >= expected.reference:
        return []
    says = (
        f"approvals are expected to earn {expected.expected:+.2f} R"
        f" [{expected.low:+.2f}, {expected.high:+.2f}], before {expected.reference:+.2f} R"
    )
    drop = expected.reference - expected.expected
    limits = config.reward_watch, config.reward_refresh
    return _graded(DriftReason.EXPECTED_REWARD, "expected_reward", -drop, drop, limits, says)


def _residual(residual: Move | None, config: DriftConfig) -> list[Reason]:
    """Only losses count here too."""
    if residual is None or residual.p_value >= config.alpha:
        return []
    drop = -residual.size
    says = f"approvals earn {drop:.2f} R less than their confidence promises"
    limits = config.reward_watch, config.reward_refresh
    return _graded(DriftReason.RESIDUAL, "residual", -drop, drop, limits, says)


def _changes(changes: Sequence[Change], config: DriftConfig) -> list[Reason]:
    """A change that the online detector noticed; a reward that fell asks for a refresh."""
    reasons = []
    for change in changes:
        fell = change.name == "reward" and change.after < change.before
        says = (
            f"{change.name} changed within the window, from {change.before:.2f} to"
            f" {change.after:.2f}"
        )
        reasons.append(
            Reason(
                DriftReason.CHANGE,
                DriftVerdict.REFRESH if fell else DriftVerdict.WATCH,
                change.name,
                change.after - change.before,
                config.adwin_delta,
                says,
            )
        )
    return reasons
