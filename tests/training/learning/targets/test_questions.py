"""What a policy learns beside its action: targets, payoffs and calibration, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

from app.domain.model.outlook import Payoffs
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.scenario import Scenario
from tests.domain.scenarios import scenario
from training.arrays import Floats
from training.config.data import OutcomesConfig
from training.config.learning import TargetsConfig
from training.learning.targets.questions import (
    Questions,
    calibrated,
    fitted,
    questions_of,
)
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import AGENT, Labels
from training.scenarios.table import ScenarioSet

OUTCOMES = OutcomesConfig(fee=0.001, slippage=0.0005)
EDGES = BY_NAME[QuestionName.RANGE].edges


class Table:
    """As much of a scenario set as this needs."""

    def __init__(self, scenarios: Sequence[Scenario], weight: Floats):
        self._scenarios, self.weight = scenarios, weight

    def scenarios(self) -> list[Scenario]:
        return list(self._scenarios)


def plan(stop: float, spread_bps: float = 2.0) -> Scenario:
    """Bought at 100 with an ATR of 2: costs are 0.3 % of 100 over the distance."""
    return scenario(
        market__last_close=100.0,
        candidate__atr=2.0,
        candidate__spread_bps=spread_bps,
        plan__entry=100.0,
        plan__stop=stop,
        plan__targets=[110.0],
    )


def labelled(net: Sequence[float], exits: Sequence[str | None], ranges: Sequence[float]) -> Labels:
    table = pl.DataFrame(
        {
            "row": range(len(net)),
            "action": [AGENT] * len(net),
            "exit": pl.Series(exits, dtype=pl.String()),
            "range_atr": ranges,
        }
    )
    return Labels(np.zeros((len(net), 10)), np.array(net), table)


NAN = float("nan")
SCENARIOS = cast(
    ScenarioSet,
    Table(
        [plan(97.0), plan(97.0), plan(98.0), plan(97.0), plan(97.0, 32.0), plan(97.0)],
        np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0]),
    ),
)
# The fifth earned 0.05 R by its label, which leaves out 30 basis points of spread, 0.1 R.
LABELS = labelled(
    [0.9, 0.5, -1.15, -0.4, 0.05, NAN],
    ["trail_1", "time", "stop", "time", "time", None],
    [1.5, 2.5, 2.5, 9.0, 1.8, NAN],
)
TRAIN = np.arange(6)


def taught(**changes: Any) -> Predictions:
    said: dict[str, Any] = {
        field: np.zeros((6, 10))
        for field in Predictions.__dataclass_fields__
        if field not in ("win", "stopped", "range_atr")
    }
    return Predictions(
        **said,
        **{
            "win": np.array([0.4, 0.5, 0.3, 0.4, 0.4, 0.4]),
            "stopped": np.full(6, 0.35),
            "range_atr": np.full(6, 2.2),
        }
        | changes,
    )


def test_payoffs_are_means_before_costs_in_atr_where_price_decides() -> None:
    payoffs = questions_of(SCENARIOS, LABELS, taught(), TRAIN, TargetsConfig(), OUTCOMES).payoffs
    assert payoffs.cost == pytest.approx(0.003)
    # Costs are 0.1 R of a distance of 3, 0.15 of 2; one R is 1.5 ATR, and 1.
    assert payoffs.won_atr == pytest.approx(((0.9 + 0.1) * 1 + (0.5 + 0.1) * 3) / 4 * 1.5)
    assert payoffs.stopped_r == pytest.approx(-1.0)
    assert payoffs.other_atr == pytest.approx(((-0.4 + 0.1) + (0.05 + 0.1)) / 2 * 1.5)


def test_targets_are_what_the_teacher_expects() -> None:
    found = questions_of(SCENARIOS, LABELS, taught(), TRAIN, TargetsConfig(), OUTCOMES).targets
    np.testing.assert_allclose(found[QuestionName.WIN][:2], [[0.6, 0.4], [0.5, 0.5]])
    np.testing.assert_allclose(found[QuestionName.STOPPED][0], [0.65, 0.35])
    # As wide as the teacher's own errors, of the rows that are known.
    errors = np.log(np.array([1.5, 2.5, 2.5, 9.0, 1.8]) / 2.2)
    below = norm.cdf(np.log(np.array(EDGES) / 2.2) / np.sqrt((errors**2).mean()))
    np.testing.assert_allclose(found[QuestionName.RANGE][3], np.diff([0, *below, 1]))
    np.testing.assert_allclose(found[QuestionName.RANGE].sum(axis=1), 1)


def test_realised_outcomes_are_a_control_and_say_nothing_of_what_bars_cannot_judge() -> None:
    config = TargetsConfig(source="outcomes")
    found = questions_of(SCENARIOS, LABELS, taught(), TRAIN, config, OUTCOMES).targets
    assert found[QuestionName.WIN][:5, 1].tolist() == [1, 1, 0, 0, 0], "a wide spread is paid"
    assert found[QuestionName.STOPPED][:5, 1].tolist() == [0, 0, 1, 0, 0]
    assert found[QuestionName.RANGE][:5].argmax(1).tolist() == [0, 2, 2, 4, 1]
    assert all(np.isnan(target[5]).all() for target in found.values())


def test_a_unit_is_what_one_answer_for_all_loses() -> None:
    found = questions_of(SCENARIOS, LABELS, taught(), TRAIN, TargetsConfig(), OUTCOMES)
    units = found.in_units(np.array([1, 2])).units
    # Half of 0.5 and half of 0.3, told as 0.4.
    lost = [p * np.log(p / q) for p, q in ((0.5, 0.4), (0.5, 0.6), (0.3, 0.4), (0.7, 0.6))]
    assert units[QuestionName.WIN] == pytest.approx(sum(lost) / 2)
    assert units[QuestionName.STOPPED] == 1e-3, "all alike: nothing to learn, and no division by it"


def test_dealt_targets_are_those_of_other_training_rows() -> None:
    found = questions_of(SCENARIOS, LABELS, taught(), TRAIN, TargetsConfig(), OUTCOMES)
    dealt = found.dealt(np.array([0, 1, 2]), np.array([2, 0, 1]))
    win = dealt.targets[QuestionName.WIN][:, 1]
    assert win.tolist() == [0.3, 0.4, 0.5, 0.4, 0.4, 0.4]
    assert found.targets[QuestionName.WIN][0, 1] == 0.4


@pytest.mark.parametrize("name", list(QuestionName))
def test_a_fit_finds_the_bias_and_temperature_that_spoiled_a_reading(name: QuestionName) -> None:
    source, labels = np.random.default_rng(0), len(BY_NAME[name].labels)
    scores = source.normal(size=(300, labels))
    target = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    spoiled = 2.5 * scores + np.linspace(0, 4, labels) - 7.0
    found = fitted(name, spoiled, target, np.ones(300))
    assert found.temperature == pytest.approx(2.5, rel=0.02)
    assert np.diff(found.bias) == pytest.approx(np.diff(np.linspace(0, 4, labels)), abs=0.05)
    assert found.chances(tuple(spoiled[0])) == pytest.approx(tuple(target[0]), abs=0.01)


def test_a_reading_that_says_nothing_becomes_the_mean_of_all() -> None:
    source = np.random.default_rng(1)
    noise, yes = source.normal(size=(4000, 2)), source.uniform(0.2, 0.6, 4000)
    payoffs = Payoffs(won_atr=1.0, stopped_r=-1.0, other_atr=0.0, cost=0.0, spread_bps=0.0)
    questions = Questions({QuestionName.WIN: np.column_stack([1 - yes, yes])}, payoffs)
    outlook, measures = calibrated(
        {QuestionName.WIN: noise}, questions, np.ones(4000), np.arange(4000)
    )
    question = outlook.questions[QuestionName.WIN]
    said = np.array([question.mean(tuple(row)) for row in noise.tolist()])
    assert said.mean() == pytest.approx(yes.mean(), abs=0.002)
    assert said.std() < 0.05
    of_all = measures["win"]
    assert of_all["log_score"] == pytest.approx(of_all["log_score_of_one_answer"], abs=2e-3)
