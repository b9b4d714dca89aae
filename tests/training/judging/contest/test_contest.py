"""The contest walks forward: rivals know only what was over, every row is answered once, and money
is what it was."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.domain.model.manifest import Calibration
from tests import builders as build
from tests.domain.scenarios import LIMITS
from tests.training.support.artifacts import made_up
from tests.training.support.candles import HOUR, random_walk
from tests.training.support.histories import (
    held_out_artifact,
    history,
    label_artifact,
    scenario_set,
)
from training.arrays import DAY_S, instant
from training.config.data import HeldOutConfig, OutcomesConfig, ScenariosConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.arena import ArenaError, Played
from training.judging.contest.arms import (
    AGENT,
    ALWAYS,
    ARMS,
    AS_VETO,
    BASE_MODEL,
    HEURISTICS,
    HOLD,
    POLICY,
    RANDOM,
    RAW,
    Arm,
)
from training.judging.contest.contest import (
    Contest,
    Period,
    Trained,
    book,
    hold_contest,
    past_of,
    refitted,
)
from training.judging.contest.portfolio import Book, Clock, buy_and_hold
from training.learning.model.answers import Answers
from training.market.bars import Bars
from training.outcomes.labels import Labels
from training.outcomes.orders import Orders
from training.outcomes.simulate import COSTS, Costs, Fates
from training.scenarios.history import History
from training.scenarios.table import RealScenario, ScenarioSet, build_scenarios

EMBARGO_S = 24 * HOUR
BEGIN = instant(date(2022, 11, 1))
CONFIG = EvaluateConfig(draws=100, random_vetoes=20, workers=1)
FREE = Costs(0.0, 0.0)


class Market(NamedTuple):
    """Four months around the beginning of the held-out period, with bars of a symbol more than it
    has scenarios of."""

    history: History
    trained: Trained
    held_out: ScenarioSet
    labels: Labels
    versions: dict[str, Answers]


def walk(seed: int, symbol: str) -> Bars:
    bars = random_walk(3000, seed, symbol)
    return replace(bars, closed_at=bars.closed_at - bars.closed_at[0] + BEGIN + HOUR)


def tagged(count: int, seed: int) -> Answers:
    """Answers of any kind; the first label's tells the row."""
    rows = np.random.default_rng(seed).normal(-2.3, 0.8, (count, 10))
    rows[:, 0] = -2.0 - np.arange(count) / count
    return Answers(rows, Calibration(temperature=1.5))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    folder = tmp_path_factory.mktemp("contest")
    given = history(walk(3, "SOLUSDT"), walk(1, "BTCUSDT"), walk(2, "ETHUSDT"))
    two = ("BTCUSDT", "ETHUSDT")
    training = scenario_set(folder, given, symbols=two)
    labels = Labels.open(label_artifact(folder, training, given.series()))
    held_out = ScenarioSet.open(held_out_artifact(folder, given, symbols=two))
    fates = Labels.open(label_artifact(folder / "held_out", held_out, given.series()))
    versions = {POLICY: tagged(len(held_out), 1), BASE_MODEL: tagged(len(held_out), 2)}
    return Market(given, Trained(training, labels, EMBARGO_S), held_out, fates, versions)


def contest(
    market: Market, refit_days: float, config: EvaluateConfig = CONFIG, bars: tuple[Bars, ...] = ()
) -> Contest:
    periods = refitted(market.held_out, market.labels, market.versions, market.trained, refit_days)
    known = history(*bars) if bars else market.history
    return hold_contest(market.held_out, known, periods, LIMITS, config, OutcomesConfig())


@pytest.fixture(scope="module")
def held(market: Market) -> Contest:
    """In several periods."""
    return contest(market, 20.0)


@pytest.fixture(scope="module")
def whole(market: Market) -> Contest:
    """In a single one."""
    return contest(market, 1000.0)


def in_order(periods: list[Period]) -> NDArray[np.int64]:
    return np.concatenate([period.rows for period in periods])


@settings(max_examples=40)
@given(days=st.integers(2, 90), hours=st.integers(0, 24 * 20))
def test_a_rival_is_fitted_on_all_that_was_over_an_embargo_before_its_period_and_on_nothing_else(
    market: Market, days: int, hours: int
) -> None:
    trained = replace(market.trained, embargo_s=hours * HOUR)
    periods = refitted(market.held_out, market.labels, market.versions, trained, days)
    rows = in_order(periods)
    before, behind = trained.past(), past_of(market.held_out, market.labels, rows, hours * HOUR)
    everything = before + behind
    first = int(market.held_out.as_of[rows[0]])
    for period in periods:
        as_of = market.held_out.as_of[period.rows]
        begins = first + (int(as_of[0]) - first) // (days * DAY_S) * days * DAY_S
        assert as_of[-1] < begins + days * DAY_S
        over = np.flatnonzero(everything.ends_at + hours * HOUR <= begins)
        for name in ("as_of", "ends_at", "rewards", "weights"):
            assert getattr(period.past, name).tolist() == getattr(everything, name)[over].tolist()
        assert (period.past.ends_at + hours * HOUR <= as_of.min()).all()
        assert period.past.embargo_s == hours * HOUR
    counts = [len(period.past.as_of) for period in periods]
    assert counts == sorted(counts)
    assert counts[0] >= len(before.as_of) > 20, "nothing of the development period is forgotten"


@settings(max_examples=20)
@given(
    days=st.integers(2, 90),
    unknown=st.sets(st.integers(0, 40), max_size=6),
    made_up=st.sets(st.integers(0, 40)),
)
def test_every_usable_row_appears_exactly_once_in_order_with_its_own_answers(
    market: Market, days: int, unknown: set[int], made_up: set[int]
) -> None:
    rewards, plan = market.labels.rewards.copy(), market.labels.agent_reward.copy()
    rewards[list(unknown)], plan[list(unknown)] = np.nan, np.nan
    labels = Labels(rewards, plan, market.labels.table)
    kinds = ["rename" if row in made_up else None for row in range(len(market.held_out))]
    table = market.held_out.table.with_columns(synthetic=pl.Series(kinds, dtype=pl.String()))
    periods = refitted(
        ScenarioSet(table, market.held_out.reported), labels, market.versions, market.trained, days
    )
    late = market.held_out.as_of >= market.trained.until + EMBARGO_S
    usable = [
        row
        for row in range(len(market.held_out))
        if late[row] and row not in made_up and np.isfinite(rewards[row]).all()
    ]
    assert in_order(periods).tolist() == usable
    for period in periods:
        assert len(period.rows)
        assert set(period.versions) == {POLICY, BASE_MODEL}
        for name, version in period.versions.items():
            mine = market.versions[name]
            assert version.raw.tolist() == mine.raw[period.rows].tolist()
            assert version.calibration == mine.calibration


def by_hand(
    folder: Path, config: ScenariosConfig, *moments: datetime
) -> tuple[ScenarioSet, Labels]:
    """Scenarios of ETHUSDT on hourly bars: each label ends 7 hours later. Each earns 1 R, but every
    second loses it."""
    found = [
        RealScenario(build.scenario(as_of=moment, market__bar_seconds=3600)) for moment in moments
    ]
    made = made_up(
        folder,
        "scenarios",
        lambda target: build_scenarios(target, found, config, {}, HOUR),
        [config, moments],
    )
    reward = np.where(np.arange(len(moments)) % 2 == 0, 1.0, -1.0)
    return ScenarioSet.open(made), Labels(reward[:, None] * np.ones(10), reward, pl.DataFrame())


def test_what_lies_within_the_embargo_of_training_is_left_out(tmp_path: Path) -> None:
    """The last label that was trained on ends at 7 in the morning of the 31st; a day later the
    contest may begin."""
    last = datetime(2022, 12, 31, tzinfo=UTC)
    training = by_hand(
        tmp_path, ScenariosConfig(), *(last - timedelta(days=day) for day in range(20, -1, -1))
    )
    trained = Trained(*training, embargo_s=EMBARGO_S)
    assert datetime.fromtimestamp(trained.until, UTC) == last + timedelta(hours=7)
    moments = [datetime(2023, 1, 1, hour, tzinfo=UTC) for hour in (0, 6, 7, 20)]
    held_out, labels = by_hand(tmp_path, HeldOutConfig(), *moments)
    answers = {POLICY: tagged(4, 0)}
    (period,) = refitted(held_out, labels, answers, trained, 10)
    assert period.rows.tolist() == [2, 3]
    assert len(period.past.as_of) == len(trained.past().as_of) == 20, (
        "one of 21 was purged before validation"
    )
    (sooner,) = refitted(held_out, labels, answers, replace(trained, embargo_s=23 * HOUR), 10)
    assert sooner.rows.tolist() == [1, 2, 3]


def test_a_new_period_begins_after_so_many_days_and_knows_what_ended_before(tmp_path: Path) -> None:
    """Ten days a period from the first row on: they begin on the 2nd, the 12th and the 22nd of
    January at 0:00."""
    last = datetime(2022, 12, 31, tzinfo=UTC)
    training = by_hand(
        tmp_path, ScenariosConfig(), *(last - timedelta(days=day) for day in range(20, -1, -1))
    )
    trained = Trained(*training, embargo_s=EMBARGO_S)
    moments = [(2, 0), (10, 16), (10, 17), (10, 18), (12, 0), (30, 0)]
    held_out, labels = by_hand(
        tmp_path, HeldOutConfig(), *(datetime(2023, 1, d, h, tzinfo=UTC) for d, h in moments)
    )
    periods = refitted(held_out, labels, {POLICY: tagged(6, 0)}, trained, 10)
    assert [period.rows.tolist() for period in periods] == [[0, 1, 2, 3], [4], [5]]
    # Until the 11th at 0:00 ended what was decided until the 10th at 17:00.
    assert [len(period.past.as_of) for period in periods] == [20, 23, 25]


def test_without_a_usable_row_there_is_one_clear_error(market: Market) -> None:
    rewards = np.full_like(market.labels.rewards, np.nan)
    unknown = Labels(rewards, np.full_like(market.labels.agent_reward, np.nan), market.labels.table)
    with pytest.raises(ArenaError, match="no held-out scenario with a known outcome lies behind"):
        refitted(market.held_out, unknown, market.versions, market.trained, 30)
    with pytest.raises(ArenaError, match="bring more bars"):
        refitted(
            market.held_out,
            market.labels,
            market.versions,
            replace(market.trained, embargo_s=1000.0 * DAY_S),
            30,
        )


def test_every_arm_answers_every_row(held: Contest, market: Market) -> None:
    count = len(held.arena)
    assert set(held.played) == {*ARMS, POLICY, RAW, BASE_MODEL, AS_VETO}
    assert set(held.rewards) == {*held.played, RANDOM}
    assert all(each.shape == (count,) for each in held.rewards.values())
    assert set(held.books) == set(held.performances) == {*held.played, HOLD}
    assert [one.hash() for one in held.scenarios] == [
        market.held_out.table["id"][int(r)] for r in held.arena.rows
    ]
    assert held.random.rewards.shape == (20, count)
    assert held.random.mean == pytest.approx(held.random.rewards.sum(0) / 20)
    for name, version in market.versions.items():
        assert held.probabilities[name] == pytest.approx(version.probabilities[held.arena.rows])
        assert held.probabilities[name].sum(1) == pytest.approx(1)


def test_periods_change_nothing_for_arms_that_are_not_fitted(
    held: Contest, whole: Contest, market: Market
) -> None:
    assert held.arena.rows.tolist() == whole.arena.rows.tolist()
    for name in (AGENT, ALWAYS, RAW, POLICY, BASE_MODEL):
        assert held.played[name].r.tolist() == whole.played[name].r.tolist()
        assert held.books[name].curve.value.tolist() == whole.books[name].curve.value.tolist()
    assert held.random.rewards.tolist() == whole.random.rewards.tolist()
    first, *later = refitted(market.held_out, market.labels, market.versions, market.trained, 20.0)
    assert len(later) >= 2
    for name in HEURISTICS:
        ours, theirs = held.played[name].arm.approve, whole.played[name].arm.approve
        assert ours[: len(first.rows)].tolist() == theirs[: len(first.rows)].tolist(), (
            "the same was known"
        )


def same(one: Book, other: Book) -> bool:
    return bool(
        one.curve.value.tolist() == other.curve.value.tolist()
        and one.pnl.tolist() == other.pnl.tolist()
        and one.entered_at.tolist() == other.entered_at.tolist()
    )


def test_only_symbols_of_the_contest_are_bought_and_held(whole: Contest, market: Market) -> None:
    """Bars of SOLUSDT come first, and nobody answered a scenario of it."""
    assert set(whole.arena.symbols) == {"BTCUSDT", "ETHUSDT"}
    assert [bars.symbol for bars in market.history.bars] == ["SOLUSDT", "BTCUSDT", "ETHUSDT"]
    two = market.history.bars[1:]
    clock = Clock(two, int(whole.arena.as_of[0]), int(whole.arena.ends_at[-1]))
    assert len(whole.books[HOLD].taken) == 2
    assert same(whole.books[HOLD], buy_and_hold(clock, capital=CONFIG.capital, costs=COSTS))
    without = contest(market, 1000.0, bars=two)
    assert all(same(each, without.books[name]) for name, each in whole.books.items())


def played(plans: Orders, **columns: list[float]) -> Played:
    """Trades by hand, two hours each, one after the other; what `book` does not look at is
    nothing."""
    count = len(plans)
    entered_at = BEGIN + HOUR * (1 + 2 * np.arange(count))
    fates = replace(
        Fates.unknown(count),
        bought=np.array(columns["bought"]),
        sold=np.array(columns["sold"]),
        entered_at=entered_at,
        exited_at=entered_at + 2 * HOUR,
    )
    orders = replace(plans, quantity=np.array(columns["quantity"]))
    return Played(Arm(orders), fates, np.array(columns["r"]))


@pytest.mark.parametrize(
    ("size", "quantity", "pnl", "equity"),
    [
        # 2 units gain 10 each, 4 units lose 10 each.
        ("agent", [2.0, 4.0], [20.0, -40.0], 980.0),
        # Half of 1000 buys 5 units at 100: 1050. All of that buys 21 units at 50, sold at 40: 840.
        ("equity", [5.0, 21.0], [50.0, -210.0], 840.0),
    ],
)
def test_a_portfolio_trades_what_was_asked_for_or_a_share_of_all_equity(
    whole: Contest, size: str, quantity: list[float], pnl: list[float], equity: float
) -> None:
    ether = walk(2, "ETHUSDT")
    clock = Clock([walk(1, "BTCUSDT"), ether], BEGIN + HOUR, BEGIN + 10 * HOUR)
    plans = replace(
        whole.arena.plans.at(np.arange(3)),
        symbol=np.array(["ETHUSDT"] * 3),
        quantity=np.array([4.0, 4.0, 4.0]),
    )
    trades = played(
        plans,
        quantity=[2.0, np.nan, 4.0],
        bought=[100.0, np.nan, 50.0],
        sold=[110.0, np.nan, 40.0],
        r=[0.4, 0.0, -1.1],
    )
    arena = replace(whole.arena, plans=plans, costs=FREE)
    made = book(clock, arena, trades, EvaluateConfig(size=size, capital=1000.0))
    assert made.quantity == pytest.approx(quantity)
    assert made.pnl == pytest.approx(pnl)
    assert made.curve.value[-1] == pytest.approx(equity)
    assert made.r.tolist() == [0.4, -1.1], "what an order earned in R knows no portfolio"
    # Open at the second and at the sixth close, marked by the prices of their own symbol.
    worth = [0, quantity[0] * ether.close[1], 0, 0, 0, quantity[1] * ether.close[5], 0, 0, 0, 0]
    assert made.exposed == pytest.approx(worth)


def test_with_a_share_of_equity_gains_compound_in_the_contest(
    whole: Contest, market: Market
) -> None:
    """Where every plan is traded whole, each trade turns equity by its own price's move, after
    costs."""
    shared = contest(market, 1000.0, CONFIG.model_copy(update={"size": "equity"}))
    made, all_played = shared.books[ALWAYS], shared.played[ALWAYS]
    costs = COSTS
    moves = []
    for row in made.taken:
        paid = all_played.fates.bought[row] * (1 + costs.slippage) * (1 + costs.fee)
        moves.append(all_played.fates.sold[row] * (1 - costs.slippage) * (1 - costs.fee) / paid)
    assert len(moves) > 20
    assert made.curve.value[-1] == pytest.approx(CONFIG.capital * np.prod(moves))
    assert shared.rewards[ALWAYS].tolist() == whole.rewards[ALWAYS].tolist(), (
        "rewards know no portfolio"
    )
