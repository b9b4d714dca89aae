"""Drift: distances by hand, verdicts on planted shifts and on none, and one look at a real log."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.domain.errors import AdvisorError
from app.domain.features import FEATURE_NAMES
from app.shadow_log.log import ShadowLog
from tests import builders as build
from tests.training.support.drifting import NOW, looked, window
from training.arrays import Floats
from training.cli.drift import drift
from training.config.judging import DriftConfig
from training.live.drift.look import Drift, Window, observe
from training.live.drift.verdict import DriftReason, DriftVerdict

ROOT = Path(__file__).parents[4]


def with_numbers(some: Window, **numbers: Floats) -> Window:
    """The window with other numbers of some measures."""
    return Window(some.features, dict(some.numbers) | numbers)


def codes(drift: Drift) -> set[DriftReason]:
    return {reason.code for reason in drift.reasons}


def test_resampled_data_is_ok_but_for_few_false_alarms() -> None:
    """20 pairs of windows of one market; at a true rate of 2 % more than 2 alarms would come once
    in 140 times."""
    whole = window(0, 4000)
    alarms = []
    for seed in range(20):
        rows = np.random.default_rng(seed).permutation(4000)
        found = looked(whole.part(rows[:1200]), whole.part(rows[1200:1500]))
        alarms.append(found.verdict is not DriftVerdict.OK)
    assert sum(alarms) <= 2


def test_shifted_features_ask_for_a_refresh_and_are_named() -> None:
    found = looked(window(1, 1200), window(2, 300, moved=1.0))
    assert found.verdict is DriftVerdict.REFRESH
    assert {DriftReason.FEATURE, DriftReason.FEATURES} == codes(found)
    named = {reason.name for reason in found.reasons if reason.code is DriftReason.FEATURE}
    assert named == set(FEATURE_NAMES[:20])
    assert found.reasons[0].verdict is DriftVerdict.REFRESH, "worst first"
    assert [each.name for each in found.features[:20]] == sorted(
        named,
        key=lambda name: next(i for i, each in enumerate(found.features) if each.name == name),
    )


def test_one_shifted_feature_is_watched() -> None:
    recent = window(2, 300)
    recent.features[:, 5] += 1.5
    found = looked(window(1, 1200), recent)
    assert (found.verdict, [reason.name for reason in found.reasons]) == (
        DriftVerdict.WATCH,
        [FEATURE_NAMES[5]],
    )


def test_an_artefacts_features_take_the_place_of_the_logs() -> None:
    shifted = window(2, 300, moved=1.0)
    found = looked(
        window(1, 1200, moved=1.0), shifted, trained_on=("artefact x", window(3, 900).features)
    )
    assert found.reference_features == "artefact x"
    assert DriftReason.FEATURES in codes(found)


def test_agreement_that_falls_by_thirty_points_asks_for_a_refresh() -> None:
    found = looked(window(1, 1200, agree=0.7), window(2, 300, agree=0.35))
    assert found.verdict is DriftVerdict.REFRESH
    rate = next(reason for reason in found.reasons if reason.code is DriftReason.RATE)
    assert rate.name == "agreement"
    assert rate.observed == pytest.approx(-0.35, abs=0.1)
    assert DriftReason.CHANGE in codes(found)


def test_a_market_that_pays_less_shows_in_the_residuals_and_one_that_pays_more_is_no_reason() -> (
    None
):
    worse = looked(window(1, 1200), window(2, 300, earns=-1.0))
    assert DriftReason.RESIDUAL in codes(worse)
    assert worse.verdict is DriftVerdict.REFRESH
    assert worse.estimate is not None
    assert worse.estimate.expected == pytest.approx(worse.estimate.reference, abs=0.1), (
        "confidence does not see it"
    )
    better = looked(window(1, 1200), window(2, 300, earns=1.0))
    assert better.residual is not None
    assert better.residual.recent > 0.8
    assert codes(better) <= {DriftReason.CHANGE}
    assert better.verdict is not DriftVerdict.REFRESH


def test_hesitant_approvals_are_seen_before_their_outcomes_arrive() -> None:
    """Reward is 2 R x confidence - 1 R in the reference; recent approvals are at 0.42 instead of
    0.4 to 1."""
    reference, recent = window(1, 1200), window(2, 300)
    approval, confidence = reference.numbers["approval"], reference.numbers["approve_probability"]
    reference = with_numbers(reference, reward=np.where(approval == 1, 2 * confidence - 1, np.nan))
    approval, confidence = recent.numbers["approval"], recent.numbers["approve_probability"]
    recent = with_numbers(
        recent,
        approve_probability=np.where(approval == 1, 0.42, confidence),
        reward=np.full(300, np.nan),
    )
    found = looked(reference, recent)
    assert found.residual is None, "no outcome has arrived"
    assert found.estimate is not None
    assert found.estimate.expected == pytest.approx(2 * 0.42 - 1, abs=0.05)
    assert DriftReason.EXPECTED_REWARD in codes(found)
    assert found.verdict is DriftVerdict.REFRESH


@pytest.mark.parametrize(
    ("days", "code", "verdict"),
    [
        (29.9, None, DriftVerdict.OK),
        (30, DriftReason.RETRAIN_DUE, DriftVerdict.WATCH),
        (90, DriftReason.EXPIRED, DriftVerdict.REFRESH),
    ],
)
def test_age_alone_decides_by_the_schedule(
    days: float, code: DriftReason | None, verdict: DriftVerdict
) -> None:
    found = looked(window(1, 1200), window(4, 300), days)
    assert (codes(found), found.verdict) == ({code} if code else set(), verdict)
    assert (
        found.retrain_due - timedelta(days=30)
        == found.expires - timedelta(days=90)
        == NOW - timedelta(days=days)
    )


def test_too_few_decisions_are_not_called_ok() -> None:
    found = looked(window(1, 1200), window(2, 99, moved=5.0))
    assert (found.verdict, codes(found)) == (DriftVerdict.WATCH, {DriftReason.TOO_FEW})
    assert (
        "1200 decisions in the reference and 99 recent ones: 100 of each" in found.reasons[0].says
    )
    assert looked(window(1, 0), window(2, 0)).verdict is DriftVerdict.WATCH


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"psi_refresh 0\.05 is below psi_watch 0\.1"):
        DriftConfig(psi_refresh=0.05)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        DriftConfig(psi=1)  # type: ignore[call-arg]


async def fill(url: str, first: datetime) -> None:
    """240 decisions, six a day: agreement and confidence as in the label; in the last ten days RSI
    is 20 higher. Another says that it is of the calendar's end."""
    log = ShadowLog.connect(url)
    events = [build_one(number, first) for number in range(240)]
    events.append(build.decision_event("end", at=datetime.max.replace(tzinfo=UTC)))
    for number in range(0, 240, 2):
        events.append(
            build.outcome_event(
                f"r-{number}", build.outcome("advice", r=0.5 if number % 4 else -1.0)
            )
        )
    await log.append(events)
    await log.aclose()


def build_one(number: int, first: datetime) -> Any:
    rsi = 40 + number * 7 % 20 + (20 if number >= 180 else 0)
    return build.decision_event(
        f"r-{number}",
        label="H" if number % 2 == 0 else "A",
        control=number % 3 == 0,
        at=first + timedelta(hours=4 * number),
        candidate__rsi=float(rsi),
    )


async def test_a_look_at_a_real_log(database_url: str, tmp_path: Path) -> None:
    first = datetime(2026, 10, 1, tzinfo=UTC)
    await fill(database_url, first)
    config = DriftConfig(recent_days=10, reference_days=30, min_decisions=50, min_outcomes=20)
    now = first + timedelta(days=40)
    found = observe(database_url, None, config, now)
    assert (found.model_version, found.reference.decisions, found.recent.decisions) == (
        "test-1",
        180,
        60,
    )
    assert [reason.name for reason in found.reasons if reason.code is DriftReason.FEATURE] == [
        "rsi"
    ]
    rates = {each.name: each for each in found.rates}
    assert rates["approval"].recent == pytest.approx(0.5)
    assert rates["agent_approval"].recent == pytest.approx(1 / 3)
    assert rates["agreement"].recent == pytest.approx(0.5)
    assert found.estimate is not None
    assert found.estimate.reference == pytest.approx(-0.25, abs=0.02)
    assert found.age_days == pytest.approx(40), "not registered: since its first advice"
    before = observe(database_url, None, config, now, until=first + timedelta(days=20))
    assert (before.reference.decisions, before.recent.decisions) == (60, 60)
    assert [reason for reason in before.reasons if reason.code is DriftReason.FEATURE] == []
    outputs = ("--json", str(tmp_path / "drift.json"), "--textfile", str(tmp_path / "drift.prom"))
    words = [sys.executable, "-m", "training", "drift", "--database", database_url, *outputs]
    again = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 0, again.stderr
    assert "test-1: watch" in again.stdout
    assert json.loads((tmp_path / "drift.json").read_text())["model_version"] == "test-1"
    assert (
        'advisor_drift_verdict{model_version="test-1",verdict="watch"} 1.0'
        in (tmp_path / "drift.prom").read_text()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the shadow log has no advice: let the agent ask the service first"),
        ({"model_version": "m9"}, "the shadow log has no advice of version m9"),
        ({"until": datetime(2020, 1, 1)}, "has no advice before 2020-01-01 00:00 UTC"),
        ({"until": datetime(2020, 1, 1), "listen": 8323}, "one look at the past"),
        ({"reference": ROOT}, "holds no finished artefact"),
        ({"config": str(ROOT / "absent.toml")}, "there is no configuration"),
    ],
)
def test_what_cannot_be_looked_at_is_one_clear_error(
    database_url: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdvisorError, match=message):
        drift(database_url, "http://127.0.0.1:1", **options)
