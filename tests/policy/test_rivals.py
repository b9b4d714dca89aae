"""Rivals read numbers, in a format of our own: chances by hand, cuts, and files of strangers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.features import FEATURE_NAMES
from app.domain.model.manifest import MANIFEST_NAME, ModelManifest
from app.domain.record.decision import Reading, conclude, propose
from app.domain.rules.case import TradingState
from app.policy.backends import Backends
from app.policy.options import BackendOptions
from app.policy.rivals import RIVAL_NAME, Boosting, Logistic, RivalPolicy, Threshold, read_rival
from app.policy.versions.store import file_hash
from tests import builders as build
from tests.domain.scenarios import LIMITS

NAN = math.nan
STUMP = {"column": [0, 0, 1], "threshold": [0.0, 0.0, 0.0], "left": [1, 1, 2], "right": [2, 1, 2]}
LOGISTIC = {
    "kind": "logistic",
    "features": ["rsi", "adx"],
    "medians": [50.0, 20.0],
    "flagged": [1],
    "means": [50.0, 25.0, 0.5],
    "scales": [10.0, 5.0, 0.5],
    "weights": [1.0, -0.5, 0.25],
    "intercept": 0.1,
    "cut": 0.4,
}
BOOSTING = {
    "kind": "boosting",
    "features": ["rsi"],
    "medians": [50.0],
    "flagged": [],
    "edges": [[40.0, 60.0]],
    "baseline": -0.2,
    "trees": [
        {**STUMP, "column": [0, 0, 0], "value": [0.0, -1.0, 0.5]},
        {**STUMP, "column": [0, 0, 0], "threshold": [1.0, 0.0, 0.0], "value": [0.0, 0.1, 0.9]},
    ],
    "cut": 0.5,
}


def values(**known: float) -> tuple[float, ...]:
    return tuple(known.get(name, NAN) for name in FEATURE_NAMES)


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def test_a_threshold_trades_from_its_cut_on_and_not_what_it_does_not_know() -> None:
    rival = Threshold(feature="rsi", cut=56.0)
    assert [rival.chance(values(rsi=x)) for x in (55.9, 56.0, NAN)] == pytest.approx(
        [0.01, 0.99, 0.01]
    )


def test_a_logistic_regression_by_hand() -> None:
    rival = Logistic.from_json(LOGISTIC)
    # (60 - 50) / 10 - 0.5 (30 - 25) / 5 + 0.25 (0 - 0.5) / 0.5 + 0.1 = 1 - 0.5 - 0.25 + 0.1
    assert rival.chance(values(rsi=60.0, adx=30.0)) == pytest.approx(sigmoid(0.35))
    # adx unknown: its median 20 and the flag 1. 1 + 0.5 + 0.25 + 0.1
    assert rival.chance(values(rsi=60.0)) == pytest.approx(sigmoid(1.85))


@pytest.mark.parametrize(
    ("rsi", "score"),
    [(39.0, -1.0 + 0.1), (40.0, 0.5 + 0.1), (59.9, 0.5 + 0.1), (60.0, 0.5 + 0.9), (NAN, 0.6)],
)
def test_boosted_trees_over_bins_by_hand(rsi: float, score: float) -> None:
    """Bins 0, 1, 2; the first tree splits after bin 0, the second after bin 1."""
    rival = Boosting.from_json(BOOSTING)
    assert rival.chance(values(rsi=rsi)) == pytest.approx(sigmoid(-0.2 + score))


def test_the_decision_rule_approves_exactly_from_the_cut_on() -> None:
    for cut in (0.05, 0.3, 0.5, 0.9):
        rival = Logistic.from_json({**LOGISTIC, "cut": cut})
        calibration = rival.calibration()
        for chance in (cut * 0.99, cut, min(cut * 1.01, 0.999)):
            reading = Reading.told({"A": 1 - chance, "H": chance})
            assert propose(reading, calibration).action.approve is (chance >= cut), (cut, chance)


def policy(rival: dict[str, Any]) -> RivalPolicy:
    read = Boosting.from_json(rival) if rival["kind"] == "boosting" else Logistic.from_json(rival)
    manifest = ModelManifest.from_json(
        build.manifest("rival-1").as_json() | {"calibration": read.calibration().as_json()}
    )
    return RivalPolicy(manifest, read)


def test_its_reading_is_its_chance_on_rejecting_and_on_the_action_nearest_to_the_plan() -> None:
    scenario = build.scenario(candidate__rsi=45.0)
    rival = policy(BOOSTING)
    reading = rival.read(scenario)
    chances = dict(zip("ABCDEFGHIJ", map(math.exp, reading.log_probabilities), strict=True))
    assert chances["I"] == pytest.approx(sigmoid(0.4)), "a plan with its stop at 1.5 ATR"
    assert chances["A"] == pytest.approx(1 - sigmoid(0.4))
    version = build.version("rival-1", calibration=rival.manifest.calibration)
    advice = conclude(
        scenario, reading, version, LIMITS, state=TradingState.ACTIVE, now=scenario.as_of
    )
    assert (advice.action, advice.approve) == ("approve_r1.00_s1.5", True)


def folder(root: Path, document: Any, **changes: Any) -> Path:
    """A version's folder, as training publishes it."""
    place = root / "rival-1"
    place.mkdir()
    text = document if isinstance(document, str) else json.dumps(document)
    (place / RIVAL_NAME).write_text(text)
    manifest = build.manifest("rival-1").as_json()
    manifest |= {"files": {RIVAL_NAME: file_hash(place / RIVAL_NAME)}} | changes
    if not isinstance(document, str) and document.get("kind") == "logistic":
        calibration = Logistic.from_json(document).calibration()
        manifest.setdefault("calibration", {})
        manifest |= {"calibration": calibration.as_json()} | changes
    (place / MANIFEST_NAME).write_text(json.dumps(manifest))
    return place


def test_a_version_is_loaded_from_its_folder_without_torch(tmp_path: Path) -> None:
    backends = Backends(BackendOptions(copies=tmp_path / "copies"))
    loaded = backends.load(folder(tmp_path, LOGISTIC))
    assert isinstance(loaded, RivalPolicy)
    assert loaded.manifest.model_version == "rival-1"
    assert backends._in_process is None


def test_other_bytes_than_the_manifests_are_refused(tmp_path: Path) -> None:
    place = folder(tmp_path, LOGISTIC)
    (place / RIVAL_NAME).write_text(json.dumps({**LOGISTIC, "cut": 0.1}))
    with pytest.raises(ManifestMismatch):
        Backends().load(place)


def test_a_cut_that_the_manifest_does_not_have_is_refused(tmp_path: Path) -> None:
    place = folder(tmp_path, LOGISTIC, calibration=build.manifest("x").calibration.as_json())
    with pytest.raises(ModelFileError, match="calibration"):
        Backends().load(place)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("[", "rival"),
        ("[]", "rival"),
        ("null", "rival"),
        ({"kind": "pickle"}, "rival"),
        ({**LOGISTIC, "features": ["rsi", "moon"]}, "moon"),
        ({**LOGISTIC, "weights": [1.0]}, "must be 3"),
        ({**LOGISTIC, "scales": [0.0, 1.0, 1.0]}, "no scale 0"),
        ({**LOGISTIC, "flagged": [7]}, "do not fit"),
        ({**LOGISTIC, "cut": 1.5}, "less than 1"),
        ('{"kind": "threshold", "feature": "rsi", "cut": NaN}', "rival"),
        ({**BOOSTING, "edges": [[60.0, 40.0]]}, "ascend"),
        ({**BOOSTING, "trees": [{**STUMP, "value": [0.0]}]}, "differ in length"),
        (
            {**BOOSTING, "trees": [{**STUMP, "left": [0, 0, 0], "value": [0.0, 0.0, 0.0]}]},
            "leads back",
        ),
        ({**BOOSTING, "trees": [{**STUMP, "value": [0.0, 0.0, 0.0]}]}, "column that is not there"),
        ("[" * 100_000, "rival"),
    ],
)
def test_a_strangers_file_is_refused_with_one_line(tmp_path: Path, document: Any, why: str) -> None:
    path = tmp_path / RIVAL_NAME
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ModelFileError) as refused:
        read_rival(path)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
