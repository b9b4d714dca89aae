"""The planted rule and its tables, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import Prompt, lines_of, prompt_of
from app.policy.calibration import random_scenarios
from bench.learning.planted import ALGORITHMS, COST, WARM_UP, Planted, Trial, plant, summary
from training.learning.algorithms.measures import CollapsedPolicy

WHOLE, REJECT = 8, 0
"""All of the plan with the stop that keeps the whole edge, and nothing."""


def prompts(count: int) -> list[Prompt]:
    return [prompt_of(lines_of(scenario)) for scenario in random_scenarios(count, 1)]


@pytest.mark.parametrize("edge", [0.0, 0.5])
def test_an_edge_pays_where_the_prompt_says_so_and_trading_costs_everywhere(edge: float) -> None:
    planted = plant(prompts(60), 0, edge)
    assert ACTIONS[WHOLE].name == "approve_r1.00_s1.5"
    assert 0 < planted.pays.sum() < 60
    expected = np.where(planted.pays, edge, -edge) - COST
    assert planted.mean[:, WHOLE].tolist() == pytest.approx(expected.tolist())
    assert not planted.mean[:, REJECT].any()
    half = planted.mean[:, WHOLE - 3] / planted.mean[:, WHOLE]
    assert half.tolist() == pytest.approx([0.5] * 60)


@dataclass
class Given:
    """All that is looked at of a problem before it is trained on."""

    warm_up: Path | None = None


def trial(dpo: list[int]) -> Trial:
    """Four prompts, two of which pay 1 R; the warm-up takes one of them."""
    pays = np.array([True, True, False, False])
    mean = np.zeros((4, len(ACTIONS)))
    mean[:, WHOLE] = np.where(pays, 1.0, -1.0)
    taken = {WARM_UP: np.array([WHOLE, 0, 0, 0]), "dpo": np.array(dpo)}
    return Trial(cast(Any, None), Planted(pays, mean, mean, mean), np.arange(4), {}, taken)


def test_the_table_says_what_each_earns_by_seed_and_adds_to_the_warm_up() -> None:
    both = [trial([WHOLE, WHOLE, 0, 0]), trial([WHOLE, WHOLE, WHOLE, 0])]
    rows = {
        line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")
        for line in summary(0.5, both)
    }
    assert "edge 0.5, 2 seeds: the best earns 0.500 R a scenario" in "".join(rows)
    assert rows[WARM_UP][1].startswith("+0.250 [")
    assert rows[WARM_UP][2:4] == ["0.50, 0.50", "25%"]
    assert rows["dpo"][1].startswith("+0.375 [")
    assert rows["dpo"][2:4] == ["1.00, 0.50", "62%"]
    assert rows["dpo"][4].startswith("+0.125 [")


def test_one_that_collapsed_is_told_where_it_did_and_the_others_have_their_means() -> None:
    both = [trial([WHOLE, WHOLE, 0, 0]), trial([])]
    del both[1].taken["dpo"]
    both[1].taken["ppo"] = np.array([WHOLE, 0, 0, 0])
    rows = {line.strip("| ").split(" | ")[0]: line for line in summary(0.5, both)}
    assert rows["dpo"].startswith("| dpo | +0.500 [")
    assert "| 1.00, collapsed | 50% | +0.250 [" in rows["dpo"], "beside its own seed's warm-up"
    assert "| collapsed, 0.50 | 25% | 0.000 [" in rows["ppo"]
    assert "| 0.50, 0.50 | 25% |" in rows[WARM_UP]


def test_a_policy_that_collapses_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def collapses(*given: Any) -> None:
        raise CollapsedPolicy("one action has 0.997 of the probability")

    for name in (WARM_UP, "ppo"):
        _, settings = ALGORITHMS[name]
        monkeypatch.setitem(ALGORITHMS, name, (collapses, settings))
    one = trial([])._replace(problem=cast(Any, Given()), taken={})
    for name in (WARM_UP, "ppo"):
        one.algorithm(name, {}, cast(Any, None), tmp_path)
    told = capsys.readouterr().out
    assert "warm-up    one action has 0.997 of the probability" in told
    assert "ppo        has no warm-up to start from" in told
    assert not one.taken


def test_without_anything_to_earn_there_is_no_share_of_it() -> None:
    nothing = trial([0, 0, 0, 0])
    nothing.planted.mean[:] = -0.05
    nothing.planted.mean[:, REJECT] = 0
    certain = np.log(np.eye(len(ACTIONS))[[REJECT] * 4] + 1e-12)
    nothing.tell("again", certain)
    assert nothing.figures == {"again: reward": 0.0}, "the history keeps numbers alone"
    text = "\n".join(summary(0.0, [nothing]))
    assert "the best earns 0.000 R" in text
    assert "| -0.013 [" in text, "the warm-up pays the costs of one in four"
    assert "| dpo | 0.000 [0.000, 0.000] | - | 0% |" in text
