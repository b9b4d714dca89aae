"""From readings of the questions to chances, a range and an expectation: numbers worked out by
hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidRecord
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import (
    Outlook,
    OutlookCalibration,
    Payoffs,
    QuestionCalibration,
    outlook_of,
)
from app.domain.model.questions import BY_NAME, QUESTIONS, QuestionName
from app.domain.scenario import Scenario
from tests.domain.scenarios import scenario

PAYOFFS = Payoffs(won_atr=1.5, stopped_r=-1.0, other_atr=-0.3, cost=0.003, spread_bps=2.0)


def with_plan(stop: float, spread_bps: float = 1.0) -> Scenario:
    """Bought at 100 with an ATR of 2."""
    return scenario(
        market__last_close=100.0,
        candidate__atr=2.0,
        candidate__spread_bps=spread_bps,
        plan__entry=100.0,
        plan__stop=stop,
        plan__targets=[106.0],
    )


S = with_plan(stop=97.0)
CHANCES = tuple[float, ...]


def logs(chances: CHANCES) -> tuple[float, ...]:
    """What a model says whose label mass is a half."""
    return tuple(math.log(chance / 2) for chance in chances)


def plain(name: QuestionName) -> QuestionCalibration:
    question = BY_NAME[name]
    return QuestionCalibration(
        question=question.hash, values=question.values, bias=(0.0,) * len(question.labels)
    )


CALIBRATION = OutlookCalibration(
    questions={name: plain(name) for name in QuestionName}, payoffs=PAYOFFS
)


def said(
    win: float, stopped: float, levels: CHANCES = (0.0, 0.5, 0.0, 0.5, 0.0)
) -> dict[QuestionName, tuple[float, ...]]:
    return {
        QuestionName.WIN: logs((1 - win, win)),
        QuestionName.STOPPED: logs((1 - stopped, stopped)),
        QuestionName.RANGE: logs(tuple(max(level, 1e-30) for level in levels)),
    }


def test_an_outlook_is_what_the_labels_stand_for_by_their_chances() -> None:
    found = outlook_of(said(0.4, 0.35), said(0.4, 0.35), CALIBRATION, S)
    assert found.win_probability == pytest.approx(0.4)
    assert found.stopped_probability == pytest.approx(0.35)
    assert found.range_atr == pytest.approx(math.sqrt(1.9 * 3.1)), "the geometric mean"
    # 1.5 ATR are one R here: 0.4 x 1 - 0.35 - 0.25 x 0.2 = 0; costs are 0.003 x 100 / 3 = 0.1 R.
    assert found.expected_r == pytest.approx(0.0 - 0.1)


def test_bias_and_temperature_make_a_reading_honest() -> None:
    question = plain(QuestionName.WIN).model_copy(
        update={"bias": (math.log(0.4), math.log(0.1)), "temperature": 2.0}
    )
    # odds 0.4 / 0.1 against yes are nothing but bias: even, whatever the temperature.
    assert question.mean(logs((0.8, 0.2))) == pytest.approx(0.5)
    # nine times the odds of the bias are three times at temperature 2.
    odds = 9 * 0.1 / 0.4
    assert question.mean(logs((1 / (1 + odds), odds / (1 + odds)))) == pytest.approx(0.75)


def test_a_wide_spread_and_a_near_stop_cost_more_of_one_r() -> None:
    # A stop at half an ATR: 0.4 x 3 - 0.35 - 0.25 x 0.6, less 0.3.
    assert PAYOFFS.expected_r(0.4, 0.35, with_plan(99.0)) == pytest.approx(0.7 - 0.3)
    # Ten basis points beyond those that are covered, of a hundred, over a distance of one.
    wide = with_plan(99.0, spread_bps=12.0)
    assert PAYOFFS.expected_r(0.4, 0.35, wide) == pytest.approx(0.7 - 0.3 - 0.1)
    narrow = with_plan(99.0, spread_bps=0.5)
    assert PAYOFFS.expected_r(0.4, 0.35, narrow) == pytest.approx(0.7 - 0.3)
    assert PAYOFFS.expected_r(0.4, 0.35, with_plan(100.0)) is None, "a plan without risk"


def test_chances_of_more_than_one_together_are_scaled() -> None:
    assert PAYOFFS.expected_r(0.9, 0.6, S) == pytest.approx((0.9 - 0.6) / 1.5 - 0.1)


def test_text_may_make_a_win_less_likely_and_a_stop_more_so_and_nothing_else() -> None:
    low, high = (1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0)
    bare = said(0.4, 0.35, low)
    good = outlook_of(said(0.9, 0.05, high), bare, CALIBRATION, S)
    assert good == outlook_of(bare, bare, CALIBRATION, S)
    bad = outlook_of(said(0.1, 0.8, high), bare, CALIBRATION, S)
    assert bad.win_probability == pytest.approx(0.1)
    assert bad.stopped_probability == pytest.approx(0.8)
    assert bad.range_atr == pytest.approx(1.4)


@given(*[st.floats(0.01, 0.99)] * 4)
def test_whatever_a_text_says_the_expectation_is_not_above_that_without_it(
    win: float, stopped: float, bare_win: float, bare_stopped: float
) -> None:
    bare = said(bare_win, bare_stopped)
    alone, both = (outlook_of(whole, bare, CALIBRATION, S) for whole in (bare, said(win, stopped)))
    assert both.expected_r is not None
    assert alone.expected_r is not None
    assert both.expected_r <= alone.expected_r + 1e-9


def test_a_version_says_what_it_was_asked_and_no_more() -> None:
    one = OutlookCalibration(questions={QuestionName.WIN: plain(QuestionName.WIN)}, payoffs=PAYOFFS)
    found = outlook_of(said(0.4, 0.35), said(0.4, 0.35), one, S)
    assert found == Outlook(win_probability=found.win_probability)
    assert outlook_of({}, {}, CALIBRATION, S) == Outlook(), "nothing was read"


def test_every_question_has_letters_of_its_own_and_levels_that_follow_each_other() -> None:
    assert [question.name for question in QUESTIONS] == list(QuestionName)
    for question in QUESTIONS:
        assert len(question.labels) == len(set(question.labels)) == len(question.values)
        assert all(len(label) == 1 and label.isupper() for label in question.labels)
        if question.edges:
            inner = zip(question.values, (*question.edges, math.inf), strict=True)
            order = [number for pair in inner for number in pair]
            assert sorted(order) == order


def test_a_question_has_a_bias_for_each_of_its_labels() -> None:
    with pytest.raises(InvalidRecord, match="1 biases for 2 labels"):
        QuestionCalibration.from_json(
            {"question": "sha256:" + "0" * 64, "values": [0.0, 1.0], "bias": [0.0]}
        )


def test_a_version_without_an_outlook_is_asked_nothing_beside_its_action() -> None:
    assert Calibration().asked == ()
