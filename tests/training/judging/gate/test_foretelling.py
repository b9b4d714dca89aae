"""What a version foretells of many plans is what the service would answer to each of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.domain.model.manifest import Calibration
from app.domain.model.questions import QUESTIONS, QuestionName
from app.domain.record.decision import foretold
from tests import builders as build
from tests.domain.scenarios import scenario
from training.judging.gate.foretelling import Foretelling
from training.learning.model.answers import Answers

CALIBRATION = Calibration(outlook=build.outlook_calibration())
LEVELS = (0.1, 0.2, 0.4, 0.2, 0.1)
LABELS = np.log(np.full((2, 10), 0.1))


def logs(*rows: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(rows))


def answers() -> Answers:
    """The second plan has a text, which makes a win likelier and a stop too."""
    without = LABELS.copy()
    without[1, 0] += 0.01
    return Answers(
        LABELS,
        CALIBRATION,
        without,
        {
            QuestionName.WIN: logs((0.6, 0.4), (0.1, 0.9)),
            QuestionName.STOPPED: logs((0.7, 0.3), (0.4, 0.6)),
            QuestionName.RANGE: logs(LEVELS, LEVELS[::-1]),
        },
        {
            QuestionName.WIN: logs((0.6, 0.4), (0.5, 0.5)),
            QuestionName.STOPPED: logs((0.7, 0.3), (0.8, 0.2)),
            QuestionName.RANGE: logs(LEVELS, LEVELS),
        },
    )


def test_of_two_readings_the_careful_chance_counts_and_the_range_is_read_without_text() -> None:
    plans = [scenario(), scenario()]
    found = Foretelling.of_version(answers(), plans)
    assert found is not None
    np.testing.assert_allclose(found.win, [0.4, 0.5])
    np.testing.assert_allclose(found.stopped, [0.3, 0.6])
    np.testing.assert_allclose(found.levels, [LEVELS, LEVELS])
    middle = math.exp(
        sum(p * math.log(v) for p, v in zip(LEVELS, QUESTIONS[2].values, strict=True))
    )
    np.testing.assert_allclose(found.range_atr, middle)
    # The plain stop is 1.5 ATR away: a win is one R. 0.5 and 0.6 are more than 1 together.
    np.testing.assert_allclose(found.expected_r, [0.4 - 0.3, (0.5 - 0.6) / 1.1])
    served = [
        foretold(reading, CALIBRATION, plan)
        for reading, plan in zip(answers().readings(), plans, strict=True)
    ]
    assert [each.win_probability for each in served if each] == pytest.approx(list(found.win))


def test_a_version_without_questions_foretells_nothing() -> None:
    assert Foretelling.of_version(Answers(LABELS, Calibration()), [scenario()] * 2) is None
