"""A version's answers propose what the service proposes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Reading, propose
from training.learning.model.answers import Answers

NATS = st.lists(st.floats(-60, 0, width=32), min_size=10, max_size=10)
CALIBRATIONS = st.builds(
    Calibration,
    bias=st.lists(st.floats(-20, 20), min_size=10, max_size=10).map(tuple),
    temperature=st.floats(0.05, 20),
)


@given(st.lists(NATS, min_size=1, max_size=4), CALIBRATIONS)
def test_answers_propose_what_the_service_proposes(
    rows: list[list[float]], calibration: Calibration
) -> None:
    found = Answers(np.array(rows, np.float32), calibration)
    for number, row in enumerate(rows):
        proposal = propose(Reading(log_probabilities=tuple(row)), calibration)
        assert found.probabilities[number] == pytest.approx(proposal.probabilities, abs=1e-12)
        assert LABELS[found.action[number]] == proposal.label
        assert found.approve_probability[number] == pytest.approx(proposal.approve_probability)
        assert found.label_mass[number] == pytest.approx(proposal.label_mass)


def test_answers_by_hand() -> None:
    """Odds of 8 : 1 : 1 ... against a bias of ln 2 on the first label, at temperature 2: scores
    ln 4 / 2 and 0, so odds of 2 : 1 : 1 ..., 2 / 11 and 1 / 11."""
    raw = np.log(np.array([[8.0, *[1.0] * 9], [2.0, *[1.0] * 9]]) / 17)
    calibration = Calibration(bias=(float(np.log(2)), *[0.0] * 9), temperature=2.0)
    found = Answers(raw, calibration)
    assert found.probabilities[0] == pytest.approx([2 / 11, *[1 / 11] * 9])
    assert np.exp(found.log_policy[1]) == pytest.approx([0.1] * 10)
    assert found.approve_probability == pytest.approx([9 / 11, 0.9])
    assert found.label_mass == pytest.approx([1.0, 11 / 17])
    (last,) = found.at(np.array([1])).probabilities
    assert last == pytest.approx([0.1] * 10)


def test_the_earlier_label_wins_a_tie() -> None:
    raw = np.full((1, 10), -3.0)
    raw[0, [4, 7]] = -1.0
    assert Answers(raw, Calibration()).action.tolist() == [4]
