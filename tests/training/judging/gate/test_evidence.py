"""What the gate weighs, of a policy whose stops a limit clamps: every order is its own, and none is
looked up."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from app.domain.model.actions import ACTIONS, BY_LABEL
from app.domain.model.manifest import Calibration
from app.domain.record.outcome import Outcome
from app.domain.rules.limits import read_limits
from tests.training.support.candles import HOUR, random_walk
from tests.training.support.histories import history, label_artifact, scenario_set
from training.arrays import DAY_S
from training.config.data import OutcomesConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.arms import AGENT, ALWAYS, AS_VETO, POLICY, RAW
from training.judging.contest.contest import Contest, Period, Trained, hold_contest, past_of
from training.judging.contest.rollouts import ROLLOUTS_SCHEMA, rollouts
from training.judging.gate.evidence import (
    Before,
    as_veto,
    dealt_from_before,
    evidence_of,
    foretold,
    sharpes_tried,
)
from training.judging.gate.verdict import STOPPED, WIN, Mode
from training.learning.model.answers import Answers
from training.market.bars import Bars
from training.market.sources import load_directory
from training.outcomes.labels import Labels
from training.outcomes.simulate import Exit
from training.scenarios.history import History

DATA = Path("shared", "data")
CONFIG = EvaluateConfig(draws=100, random_vetoes=20, workers=1)
EMBARGO_S = float(DAY_S)
EARLIER = Before({"v-1: policy": 0.07, "v-2": None}, looks=3)
WIDE = BY_LABEL["J"]
"""The agent's whole risk at 2.5 ATR."""


def wild(seed: int, symbol: str) -> Bars:
    """A walk of six times the usual steps: its ATR is some 7 % of the price."""
    bars = random_walk(3000, seed, symbol)
    columns = {
        name: 20_000 * (getattr(bars, name) / 20_000) ** 6
        for name in ("open", "high", "low", "close")
    }
    return replace(bars, **columns, volume=bars.volume * 1e6)


def held(folder: Path, known: History, limits: Path, **config: object) -> tuple[Contest, Trained]:
    """A contest on the later scenarios: the policy always says 2.5 ATR, but for every
    fifth, which it rejects."""
    scenarios = scenario_set(folder, known, **config)
    labels = Labels.open(label_artifact(folder, scenarios, known.series()))
    usable = np.flatnonzero(np.isfinite(labels.rewards).all(axis=1))
    before, after = np.split(usable, [len(usable) // 3])
    answers = np.full((len(after), len(ACTIONS)), np.log(0.02))
    answers[:, ACTIONS.index(WIDE)] = np.log(0.7)
    answers[::5, 0] = np.log(0.72)
    period = Period(
        after,
        {POLICY: Answers(answers, Calibration())},
        past_of(scenarios, labels, before, EMBARGO_S),
    )
    contest = hold_contest(
        scenarios, known, [period], read_limits(limits), CONFIG, OutcomesConfig()
    )
    return contest, Trained(scenarios, labels, EMBARGO_S)


@pytest.fixture(
    scope="module",
    params=["a wild market", "DOGEUSDT in 2021"],
)
def contest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> tuple[Contest, Trained]:
    folder = tmp_path_factory.mktemp("evidence")
    limits = repository / "deploy" / "limits.replay.toml"
    if request.param == "a wild market":
        return held(folder, history(wild(1, "BTCUSDT"), wild(2, "ETHUSDT")), limits)
    data = next((at / DATA for at in repository.parents if (at / DATA / "ohlcv").is_dir()), None)
    if data is None:
        pytest.skip("no real market data beside the repository")
    bars = load_directory(data, "1h", ["DOGEUSDT", "BTCUSDT"])
    dates = {"since": date(2020, 9, 1), "until": date(2021, 6, 1)}
    return held(folder, history(*bars), limits, symbols=("DOGEUSDT",), **dates)


def clamped(contest: Contest) -> np.ndarray:
    """Rows whose stop a limit moved: nearer than what was proposed."""
    mine, raw = (contest.played[name].arm.orders for name in (POLICY, RAW))
    return np.flatnonzero(mine.placed & (mine.stop > raw.stop * (1 + 1e-9)))


def test_a_stop_that_a_limit_clamps_is_simulated_as_it_is(
    contest: tuple[Contest, Trained],
) -> None:
    """What 15 % of entry cut off 2.5 ATR is in no table of labels; here each is followed by
    hand."""
    found, _ = contest
    played, rows = found.played[POLICY], clamped(found)
    assert len(rows) >= 5
    by_name = {bars.symbol: bars for bars, _ in found.arena.ground.judges}
    for row in rows.tolist():
        plan, bars = found.scenarios[row].plan, by_name[found.scenarios[row].candidate.symbol]
        assert played.arm.orders.stop[row] == pytest.approx(plan.entry * 0.85)
        fate = played.fates.row(row)
        assert fate is not None
        first = int(np.searchsorted(bars.closed_at, fate.entered_at, side="right"))
        last = int(np.searchsorted(bars.closed_at, fate.exited_at))
        assert fate.bought == bars.open[first]
        assert bars.closed_at[first] - bars.seconds == fate.entered_at <= fate.exited_at - HOUR
        if fate.exit is Exit.STOP:
            assert fate.sold == pytest.approx(min(plan.entry * 0.85, bars.open[last]))
        paid, received = fate.bought * 1.0005, fate.sold * 0.9995
        net = (received - paid - 0.001 * (paid + received)) * played.arm.orders.quantity[row]
        assert played.r[row] == pytest.approx(net / (plan.quantity * (plan.entry - plan.stop)))


@pytest.mark.parametrize("mode", list(Mode))
def test_evidence_is_made_of_clamped_orders_too(
    contest: tuple[Contest, Trained], mode: Mode
) -> None:
    found, trained = contest
    evidence = evidence_of("v", found, trained, (), mode, bound_r=3.0, before=EARLIER)
    played = found.played[POLICY]
    assert evidence.policy == pytest.approx(
        np.clip(played.r, -3, 3) if mode is Mode.LIVE else played.r
    )
    assert evidence.traded.tolist() == played.arm.approve.tolist()
    assert np.isfinite(evidence.random_veto).all()
    own = sharpes_tried(found)
    assert set(own) == {POLICY}
    assert evidence.trial_sharpes == (own[POLICY], 0.07)
    assert (evidence.trials, evidence.looks) == (3, 3)


@pytest.mark.parametrize("mode", list(Mode))
def test_evidence_as_a_veto_deals_refusals_to_the_agents_trades(
    contest: tuple[Contest, Trained], mode: Mode
) -> None:
    found, trained = contest
    evidence = as_veto(evidence_of("v", found, trained, (), mode, 3.0), found, mode, 3.0)
    kept, agent = (found.played[name].arm.approve for name in (AS_VETO, AGENT))
    assert evidence.traded.tolist() == (found.played[POLICY].arm.approve & agent).tolist()
    assert not (kept & ~agent).any()
    agents_r = evidence.agent
    if mode is Mode.FIXED:
        assert evidence.random_veto == pytest.approx(kept.sum() / agent.sum() * agents_r)
        return
    day = found.arena.as_of // DAY_S
    assert evidence.random_veto[day == day[0]] == pytest.approx(agents_r[day == day[0]])
    row = len(day) - 1
    earlier = day < day[row]
    share = kept[earlier].sum() / agent[earlier].sum()
    assert evidence.random_veto[row] == pytest.approx(share * agents_r[row])


def test_readings_stand_beside_what_came_of_the_plan(contest: tuple[Contest, Trained]) -> None:
    found, _ = contest
    chances = np.linspace(0, 1, len(found.arena))
    readings = foretold(found, {WIN: chances, STOPPED: chances})
    plans = found.played[ALWAYS]
    assert readings[WIN].came.tolist() == (plans.r > 0).astype(float).tolist()
    assert readings[STOPPED].came.tolist() == (plans.fates.exit == Exit.STOP).tolist()
    assert readings[WIN].probability is chances


def test_live_the_random_veto_deals_answers_of_earlier_days_only(
    contest: tuple[Contest, Trained],
) -> None:
    """Had the policy answered otherwise from some day on, nothing would change until the day
    after."""
    found, _ = contest
    day = found.arena.as_of // DAY_S
    split = np.unique(day)[len(np.unique(day)) // 2]
    arm = found.played[POLICY].arm
    changed = replace(arm, orders=arm.orders.only(day < split))
    other = replace(found, played={POLICY: replace(found.played[POLICY], arm=changed)})
    mine, theirs = dealt_from_before(found), dealt_from_before(other)
    assert mine[day == day[0]].tolist() == [0.0] * int((day == day[0]).sum())
    assert mine[day <= split].tolist() == theirs[day <= split].tolist()
    assert (mine != theirs)[day > split].any()


def test_live_the_random_veto_earns_what_every_earlier_answer_would_on_average(
    contest: tuple[Contest, Trained],
) -> None:
    """Exactly, for one scenario: all answers of earlier days dealt onto it, one by one."""
    found, _ = contest
    arm, day = found.played[POLICY].arm, found.arena.as_of // DAY_S
    row = len(day) - 1
    before = np.flatnonzero(day < day[row])
    exact = found.arena.deal(arm, before, np.full(len(before), row)).r
    many = replace(found, random=replace(found.random, rewards=np.zeros((2000, 1))))
    error = exact.std() / np.sqrt(2000)
    assert abs(dealt_from_before(many)[row] - exact.mean()) < 4 * error + 1e-12


def test_rollouts_tell_what_every_arm_did_and_earned(contest: tuple[Contest, Trained]) -> None:
    found, _ = contest
    table = rollouts(found)
    assert dict(table.schema) == ROLLOUTS_SCHEMA
    own_risk = {
        name
        for name, field in Outcome.model_fields.items()
        if (field.json_schema_extra or {}).get("unit") == "own risk"  # type: ignore[union-attr]
    }
    assert own_risk == {"r_multiple", "mae_r", "mfe_r"}
    assert not own_risk & set(ROLLOUTS_SCHEMA), "one name, one unit"
    assert table.height == len(found.played) * len(found.arena)
    assert not table.select("arm", "scenario").is_duplicated().any()
    mine = table.filter(pl.col("arm") == POLICY)
    assert mine["r"].to_list() == found.played[POLICY].r.tolist()
    assert mine["trades"].to_list() == found.played[POLICY].arm.approve.tolist()
    row = int(clamped(found)[0])
    told = mine.row(row, named=True)
    plan = found.scenarios[row].plan
    assert told["scenario"] == found.scenarios[row].hash()
    assert told["action"] == WIDE.name
    assert told["stop"] == pytest.approx(plan.entry * 0.85)
    assert told["probability"] == pytest.approx(1 - told["probabilities"][0])
    assert told["r"] == pytest.approx(told["net"] / plan.risk)
    assert told["vetoes"] == []
    refused = mine.filter(~pl.col("trades"))
    assert refused["r"].to_list() == [0.0] * refused.height
    assert refused.select("stop", "quantity", "exit", "net").null_count().row(0) == (
        (refused.height,) * 4
    )
    rules = table.filter(pl.col("arm") == "agent")
    assert rules["action"].null_count() == rules.height == rules["vetoes"].null_count()
