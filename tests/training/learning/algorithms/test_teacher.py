"""The teacher alone answers with the optimum that policies are trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.manifest import Calibration
from training.config.learning import TargetsConfig
from training.learning.algorithms.teacher import of_teacher
from training.learning.model.answers import FILE, Answers
from training.learning.teacher.predictions import Predictions

SIZE = np.array([action.risk_fraction for action in ACTIONS])


def test_its_scores_are_utilities_over_beta_and_it_takes_the_best_size(tmp_path: Path) -> None:
    """Mean 0.25 R: at a deviation of 1 R half is best, at 0.2 all of it; what loses is rejected."""
    mean, deviation = np.array([0.25, 0.25, -0.1]), np.array([1.0, 0.2, 1.0])
    none = np.zeros(3)
    expected, sd = mean[:, None] * SIZE, deviation[:, None] * SIZE
    said = Predictions(expected, sd, np.zeros_like(sd), none + 0.001, none, none, none)
    facts = of_teacher(tmp_path, said, beta=0.1, targets=TargetsConfig(risk_aversion=0.25))
    raw = np.load(tmp_path / FILE)
    assert facts["rows"] == 3
    answers = Answers(raw, Calibration())
    assert [ACTIONS[number].risk_fraction for number in answers.action] == [0.5, 1.0, 0.0]
    half = LABELS.index("E")
    assert raw[0, half] - raw[0, 0] == pytest.approx((0.5 * 0.25 - 0.25 * 0.25) / 0.1)
    assert answers.label_mass == pytest.approx(np.ones(3))


def test_the_greater_a_plan_s_stake_the_smaller_it_is_taken(tmp_path: Path) -> None:
    """Mean 0.2 R and variance 1; share f is worth 0.2 f - a f^2. At the usual stake a is 0.1: 0.1
    whole, 0.075 half. At one and a half times it 0.15: 0.05, 0.0625 half. At three times it 0.3:
    -0.1, 0.025, 0.03125 a quarter. What nobody knows is taken as usual."""
    count = 4
    ones = np.ones((count, 1))
    expected, sd = 0.2 * ones * SIZE, ones * SIZE
    stake, none = np.array([0.001, 0.0015, 0.003, np.nan]), np.zeros(count)
    said = Predictions(expected, sd, np.zeros_like(sd), stake, none, none, none)
    of_teacher(tmp_path, said, beta=0.1, targets=TargetsConfig())
    taken = Answers(np.load(tmp_path / FILE), Calibration()).action
    assert [ACTIONS[number].risk_fraction for number in taken] == [1.0, 0.5, 0.25, 1.0]
