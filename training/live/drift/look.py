"""Has the world, or the model's behaviour in it, moved away from what the model was made for? ok,
watch or refresh.

Two windows of decisions of one model version are compared: a reference (from the log, its features
also from a training artefact) and the recent past. Numbers are judged by size *and* significance: a
distance counts when it exceeds its threshold and its p-value, corrected for all comparisons of the
look (Holm), lies below `alpha`. docs/drift.md explains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.isotonic import IsotonicRegression

from app.domain.errors import AdvisorError
from app.domain.features import FEATURE_NAMES, features
from app.domain.scenario import Scenario
from training.arrays import Flags, Floats, Rows
from training.config.judging import DriftConfig
from training.live.drift.measures import (
    MEASURES,
    Change,
    ExpectedReward,
    Move,
    Row,
    Shift,
    changes,
    expected_reward,
    move,
    shift,
)
from training.live.drift.verdict import (
    Compared,
    DriftVerdict,
    Reason,
    of_age,
    reasons_of,
    too_few,
)
from training.log import judged_between, reading, served
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact
from training.statistics.selection import holm

MOST_TRAINED_ON = 5000
"""Scenarios of an artefact that are looked at, evenly over time: enough for any distribution."""


class DriftReference(AdvisorError):
    """The reference is no artefact of scenarios, or none of it trains."""


@dataclass(frozen=True, eq=False)
class Window:
    """Decisions of one model version in order of time.

    features : (N, len(FEATURE_NAMES)).
    numbers : (N,) of each of `MEASURES` by name; NaN where not known or not applicable.
    """

    features: Floats
    numbers: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> Window:
        """From rows of `log.judged_between`."""
        vectors: list[tuple[float, ...]] = []
        numbers: list[list[float]] = []
        for row in rows:
            vectors.append(features(Scenario.from_json(row["scenario"])))
            numbers.append([measure.number(row) for measure in MEASURES])
        columns = np.array(numbers, dtype=float).reshape(-1, len(MEASURES)).T
        names = [measure.name for measure in MEASURES]
        return cls(
            np.array(vectors, dtype=float).reshape(-1, len(FEATURE_NAMES)),
            dict(zip(names, columns, strict=True)),
        )

    def part(self, rows: Rows | Flags) -> Window:
        """Chosen rows."""
        return Window(
            self.features[rows], {name: column[rows] for name, column in self.numbers.items()}
        )


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
    estimate: ExpectedReward | None
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
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


class Subject(NamedTuple):
    """Whose drift, and when it was made (its manifest's time, or that of its first advice)."""

    model_version: str
    created_at: datetime


def observe(
    database: str,
    version: str | None,
    config: DriftConfig,
    now: datetime,
    trained_on: tuple[str, Floats] | None = None,
    until: datetime | None = None,
) -> Drift:
    """One look at a version of the log, or at the one that decided last. Windows end at its last
    decision before `until`; what came of it since counts.

    Raises
    ------
    ShadowLogUnavailable : the log cannot be read, or has no advice of that version.
    """
    with reading(database) as connection:
        who = served(connection, version, until)
        split = who.last - timedelta(days=config.recent_days)
        begin = split - timedelta(days=config.reference_days)
        before, recent = (
            Window.of_rows(
                chain.from_iterable(judged_between(connection, who.model_version, *span))
            )
            for span in ((begin, split), (split, who.last))
        )
    return look(
        Subject(who.model_version, who.created_at or who.first),
        before,
        recent,
        config,
        now,
        spans=(Span(begin, split, len(before)), Span(split, who.last, len(recent))),
        trained_on=trained_on,
    )


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
    where, features = trained_on or ("the log's reference window", reference.features)
    few = min(len(features), len(reference))
    reasons: list[Reason] = []
    compared = Compared()
    if min(few, len(recent)) >= config.min_decisions:
        compared = compare(features, reference, recent, config)
    else:
        reasons.append(too_few(few, len(recent), config))
    age = (now - subject.created_at) / timedelta(days=1)
    reasons += [*reasons_of(compared, config), *of_age(age, config)]
    severity = list(DriftVerdict)
    reasons.sort(key=lambda reason: -severity.index(reason.verdict))
    measured = [result for _, result in compared.measured]
    return Drift(
        subject.model_version,
        reasons[0].verdict if reasons else DriftVerdict.OK,
        tuple(reasons),
        now,
        *spans,
        where,
        features=compared.features,
        distributions=tuple(result for result in measured if isinstance(result, Shift)),
        rates=tuple(result for result in measured if isinstance(result, Move)),
        residual=compared.residual,
        estimate=compared.expected,
        changes=compared.changes,
        age_days=age,
        retrain_due=subject.created_at + timedelta(days=config.retrain_days),
        expires=subject.created_at + timedelta(days=config.expiry_days),
    )


def compare(known: Floats, reference: Window, recent: Window, config: DriftConfig) -> Compared:
    """Every comparison of one look, their p-values corrected for each other; `known` are the
    features of the reference, (N, F)."""
    expected, residual = _rewards(reference, recent, config)
    results: dict[tuple[str, str], Shift | Move] = {
        ("feature", result.name): result for result in _features(known, recent.features)
    }
    for measure in MEASURES:
        if measure.compare is not None:
            numbers = reference.numbers[measure.name], recent.numbers[measure.name]
            if (result := measure.compare(measure.name, *numbers)) is not None:
                results["measure", measure.name] = result
    if residual is not None:
        results["residual", residual.name] = residual
    p_values = holm({key: result.p_value for key, result in results.items()})
    corrected = {key: result._replace(p_value=p_values[key]) for key, result in results.items()}
    shifts = [
        result
        for (kind, _), result in corrected.items()
        if kind == "feature" and isinstance(result, Shift)
    ]
    left = corrected.get(("residual", "residual"))
    return Compared(
        features=tuple(sorted(shifts, key=lambda result: (result.p_value, -result.psi))),
        measured=tuple(
            (measure, corrected["measure", measure.name])
            for measure in MEASURES
            if ("measure", measure.name) in corrected
        ),
        residual=left if isinstance(left, Move) else None,
        expected=expected,
        changes=tuple(_changes(reference, recent, config)),
    )


def _features(reference: Floats, recent: Floats) -> list[Shift]:
    """Every feature that either window knows."""
    return [
        shift(name, reference[:, column], recent[:, column])
        for column, name in enumerate(FEATURE_NAMES)
        if np.isfinite(reference[:, column]).any() or np.isfinite(recent[:, column]).any()
    ]


def _rewards(
    reference: Window, recent: Window, config: DriftConfig
) -> tuple[ExpectedReward | None, Move | None]:
    """What is expected before outcomes arrive, and the residuals of those that have."""
    chance, chance_now = (window.numbers["approve_probability"] for window in (reference, recent))
    told = np.isfinite(reference.numbers["reward"]) & np.isfinite(chance)
    approved = (recent.numbers["approval"] == 1) & np.isfinite(chance_now)
    if min(told.sum(), approved.sum()) < config.min_outcomes:
        return None, None
    expected, curve = expected_reward(
        chance[told], reference.numbers["reward"][told], chance_now[approved]
    )
    arrived = approved & np.isfinite(recent.numbers["reward"])
    if arrived.sum() < config.min_outcomes:
        return expected, None
    return expected, move(
        "residual",
        _residuals(curve, reference.part(told)),
        _residuals(curve, recent.part(arrived)),
    )


def _residuals(curve: IsotonicRegression, window: Window) -> Floats:
    predicted = curve.predict(window.numbers["approve_probability"])
    return np.asarray(window.numbers["reward"] - predicted, dtype=float)


def _changes(reference: Window, recent: Window, config: DriftConfig) -> list[Change]:
    """Changes that the online detector notices in the recent window, having read the reference
    first."""
    noticed = []
    for measure in MEASURES:
        if measure.changes_within is not None:
            before, after = (window.numbers[measure.name] for window in (reference, recent))
            before, after = before[np.isfinite(before)], after[np.isfinite(after)]
            stream, bounds = np.concatenate([before, after]), measure.changes_within(config)
            noticed += [
                change
                for change in changes(measure.name, stream, config.adwin_delta, bounds)
                if change.noticed >= len(before)
            ]
    return noticed


def trained_on_rows(path: Path) -> tuple[str, Floats]:
    """Name and features of the real training rows of a scenarios artefact.

    Raises
    ------
    ArtifactError, ScenarioError, DriftReference : it is no finished scenarios artefact, or it has
        no row that trains.
    """
    scenarios = ScenarioSet.open(Artifact.open(path, "scenarios"))
    rows = scenarios.rows("train", real_only=True)
    if not len(rows):
        raise DriftReference(
            f"{path}: no scenario of it trains; name the artefact that the model was trained on"
        )
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_TRAINED_ON).astype(int))]
    vectors = [
        features(Scenario.from_json(json.loads(text)))
        for text in scenarios.table["scenario"].gather(chosen)
    ]
    return f"artefact {path.name}", np.array(vectors, dtype=float)
