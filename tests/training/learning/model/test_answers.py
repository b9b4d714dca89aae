"""A version's answers are the same, over the base pass or asked prompt by prompt as the service
asks; and they propose what the service proposes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.decision import Reading, propose
from app.domain.scenario import Scenario
from tests.training.support.rebuilds import read_by
from training.judging.gate.checks import TOLERANCE
from training.learning.model import answers
from training.learning.model.answers import Answers
from training.pipeline.evaluate import Evaluated
from training.scenarios.table import ScenarioSet

SOME = 6


@pytest.fixture(scope="module")
def asked(evaluated: Evaluated) -> list[Scenario]:
    return ScenarioSet.open(read_by(evaluated, "held_out: scenarios")).scenarios()[:SOME]


def test_an_adapter_asked_as_the_service_asks_answers_what_it_answers_over_the_base_pass(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path
) -> None:
    steps: list[tuple[int, int]] = []
    told = answers.of_version(
        evaluated.version,
        [tiny_base.parent],
        asked,
        1,
        lambda done, total: steps.append((done, total)),
    )
    kept = np.load(read_by(evaluated, "held_out: answers: policy") / answers.FILE)
    found, bare = told.raw, told.bare
    assert bare is not None
    assert found.shape == (SOME, 10)
    assert found.dtype == kept.dtype == np.float32
    assert np.abs(found - kept[:SOME]).max() < TOLERANCE
    kept_bare = np.load(read_by(evaluated, "held_out: answers: policy") / answers.BARE_FILE)
    assert np.abs(bare - kept_bare[:SOME]).max() < TOLERANCE
    again = answers.Answers.open(read_by(evaluated, "held_out: answers: policy")).at(
        np.arange(SOME)
    )
    assert told.calibration.asked == tuple(QuestionName)
    for name in QuestionName:
        for one, other in (
            (told.questions, again.questions),
            (told.bare_questions, again.bare_questions),
        ):
            assert one[name].shape == (SOME, len(BY_NAME[name].labels))
            assert np.abs(one[name] - other[name]).max() < TOLERANCE
    assert told.outlooks(asked)[0] is not None
    assert steps == [(number, SOME) for number in range(1, SOME + 1)]


def test_a_whole_model_answers_what_the_base_pass_read(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path
) -> None:
    found = answers.of_version(tiny_base, [tiny_base.parent], asked, 1).raw
    untuned = np.load(read_by(evaluated, "held_out: answers: base model") / answers.FILE)
    assert np.abs(found - untuned[:SOME]).max() < TOLERANCE
    tuned = np.load(read_by(evaluated, "held_out: answers: policy") / answers.FILE)
    assert np.abs(found - tuned[:SOME]).max() > TOLERANCE, "the adapter does something"


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
