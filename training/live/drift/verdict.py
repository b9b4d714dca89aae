"""From distances to a verdict: which of them count, how much, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from training.config.judging import DriftConfig
from training.live.drift.measures import Change, Estimate, Move, Shift


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


class Judge:
    """Turns numbers into reasons."""

    def __init__(self, config: DriftConfig) -> None:
        self._config = config

    def _level(
        self, observed: float, watch: float, refresh: float
    ) -> tuple[DriftVerdict, float] | None:
        if observed >= refresh:
            return DriftVerdict.REFRESH, refresh
        return (DriftVerdict.WATCH, watch) if observed >= watch else None

    def too_few(self, reference: int, recent: int) -> Reason:
        """Silence is no good news."""
        least = self._config.min_decisions
        says = (
            f"{reference} decisions in the reference and {recent} recent ones: {least} of each are"
            " needed to tell"
        )
        return Reason(
            DriftReason.TOO_FEW,
            DriftVerdict.WATCH,
            "decisions",
            min(reference, recent),
            least,
            says,
        )

    def features(self, shifts: Sequence[Shift]) -> list[Reason]:
        """Single features are to be watched; when many have shifted, the model is to be made
        anew."""
        config = self._config
        significant = [
            each for each in shifts if each.p_value < config.alpha and each.psi >= config.psi_watch
        ]
        reasons = [
            Reason(
                DriftReason.FEATURE,
                DriftVerdict.WATCH,
                each.name,
                each.psi,
                config.psi_watch,
                f"{each.name} shifted: PSI {each.psi:.2f}, KS {each.ks:.2f}",
            )
            for each in sorted(significant, key=lambda each: -each.psi)
        ]
        far = sum(each.psi >= config.psi_refresh for each in significant)
        share = far / len(shifts) if shifts else 0.0
        if far and share >= config.features_refresh:
            says = f"{far} of {len(shifts)} features have a PSI of {config.psi_refresh} or more"
            reasons.append(
                Reason(
                    DriftReason.FEATURES,
                    DriftVerdict.REFRESH,
                    "features",
                    share,
                    config.features_refresh,
                    says,
                )
            )
        return reasons

    def distributions(self, shifts: Sequence[Shift]) -> list[Reason]:
        """Label mass and approval probability."""
        config = self._config
        return [
            Reason(
                DriftReason.DISTRIBUTION,
                level[0],
                each.name,
                each.psi,
                level[1],
                f"{each.name}: PSI {each.psi:.2f}",
            )
            for each in shifts
            if each.p_value < config.alpha
            and (level := self._level(each.psi, config.psi_watch, config.psi_refresh))
        ]

    def rates(self, moves: Sequence[Move]) -> list[Reason]:
        """Agreement, approvals, abstentions."""
        config = self._config
        return [
            Reason(
                DriftReason.RATE,
                level[0],
                each.name,
                each.recent - each.reference,
                level[1],
                f"{each.name} went from {each.reference:.0%} to {each.recent:.0%}",
            )
            for each in moves
            if each.p_value < config.alpha
            and (
                level := self._level(
                    abs(each.recent - each.reference), config.rate_watch, config.rate_refresh
                )
            )
        ]

    def rewards(self, estimate: Estimate | None, residual: Move | None) -> list[Reason]:
        """Only losses count: a model that earns more than expected is no reason to replace it."""
        config, reasons = self._config, []
        if estimate is not None and estimate.high < estimate.reference:
            drop = estimate.reference - estimate.expected
            if level := self._level(drop, config.reward_watch, config.reward_refresh):
                says = (
                    f"approvals are expected to earn {estimate.expected:+.2f} R"
                    f" [{estimate.low:+.2f}, {estimate.high:+.2f}], before"
                    f" {estimate.reference:+.2f} R"
                )
                reasons.append(
                    Reason(
                        DriftReason.EXPECTED_REWARD,
                        level[0],
                        "expected_reward",
                        -drop,
                        level[1],
                        says,
                    )
                )
        if residual is not None and residual.p_value < config.alpha:
            drop = residual.reference - residual.recent
            if level := self._level(drop, config.reward_watch, config.reward_refresh):
                says = f"approvals earn {drop:.2f} R less than their confidence promises"
                reasons.append(
                    Reason(DriftReason.RESIDUAL, level[0], "residual", -drop, level[1], says)
                )
        return reasons

    def changes(self, found: Sequence[Change]) -> list[Reason]:
        """A change that the online detector noticed; a reward that fell asks for a refresh."""
        delta = self._config.adwin_delta
        return [
            Reason(
                DriftReason.CHANGE,
                (
                    DriftVerdict.REFRESH
                    if one.name == "reward" and one.after < one.before
                    else DriftVerdict.WATCH
                ),
                one.name,
                one.after - one.before,
                delta,
                f"{one.name} changed within the window, from {one.before:.2f} to {one.after:.2f}",
            )
            for one in found
        ]

    def age(self, days: float) -> list[Reason]:
        """The schedule, whatever the numbers say."""
        config = self._config
        if days >= config.expiry_days:
            says = f"the model is {days:.0f} days old: it expired after {config.expiry_days:g}"
            return [
                Reason(
                    DriftReason.EXPIRED,
                    DriftVerdict.REFRESH,
                    "age_days",
                    days,
                    config.expiry_days,
                    says,
                )
            ]
        if days >= config.retrain_days:
            says = (
                f"the model is {days:.0f} days old: a new one is due every {config.retrain_days:g}"
            )
            return [
                Reason(
                    DriftReason.RETRAIN_DUE,
                    DriftVerdict.WATCH,
                    "age_days",
                    days,
                    config.retrain_days,
                    says,
                )
            ]
        return []
