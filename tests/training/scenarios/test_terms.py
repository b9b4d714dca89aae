"""Other terms: within their ranges, the same in every table, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from app.domain.scenario import Scenario
from tests.builders import scenario as plain
from tests.domain.scenarios import scenarios
from tests.training.support.histories import history, scenario_set
from training.scenarios import terms
from training.scenarios.table import TRAIN
from training.scenarios.terms import has_other_terms, other_terms


@given(scenarios())
def test_only_spread_plan_and_account_differ(scenario: Scenario) -> None:
    other = other_terms(scenario, 0)
    changed = {"spread_bps", "open_positions"}
    assert other.candidate.model_dump(exclude=changed) == scenario.candidate.model_dump(
        exclude=changed
    )
    assert other.market == scenario.market
    assert other.plan.quantity == scenario.plan.quantity
    assert other.account.equity == scenario.account.equity
    assert other.candidate.open_positions == len(other.account.positions or ())
    assert other == other_terms(scenario, 0)


def test_terms_lie_in_their_ranges_and_fill_them() -> None:
    drawn = [other_terms(plain(candidate__rsi=20 + n / 10), 0) for n in range(400)]
    atr, close = drawn[0].candidate.atr, drawn[0].market.last_close
    assert atr is not None
    assert close is not None
    values = {
        terms.SPREAD_BPS: [one.candidate.spread_bps or 0.0 for one in drawn],
        terms.STOP_ATR: [(one.plan.entry - one.plan.stop) / atr for one in drawn],
        terms.REWARD_RISK: [
            (one.plan.targets[0] - one.plan.entry) / (one.plan.entry - one.plan.stop)
            for one in drawn
        ],
        terms.ENTRY_ATR: [(one.plan.entry - close) / atr for one in drawn],
        terms.DAY_PNL: [one.account.day_pnl_fraction or 0.0 for one in drawn],
    }
    for (low, high), given_values in values.items():
        assert low <= min(given_values) + 1e-9
        assert max(given_values) <= high + 1e-9
        assert np.ptp(given_values) > 0.9 * (high - low)
    assert {one.account.consecutive_losses for one in drawn} == set(range(terms.MOST_LOSSES + 1))
    assert {len(one.account.positions or ()) for one in drawn} == {0, 1, 2}
    for one in drawn:
        assert one.candidate.symbol not in {held.symbol for held in one.account.positions or ()}
        assert (one.account.seconds_since_loss is None) == (one.account.consecutive_losses == 0)


def test_targets_keep_their_proportions() -> None:
    scenario = plain(plan__targets=[106.0, 108.0, 112.0], plan__entry=100.0, plan__stop=97.0)
    plan = other_terms(scenario, 3).plan
    first, second, third = (target - plan.entry for target in plan.targets)
    assert [second / first, third / first] == pytest.approx([8 / 6, 12 / 6])


def test_a_table_s_limit_changes_nobody_s_terms(tmp_path: Path) -> None:
    given_history = history()
    every = scenario_set(tmp_path, given_history, terms=0.5)
    some = scenario_set(tmp_path, given_history, terms=0.5, limit=20, texts=0.5)
    variants = {
        name: set(made.table.filter(made.table["synthetic"] == "terms")["id"])
        for name, made in (("every", every), ("some", some))
    }
    assert variants["some"]
    assert variants["some"] < variants["every"]
    train = every.rows(TRAIN, real_only=True)
    assert 0.3 * len(train) < len(variants["every"]) < 0.7 * len(train)
    assert every.real[every.table["split"].to_numpy() != TRAIN].all()


def test_the_share_is_of_scenarios() -> None:
    many = [plain(candidate__rsi=20 + n / 10) for n in range(400)]
    chosen = [has_other_terms(scenario, 0.25, 0) for scenario in many]
    assert 70 < sum(chosen) < 130
    assert not any(has_other_terms(scenario, 0.0, 0) for scenario in many)
    assert all(has_other_terms(scenario, 1.0, 0) for scenario in many)
    assert chosen != [has_other_terms(scenario, 0.25, 1) for scenario in many]


def test_what_lacks_an_atr_or_a_close_has_no_other_terms() -> None:
    lacking: tuple[dict[str, Any], ...] = (
        {"candidate__atr": None},
        {"market__last_close": None},
    )
    for unknown in lacking:
        assert not has_other_terms(plain(**unknown), 1.0, 0)
