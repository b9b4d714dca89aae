"""What a certificate is worth on other prompts: counted as the service decides."""

from __future__ import annotations

import pytest

from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Reading, Role, Version
from app.domain.rules.limits import read_limits
from app.policy.calibration import random_scenarios
from bench.serving.cascade import ROOT, Read, worth
from tests import builders as build

VERSION = Version("v", "sha256:" + "0" * 64, Calibration(), Role.PRIMARY)
LIMITS = read_limits(ROOT / "limits.toml")
[SCENARIO] = random_scenarios(1, 4713)


def scored(**scores: float) -> Reading:
    """Labels with these scores, and the rest far below."""
    values = tuple(scores.get(label, -9.0) for label in LABELS)
    return build.reading("A").model_copy(update={"log_probabilities": values})


def test_what_leads_by_enough_stands_and_the_rest_is_read_again() -> None:
    far, near, turned = scored(A=-0.6, B=-1.6), scored(A=-0.6, B=-0.61), scored(A=-0.61, B=-0.6)
    pairs = [(far, far), (near, turned), (near, near), (far, far)]
    reads = [Read(SCENARIO, rough, exact, 1.0, 2.0) for rough, exact in pairs]
    found = worth(reads, VERSION, LIMITS, 0.02)
    assert (found.equal, found.read_again) == (1.0, 0.5)
    assert found.ratio == (4 * 1.0 + 2 * 2.0) / 8.0
    assert found.largest == pytest.approx(0.01)


def test_a_rough_reading_beyond_what_is_allowed_is_seen() -> None:
    pairs = [(scored(J=-0.6), scored(A=-0.6)), (scored(A=-0.6), scored(A=-0.6))]
    reads = [Read(SCENARIO, rough, exact, 1.0, 2.0) for rough, exact in pairs]
    found = worth(reads, VERSION, LIMITS, 0.001)
    assert (found.equal, found.rough_equal, found.read_again) == (0.5, 0.5, 0.0)
    assert found.largest == pytest.approx(8.4)
