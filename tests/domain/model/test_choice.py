"""The decision rule: the highest expected utility, rejecting at 0, ties reject; and everybody who
decides goes by it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.domain.model.actions import ACTIONS, LABELS, REJECT
from app.domain.model.choice import chosen
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Reading, propose

SCORES = st.lists(st.floats(-60, 60), min_size=10, max_size=10)
EIGHTHS = st.lists(st.integers(-16, 16).map(lambda n: n / 8), min_size=10, max_size=10)


def utilities(**of_labels: float) -> list[float]:
    """Of every action; rejecting is worth 0, and what is not named loses."""
    return [0.0 if label == "A" else of_labels.get(label, -1.0) for label in LABELS]


def test_the_action_of_the_highest_expected_utility_is_taken() -> None:
    assert LABELS[chosen(utilities(C=0.1, F=0.3, J=0.2))] == "F"


def test_what_loses_is_rejected_and_a_tie_rejects() -> None:
    assert ACTIONS[chosen(utilities())] == REJECT
    assert ACTIONS[chosen(utilities(F=0.0, J=0.0))] == REJECT
    assert LABELS[chosen(utilities(F=0.2, J=0.2))] == "F", "of equal approvals the smaller"


def test_nine_approvals_do_not_outvote_nor_share_a_vote() -> None:
    """Approvals hold 0.66 together, and each is worth less than rejecting."""
    approvals = [math.log(0.66 / 9)] * 9
    assert ACTIONS[chosen([math.log(0.34), *approvals])] == REJECT
    # Rejecting holds 0.15, one approval a little more and eight others as good as nothing.
    assert LABELS[chosen([0.0, 0.01, *[-5.0] * 8])] == "B"


@given(EIGHTHS, st.integers(1, 64), st.integers(-64, 64))
def test_neither_scale_nor_a_constant_of_the_scenario_changes_a_choice(
    scores: list[float], scale: int, constant: int
) -> None:
    assert chosen([scale * score + constant for score in scores]) == chosen(scores)


@given(SCORES)
def test_what_is_chosen_is_the_most_probable_action_as_in_records_made_before(
    scores: list[float],
) -> None:
    """Whoever replays a record by its probabilities finds what was advised."""
    assert chosen(scores) == int(np.argmax(scores))


@given(st.lists(st.floats(-50, 0), min_size=10, max_size=10), st.floats(0.05, 20))
def test_a_proposal_takes_what_the_rule_chooses(read: list[float], temperature: float) -> None:
    calibration = Calibration(temperature=temperature)
    proposal = propose(Reading(log_probabilities=tuple(read)), calibration)
    assert proposal.label == LABELS[chosen([value / temperature for value in read])]


def test_the_first_action_rejects() -> None:
    """Which is why equal scores reject, in records of any age."""
    assert chosen([0.0] * 10) == ACTIONS.index(REJECT) == 0
