"""Has the world, or the model's behaviour in it, moved away from what the model was made for? ok,
watch or refresh.

Two windows of decisions of one model version are compared: a reference (from the log, its features
also from a training artefact) and the recent past. Numbers are judged by size *and* significance: a
distance counts when it exceeds its threshold and its p-value, corrected for all comparisons of the
look (Holm), lies below `alpha`. docs/drift.md explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from sklearn.isotonic import IsotonicRegression

from app.domain.features import FEATURE_NAMES, features
from app.domain.scenario import Scenario
from training.arrays import Floats
from training.config.judging import DriftConfig
from training.live.drift.measures import (
    Change,
    Estimate,
    Move,
    Shift,
    changes,
    expected_reward,
    holm,
    move,
    shift,
)
from training.live.drift.verdict import DriftVerdict, Judge, Reason

RATES = ("agreement", "approval", "agent_approval", "abstention")
DISTRIBUTIONS = ("label_mass", "approve_probability")
STREAMS = ("agreement", "label_mass", "reward")


@dataclass(frozen=True, eq=False)
class Window:
    """Decisions of one model version in order of time; arrays of shape (N,), NaN where not known or
    not applicable."""

    features: Floats
    """Shape (N, len(FEATURE_NAMES))."""
    as_of: Floats
    """Seconds since 1970 UTC."""
    agreement: Floats
    approval: Floats
    agent_approval: Floats
    abstention: Floats
    """0 or 1."""
    label_mass: Floats
    approve_probability: Floats
    reward: Floats
    """R, of approvals with an outcome."""

    def __len__(self) -> int:
        return len(self.as_of)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Window:
        """From rows of `log_reader.judged_between`."""
        vectors: list[tuple[float, ...]] = []
        numbers: list[list[float]] = []
        for row in rows:
            vectors.append(features(Scenario.from_json(row["scenario"])))
            approves = row["advice_approve"]
            numbers.append(
                [
                    row["as_of"].timestamp(),
                    *(_number(row[name]) for name in ("agree", "advice_approve", "agent_approve")),
                    float(row["status"] == "abstained"),
                    _number(row["label_mass"]),
                    _number(row["approve_probability"]),
                    _number(row["advice_r"]) if approves else np.nan,
                ]
            )
        columns = np.array(numbers, dtype=float).reshape(-1, 8).T
        return cls(np.array(vectors, dtype=float).reshape(-1, len(FEATURE_NAMES)), *columns)

    def part(self, rows: Any) -> Window:
        """Chosen rows."""
        return Window(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def _number(value: float | bool | None) -> float:
    return np.nan if value is None else float(value)


class Span(NamedTuple):
    """What a window covers."""

    begin: datetime
    end: datetime
    decisions: int


@dataclass(frozen=True)
class Drift:
    """One look at drift."""

    model_version: str
    verdict: DriftVerdict
    reasons: tuple[Reason, ...]
    """Worst first."""
    looked_at: datetime
    reference: Span
    recent: Span
    reference_features: str
    """Where the reference's features come from."""
    features: tuple[Shift, ...]
    """p-values corrected, as everywhere here; most significant first."""
    distributions: tuple[Shift, ...]
    rates: tuple[Move, ...]
    residual: Move | None
    """Reward minus what the reference's curve expects, in R; None while outcomes are too few."""
    estimate: Estimate | None
    changes: tuple[Change, ...]
    """Found in the recent window."""
    age_days: float
    retrain_due: datetime
    expires: datetime

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; times RFC 3339."""
        document: dict[str, Any] = _plain(asdict(self))
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


class Subject(NamedTuple):
    """Whose drift, and when it was made (its manifest's time, or that of its first advice)."""

    model_version: str
    created_at: datetime


def look(
    subject: Subject,
    reference: Window,
    recent: Window,
    config: DriftConfig,
    now: datetime,
    *,
    spans: tuple[Span, Span],
    trained_on: tuple[str, Floats] | None = None,
) -> Drift:
    """Compare a recent window with a reference.

    Parameters
    ----------
    now : for the age of the model only.
    spans : of the reference and the recent window.
    trained_on : name and features (N, F) of a training artefact, which then stand for the
        reference's features.
    """
    where, known = trained_on or ("the log's reference window", reference.features)
    few = min(len(known), len(reference))
    enough = min(few, len(recent)) >= config.min_decisions
    seen = _compare(known, reference, recent, config) if enough else _NOTHING
    age = (now - subject.created_at) / timedelta(days=1)
    judge = Judge(config)
    reasons = [
        *([] if enough else [judge.too_few(few, len(recent))]),
        *_reasons(judge, seen),
        *judge.age(age),
    ]
    severity = list(DriftVerdict)
    reasons.sort(key=lambda reason: -severity.index(reason.verdict))
    return Drift(
        subject.model_version,
        reasons[0].verdict if reasons else DriftVerdict.OK,
        tuple(reasons),
        now,
        *spans,
        where,
        features=seen.features,
        distributions=seen.distributions,
        rates=seen.rates,
        residual=seen.residual,
        estimate=seen.estimate,
        changes=seen.changes,
        age_days=age,
        retrain_due=subject.created_at + timedelta(days=config.retrain_days),
        expires=subject.created_at + timedelta(days=config.expiry_days),
    )


class _Seen(NamedTuple):
    """The numbers of a look, p-values corrected; the fields of `Drift` of the same names."""

    features: tuple[Shift, ...]
    distributions: tuple[Shift, ...]
    rates: tuple[Move, ...]
    residual: Move | None
    estimate: Estimate | None
    changes: tuple[Change, ...]


_NOTHING = _Seen((), (), (), None, None, ())


def _compare(known: Floats, reference: Window, recent: Window, config: DriftConfig) -> _Seen:
    """Every comparison of one look; `known` are the features of the reference, shape (N, F)."""
    shifts = _features(known, recent.features)
    distributions = [
        shift(name, getattr(reference, name), getattr(recent, name)) for name in DISTRIBUTIONS
    ]
    moved = [move(name, getattr(reference, name), getattr(recent, name)) for name in RATES]
    rates = [each for each in moved if each is not None]
    estimate, residual = _rewards(reference, recent, config)
    means = [*rates, residual] if residual else rates
    p_values = [each.p_value for each in (*shifts, *distributions)] + [
        each.p_value for each in means
    ]
    corrected = iter(holm(p_values))
    shifts = [each._replace(p_value=next(corrected)) for each in shifts]
    return _Seen(
        tuple(sorted(shifts, key=lambda each: (each.p_value, -each.psi))),
        tuple(each._replace(p_value=next(corrected)) for each in distributions),
        tuple(each._replace(p_value=next(corrected)) for each in rates),
        residual._replace(p_value=next(corrected)) if residual else None,
        estimate,
        tuple(_changes(reference, recent, config)),
    )


def _reasons(judge: Judge, seen: _Seen) -> list[Reason]:
    return [
        *judge.features(seen.features),
        *judge.distributions(seen.distributions),
        *judge.rates(seen.rates),
        *judge.rewards(seen.estimate, seen.residual),
        *judge.changes(seen.changes),
    ]


def _features(reference: Floats, recent: Floats) -> list[Shift]:
    """Every feature that either window knows."""
    return [
        shift(name, reference[:, column], recent[:, column])
        for column, name in enumerate(FEATURE_NAMES)
        if np.isfinite(reference[:, column]).any() or np.isfinite(recent[:, column]).any()
    ]


def _rewards(
    reference: Window, recent: Window, config: DriftConfig
) -> tuple[Estimate | None, Move | None]:
    """The estimate before outcomes arrive, and the residuals of those that have."""
    known = np.isfinite(reference.reward) & np.isfinite(reference.approve_probability)
    approved = (recent.approval == 1) & np.isfinite(recent.approve_probability)
    if min(known.sum(), approved.sum()) < config.min_outcomes:
        return None, None
    estimate, curve = expected_reward(
        reference.approve_probability[known],
        reference.reward[known],
        recent.approve_probability[approved],
    )
    arrived = approved & np.isfinite(recent.reward)
    if arrived.sum() < config.min_outcomes:
        return estimate, None
    return estimate, move(
        "residual",
        _residuals(curve, reference.part(known)),
        _residuals(curve, recent.part(arrived)),
    )


def _residuals(curve: IsotonicRegression, window: Window) -> Floats:
    return np.asarray(window.reward - curve.predict(window.approve_probability), dtype=float)


def _changes(reference: Window, recent: Window, config: DriftConfig) -> list[Change]:
    """Changes that the online detector notices in the recent window, having read the reference
    first."""
    found = []
    for name in STREAMS:
        before, after = getattr(reference, name), getattr(recent, name)
        before, after = before[np.isfinite(before)], after[np.isfinite(after)]
        stream = np.concatenate([before, after])
        if name == "reward":
            stream = np.clip(stream, -config.clip_r, config.clip_r) / (2 * config.clip_r) + 0.5
        found += [
            _in_r(one, config.clip_r) if name == "reward" else one
            for one in changes(name, stream, config.adwin_delta)
            if one.noticed >= len(before)
        ]
    return found


def _in_r(one: Change, clip_r: float) -> Change:
    """A change of the scaled reward in R again."""
    return one._replace(before=(2 * one.before - 1) * clip_r, after=(2 * one.after - 1) * clip_r)
