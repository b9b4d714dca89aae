"""The teacher alone answers with the optimum that policies are trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.domain.actions import ACTIONS, LABELS
from app.domain.manifest import Calibration
from training.learning.algorithms.teacher import of_teacher
from training.learning.model.answers import FILE, Answers
from training.learning.teacher.predictions import Predictions

SIZE = np.array([action.risk_fraction for action in ACTIONS])


def test_its_scores_are_utilities_over_beta_and_it_takes_the_best_size(tmp_path: Path) -> None:
    """Mean 0.25 R: at a deviation of 1 R half is best, at 0.2 all of it; what loses is rejected."""
    mean, deviation = np.array([0.25, 0.25, -0.1]), np.array([1.0, 0.2, 1.0])
    none = np.zeros(3)
    said = Predictions(mean[:, None] * SIZE, deviation[:, None] * SIZE, none, none, none)
    facts = of_teacher(tmp_path, said, beta=0.1, risk_aversion=0.25)
    raw = np.load(tmp_path / FILE)
    assert facts["rows"] == 3
    answers = Answers(raw, Calibration())
    assert [ACTIONS[number].risk_fraction for number in answers.action] == [0.5, 1.0, 0.0]
    half = LABELS.index("E")
    assert raw[0, half] - raw[0, 0] == pytest.approx((0.5 * 0.25 - 0.25 * 0.25) / 0.1)
    assert answers.label_mass == pytest.approx(np.ones(3))
