"""The contest: every arm on the same held-out scenarios, walking forward, as rewards per scenario
and as a portfolio.

Rewards are net profit in R of the agent's plan, 0 where an arm does not trade, so that trading less
is not by itself better than trading well: it is compared with a random veto at the same rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.domain.control import AgentAction
from app.domain.limits import Limits
from app.domain.scenario import Scenario
from training.arrays import DAY_S, Floats, Progress, silent
from training.config.data import OutcomesConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.arena import Arena, ArenaError, Played
from training.judging.contest.arms import (
    Arm,
    Known,
    agent,
    allowed,
    always,
    fitted,
    policy,
    random_veto,
)
from training.judging.contest.performance import Performance, performance
from training.judging.contest.portfolio import Book, Clock, Size, Trades, buy_and_hold, trade
from training.learning.model.answers import Answers
from training.market.bars import Bars
from training.outcomes.labels import Labels
from training.outcomes.simulate import Costs
from training.scenarios.splits import walk_forward
from training.scenarios.table import PURGED, TRAIN, VALIDATE, ScenarioSet
from training.stages.parallel import over

AGENT, ALWAYS, HOLD, RANDOM = "agent", "always approve", "buy and hold", "random veto"
HEURISTICS = ("score threshold", "logistic regression", "gradient boosting")
RAW, POLICY = "policy before vetoes", "policy"
BASE_MODEL, WARM_UP, PROBE, CHAMPION = "base model", "warm-up", "linear probe", "champion"
CONTROLS = (BASE_MODEL, WARM_UP, PROBE, CHAMPION)
"""Versions that stand beside the policies and are no trials."""
RANDOM_BOOKS = 20
"""Draws of the random veto whose portfolios are kept; their rewards need no portfolio, and all
draws count there."""


@dataclass(frozen=True, eq=False)
class RandomVeto:
    """The policy's own answers dealt at random. rewards : (draws, N); books of the first few
    draws."""

    rewards: Floats
    books: tuple[Book, ...]

    @property
    def mean(self) -> Floats:
        """(N,) reward of each scenario, over draws: what the same rate earns without judgement."""
        return np.asarray(self.rewards.mean(axis=0))


@dataclass(frozen=True, eq=False)
class Period:
    """Consecutive held-out rows, and what was known before the first of them.

    rows : (n,) of the held-out set, in order of time.
    versions : answers to these rows by name; `POLICY` must be among them.
    known : what the simpler rivals are fitted on.
    """

    rows: NDArray[np.int64]
    versions: Mapping[str, Answers]
    known: Known


@dataclass(frozen=True, eq=False)
class Contest:
    """What happened. `played` and `books` are by arm's name; buy and hold has a book only.

    probabilities : (N, 10) of every model version, calibrated, by arm's name.
    """

    arena: Arena
    scenarios: Sequence[Scenario]
    played: Mapping[str, Played]
    random: RandomVeto
    books: Mapping[str, Book]
    performances: Mapping[str, Performance]
    probabilities: Mapping[str, Floats]

    @property
    def rewards(self) -> dict[str, Floats]:
        """(N,) R of every arm that answers scenario by scenario, the random veto's mean among
        them."""
        return {name: each.r for name, each in self.played.items()} | {RANDOM: self.random.mean}


@dataclass(frozen=True, eq=False)
class Trained:
    """What rivals are fitted on: scenarios and labels of the training period."""

    scenarios: ScenarioSet
    labels: Labels
    embargo_s: float

    @property
    def until(self) -> int:
        """The latest instant that a label of training or validation looked at; seconds since 1970
        UTC."""
        used = (self.scenarios.table["split"] != PURGED).to_numpy()
        return int(self.scenarios.ends_at[used].max())

    def known(self) -> Known:
        """Every real training and validation scenario with a known fate."""
        rows = np.concatenate(
            [self.scenarios.rows(name, real_only=True) for name in (TRAIN, VALIDATE)]
        )
        return known_of(self.scenarios, self.labels, rows, self.embargo_s)


def known_of(
    scenarios: ScenarioSet, labels: Labels, rows: NDArray[np.int64], embargo_s: float
) -> Known:
    """What the rivals are fitted on, of these rows; those without a fate are left out."""
    rows = rows[np.isfinite(labels.agent_reward[rows])]
    return Known(
        scenarios.features()[rows],
        labels.agent_reward[rows],
        scenarios.as_of[rows],
        scenarios.ends_at[rows],
        scenarios.weight[rows],
        embargo_s,
    )


def refitted(
    held_out: ScenarioSet,
    labels: Labels,
    versions: Mapping[str, Answers],
    trained: Trained,
    refit_days: float,
) -> list[Period]:
    """Periods of one version's evaluation: it answers throughout, the rivals are fitted anew on all
    that was over.

    Scenarios less than an embargo behind everything that was trained on are left out. `versions`
    answer all rows of `held_out`. Raises `ArenaError` when no scenario is left.
    """
    usable = held_out.real & np.isfinite(labels.rewards).all(1) & np.isfinite(labels.agent_reward)
    rows = np.flatnonzero(usable & (held_out.as_of >= trained.until + trained.embargo_s))
    if not len(rows):
        raise ArenaError(
            "no held-out scenario with a known outcome lies behind what was trained on: bring more"
            " bars"
        )
    before = trained.known()
    everything = before + known_of(held_out, labels, rows, trained.embargo_s)
    first = int(held_out.as_of[rows[0]])
    folds = walk_forward(
        everything.as_of,
        everything.ends_at,
        refit_days * DAY_S,
        first - int(before.as_of.min()),
        trained.embargo_s,
    )
    return [
        Period(
            rows[fold.test - len(before.as_of)],
            {name: each.at(rows[fold.test - len(before.as_of)]) for name, each in versions.items()},
            everything.at(fold.train),
        )
        for fold in folds
    ]


def hold_contest(
    held_out: ScenarioSet,
    labels: Labels,
    bars: Sequence[Bars],
    periods: Sequence[Period],
    limits: Limits,
    config: EvaluateConfig,
    outcomes: OutcomesConfig,
    progress: Progress = silent,
) -> Contest:
    """Play every arm.

    Parameters
    ----------
    bars : of the symbols, covering the period: the portfolio's clock.
    periods : in order of time, of rows with known rewards.
    progress : told periods answered and in all.
    """
    arena = Arena.of(held_out, labels, np.concatenate([each.rows for each in periods]))
    every, controls = held_out.scenarios(), held_out.controls()
    parts = []
    for number, period in enumerate(periods):
        parsed = [every[row] for row in period.rows]
        parts.append(
            _arms(held_out, period, parsed, [controls[row] for row in period.rows], limits)
        )
        progress(number + 1, len(periods))
    arms = [Arm.joined(each) for each in zip(*parts, strict=True)]
    played = {arm.name: arena.play(arm) for arm in arms}
    costs = Costs(outcomes.fee, outcomes.slippage)
    traded = [each for each in bars if each.symbol in set(arena.symbols)]
    clock = Clock(traded, int(arena.as_of[0]), int(arena.ends_at[-1]))
    books = {name: book(clock, arena, each, config, costs) for name, each in played.items()}
    books[HOLD] = buy_and_hold(clock, capital=config.capital, costs=costs)
    dealt = [
        arena.play(arm)
        for arm in random_veto(played[POLICY].arm, config.random_vetoes, config.seed)
    ]
    some = tuple(book(clock, arena, each, config, costs) for each in dealt[:RANDOM_BOOKS])
    measure = partial(performance, seconds=DAY_S, draws=config.draws, seed=config.seed)
    measured = dict(
        zip(books, over(measure, books.values(), config.workers, config.backend), strict=True)
    )
    return Contest(
        arena,
        [every[row] for row in arena.rows],
        played,
        RandomVeto(np.stack([each.r for each in dealt]), some),
        books,
        measured,
        {
            name: np.concatenate([each.versions[name].probabilities for each in periods])
            for name in periods[0].versions
        },
    )


def _arms(
    held_out: ScenarioSet,
    period: Period,
    parsed: Sequence[Scenario],
    controls: Sequence[AgentAction | None],
    limits: Limits,
) -> list[Arm]:
    plan = always(parsed)
    # Whoever advises does so behind the rules: what they refuse is no merit or fault of one
    # adviser.
    within = allowed(parsed, limits)
    rivals = fitted(period.known, plan, held_out.features()[period.rows])
    arms = [agent(parsed, controls), plan, *(rival.kept(rival.name, within) for rival in rivals)]
    for name, version in period.versions.items():
        raw, guarded = policy(parsed, version.raw, version.calibration, limits)
        if name == POLICY:
            arms.append(raw)
        arms.append(guarded.named(name))
    return arms


def book(clock: Clock, arena: Arena, played: Played, config: EvaluateConfig, costs: Costs) -> Book:
    """The arm's trades as a portfolio, in the sizes that it asked for, or with its share of all
    equity."""
    taken = np.flatnonzero(played.arm.approve)
    numbers = {each.symbol: number for number, each in enumerate(clock.bars)}
    trades = Trades(
        symbol=np.array([numbers[str(symbol)] for symbol in arena.symbols[taken]], dtype=np.int64),
        entered_at=played.entered_at[taken],
        exited_at=played.exited_at[taken],
        bought=played.bought[taken],
        sold=played.sold[taken],
        risk=played.arm.stop_atr[taken] * arena.atr[taken],
        size=played.quantity[taken] if config.size == "agent" else played.arm.share[taken],
    )
    size = Size.UNITS if config.size == "agent" else Size.OF_EQUITY
    return trade(
        clock, trades, capital=config.capital, size=size, max_open=config.max_open, costs=costs
    )
