"""Arms meet on the same scenarios: what is looked up equals what a simulation of the very order
gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.support.histories import history, label_artifact, scenario_set
from training.judging.contest.arena import Arena, ArenaError
from training.judging.contest.arms import Arm, always
from training.outcomes.labels import Labels
from training.outcomes.simulate import COSTS, Orders, simulate
from training.scenarios.table import ScenarioSet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScenarioSet, Labels]:
    folder = tmp_path_factory.mktemp("arena")
    given = history()
    scenarios = scenario_set(folder, given, limit=40)
    return scenarios, Labels.open(label_artifact(folder, scenarios, given.series()))


@pytest.fixture(scope="module")
def arena(made: tuple[ScenarioSet, Labels]) -> Arena:
    return Arena.of(*made)


def everywhere(arena: Arena, stop_atr: float, share: float) -> Arm:
    count = len(arena)
    return Arm("test", np.ones(count, dtype=bool), np.full(count, stop_atr), np.full(count, share))


@pytest.mark.parametrize(("stop_atr", "share"), [(1.0, 1.0), (1.5, 0.25), (2.5, 0.6)])
def test_an_order_earns_what_its_simulation_earns(
    made: tuple[ScenarioSet, Labels], arena: Arena, stop_atr: float, share: float
) -> None:
    played = arena.play(everywhere(arena, stop_atr, share))
    series = {each.symbol: each for each in history().bars}
    parsed = [made[0].scenarios()[row] for row in arena.rows]
    for i in range(0, len(arena), 7):
        plan, atr = parsed[i].plan, parsed[i].candidate.atr
        orders = Orders(
            arena.as_of[i : i + 1],
            np.array([plan.entry]),
            np.array([plan.entry - stop_atr * atr]),
            np.array([plan.targets[:3]]),
            np.array([atr]),
        )
        fates = simulate(series[str(arena.symbols[i])], orders, COSTS)
        risk = plan.quantity * (plan.entry - plan.stop)
        assert played.r[i] == pytest.approx(fates.net[0] * share * plan.quantity / risk)
        assert played.own_r[i] == pytest.approx(fates.r[0])
        assert played.quantity[i] == pytest.approx(share * plan.quantity)
        assert (played.entered_at[i], played.exited_at[i]) == (
            fates.entered_at[0],
            fates.exited_at[0],
        )


def test_the_plan_earns_what_the_labels_say(made: tuple[ScenarioSet, Labels], arena: Arena) -> None:
    played = arena.play(always([made[0].scenarios()[row] for row in arena.rows]))
    assert np.clip(played.r, -3, 3) == pytest.approx(made[1].agent_reward[arena.rows])


def test_not_trading_earns_nothing_and_half_the_size_half(arena: Arena) -> None:
    half, whole = (arena.play(everywhere(arena, 1.5, share)) for share in (0.5, 1.0))
    assert half.r == pytest.approx(whole.r / 2)
    still = arena.play(everywhere(arena, 1.5, 1.0).kept("still", np.zeros(len(arena), dtype=bool)))
    assert (still.r == 0).all()
    assert np.isnan(still.own_r).all()
    assert np.isnan(still.quantity).all()


def test_synthetic_and_excluded_scenarios_never_enter(made: tuple[ScenarioSet, Labels]) -> None:
    scenarios, labels = made
    rewards = labels.rewards.copy()
    rewards[3] = np.nan
    without = Arena.of(scenarios, Labels(rewards, labels.agent_reward, labels.table))
    assert 3 not in without.rows
    assert len(without) == int(np.isfinite(rewards).all(1).sum())
    with pytest.raises(ArenaError, match="no scenario with a known outcome"):
        Arena.of(
            scenarios, Labels(np.full_like(rewards, np.nan), labels.agent_reward, labels.table)
        )


def test_a_stop_that_no_label_has_and_another_count_are_refused(arena: Arena) -> None:
    with pytest.raises(ArenaError, match=r"no label has a stop at 1\.7000 ATR"):
        arena.play(everywhere(arena, 1.7, 1.0))
    short = Arm("short", np.ones(2, dtype=bool), np.full(2, 1.5), np.ones(2))
    with pytest.raises(ArenaError, match="answers 2 scenarios"):
        arena.play(short)
