"""Rollouts: what every arm does in the same scenarios, and with which probability."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.domain.actions import ACTIONS, LABELS
from app.domain.case import order_for
from app.domain.decision import Reading, propose
from app.domain.manifest import Calibration
from tests.training.support.histories import history, scenario_set
from training.judging.contest import rollouts
from training.judging.contest.rollouts import RolloutError
from training.scenarios.table import ScenarioSet
from training.stages.store import Workshop

CALIBRATION = Calibration(bias=tuple(-0.1 * n for n in range(10)), temperature=0.7)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> ScenarioSet:
    return scenario_set(tmp_path_factory.mktemp("artifacts"), history())


def raw(scenarios: ScenarioSet, seed: int = 0) -> Any:
    scores = np.random.default_rng(seed).normal(0, 2, (len(scenarios), 10))
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)) - 0.3


def test_the_reference_agent_does_what_it_did_when_the_scenario_was_found(
    scenarios: ScenarioSet,
) -> None:
    found = rollouts.agent(scenarios)
    decided = [control.decision for control in scenarios.controls() if control is not None]
    assert found["approve"].to_list() == decided
    assert 0 < sum(decided) < len(decided)
    for row, scenario in zip(found.iter_rows(named=True), scenarios.scenarios(), strict=True):
        taken = (row["action"], row["quantity"], row["stop"])
        plan = ("I", scenario.plan.quantity, scenario.plan.stop)
        assert taken == (plan if row["approve"] else ("A", 0.0, None))
        assert (row["log_prob"], row["log_probs"]) == (0.0, None)
        assert row["rationale"]


def test_always_approve_trades_the_plan_everywhere(scenarios: ScenarioSet) -> None:
    found = rollouts.always_approve(scenarios)
    assert found["approve"].all()
    assert found["scenario"].to_list() == scenarios.table["id"].to_list()
    assert found["quantity"].to_list() == [s.plan.quantity for s in scenarios.scenarios()]


def test_a_threshold_reads_the_score_alone(scenarios: ScenarioSet) -> None:
    rates = []
    for margin in (0.0, 0.5, 1.5, 99.0):
        found = rollouts.threshold(scenarios, margin)
        over = [
            s.candidate.score - s.candidate.score_threshold >= margin for s in scenarios.scenarios()
        ]
        assert found["approve"].to_list() == over
        rates.append(float(found["approve"].mean()))  # type: ignore[arg-type]
    assert rates[0] == 1.0 > rates[1] > rates[2] > rates[3] == 0.0


def test_a_random_veto_is_the_same_for_a_seed_and_says_its_probability(
    scenarios: ScenarioSet,
) -> None:
    found = rollouts.random_veto(scenarios, 0.3, seed=4)
    assert found.equals(rollouts.random_veto(scenarios, 0.3, seed=4))
    assert not found.equals(rollouts.random_veto(scenarios, 0.3, seed=5))
    for row in found.iter_rows(named=True):
        assert math.exp(row["log_prob"]) == pytest.approx(0.3 if row["approve"] else 0.7)
    assert found["seed"].unique().to_list() == [4]


def test_a_models_argmax_is_what_the_service_would_propose(scenarios: ScenarioSet) -> None:
    """The same softmax, bias, temperature and order as `propose` and `order_for` on every
    scenario."""
    label_log_probs = raw(scenarios)
    found = rollouts.model(scenarios, "m-1", label_log_probs, CALIBRATION)
    for row, scenario, trace in zip(
        label_log_probs, scenarios.scenarios(), found.iter_rows(named=True), strict=True
    ):
        proposal = propose(Reading(log_probabilities=tuple(row)), CALIBRATION)
        assert trace["action"] == proposal.label
        assert np.exp(trace["log_probs"]) == pytest.approx(proposal.probabilities)
        assert trace["log_prob"] == 0.0
        if proposal.action.approve:
            order = order_for(proposal.action, scenario)
            assert (trace["quantity"], trace["stop"]) == (order.quantity, order.stop)
        else:
            assert (trace["quantity"], trace["stop"]) == (0.0, None)


def test_a_model_that_samples_draws_from_its_distribution(scenarios: ScenarioSet) -> None:
    label_log_probs = np.tile(raw(scenarios)[0], (len(scenarios), 1))
    counts = np.zeros(len(ACTIONS))
    draws = 60
    for seed in range(draws):
        found = rollouts.model(scenarios, "m-1", label_log_probs, CALIBRATION, seed=seed)
        counts += [int((found["action"] == label).sum()) for label in LABELS]
        log_probs = np.array(found["log_probs"].to_list())
        chosen = [LABELS.index(label) for label in found["action"]]
        np.testing.assert_array_equal(
            found["log_prob"].to_numpy(), log_probs[np.arange(len(chosen)), chosen]
        )
    probability = np.exp(rollouts.log_policy(label_log_probs[:1], CALIBRATION)[0])
    total = draws * len(scenarios)
    sigma = np.sqrt(total * probability * (1 - probability))
    assert (np.abs(counts - total * probability) < 5 * sigma).all()


def test_the_stage_keeps_every_arm_once(scenarios: ScenarioSet, tmp_path: Path) -> None:
    arms = [
        rollouts.agent(scenarios),
        rollouts.always_approve(scenarios),
        rollouts.threshold(scenarios, 1.0),
        rollouts.random_veto(scenarios, 0.5, 1),
        rollouts.model(
            scenarios, "m-1", raw(scenarios), CALIBRATION, rationales=["Because."] * len(scenarios)
        ),
    ]
    made = Workshop(tmp_path).stage(
        "rollouts", [], {}, lambda folder: rollouts.build_rollouts(folder, arms)
    )
    table = rollouts.open_rollouts(made)
    assert dict(table.schema) == rollouts.SCHEMA
    assert list(made.facts["arms"]) == [
        "reference_agent",
        "always_approve",
        "score_margin_1",
        "random_veto",
        "m-1",
    ]
    assert made.facts["arms"]["always_approve"] == {"rows": len(scenarios), "approval_rate": 1.0}
    assert table.filter(pl.col("arm") == "m-1")["rationale"].unique().to_list() == ["Because."]
    with pytest.raises(RolloutError, match="two arms have one name"):
        rollouts.build_rollouts(tmp_path, [arms[0], arms[0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda good: good[:-1], "wanted is"),
        (lambda good: good * np.nan, "not finite"),
        (lambda good: good + 3, "sums to more than 1"),
    ],
)
def test_what_are_no_log_probabilities_is_refused(
    scenarios: ScenarioSet, values: Any, message: str
) -> None:
    with pytest.raises(RolloutError, match=message):
        rollouts.model(scenarios, "m-1", values(raw(scenarios)), CALIBRATION)


def test_a_rate_beyond_0_and_1_and_an_agent_that_never_spoke_are_refused(
    scenarios: ScenarioSet,
) -> None:
    with pytest.raises(RolloutError, match="between 0 and 1"):
        rollouts.random_veto(scenarios, 1.0, 0)
    silent = scenarios.table.with_columns(control=pl.lit(None, pl.String))
    with pytest.raises(RolloutError, match="never reported"):
        rollouts.agent(ScenarioSet(silent, scenarios.reported))
