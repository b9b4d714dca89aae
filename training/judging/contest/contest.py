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

from app.domain.rules.limits import Limits
from app.domain.scenario import Scenario, pair_of
from training.arrays import DAY_S, Floats, Progress, Rows, silent
from training.config.data import OutcomesConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.arena import Arena, ArenaError, Played
from training.judging.contest.arms import HOLD, POLICY, RANDOM, Arm, Given, Past, act
from training.judging.contest.performance import Performance, performance
from training.judging.contest.portfolio import Book, Clock, Size, Trades, buy_and_hold, trade
from training.learning.model.answers import Answers
from training.outcomes.labels import Labels
from training.scenarios.history import History
from training.scenarios.splits import walk_forward
from training.scenarios.table import PURGED, TRAIN, VALIDATE, ScenarioSet
from training.stages.parallel import over

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
    versions : answers to these rows by name; `POLICY` must be among them in a contest.
    past : what the simpler rivals are fitted on.
    """

    rows: Rows
    versions: Mapping[str, Answers]
    past: Past


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

    def past(self) -> Past:
        """Every real training and validation scenario with a known fate."""
        rows = np.concatenate(
            [self.scenarios.rows(name, real_only=True) for name in (TRAIN, VALIDATE)]
        )
        return past_of(self.scenarios, self.labels, rows, self.embargo_s)


def past_of(scenarios: ScenarioSet, labels: Labels, rows: Rows, embargo_s: float) -> Past:
    """What the rivals are fitted on, of these rows; those without a fate are left out."""
    rows = rows[np.isfinite(labels.agent_reward[rows])]
    return Past(
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
    before = trained.past()
    everything = before + past_of(held_out, labels, rows, trained.embargo_s)
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
    history: History,
    periods: Sequence[Period],
    limits: Limits,
    config: EvaluateConfig,
    outcomes: OutcomesConfig,
    progress: Progress = silent,
) -> Contest:
    """Play every arm.

    Parameters
    ----------
    history : bars that judge every order; those at whose closes decisions fall are the portfolio's
        clock.
    periods : in order of time, of rows with known rewards.
    progress : told periods answered and in all.
    """
    arena, played = play(held_out, history, periods, limits, outcomes, progress)
    pairs = {pair_of(str(symbol)) for symbol in arena.symbols}
    traded = [bars for bars in history.bars if pair_of(bars.symbol) in pairs]
    clock = Clock(traded, int(arena.as_of[0]), int(arena.ends_at[-1]))
    books = {name: book(clock, arena, each, config) for name, each in played.items()}
    books[HOLD] = buy_and_hold(clock, capital=config.capital, costs=arena.costs)
    measure = partial(performance, seconds=DAY_S, draws=config.draws, seed=config.seed)
    measured = over(measure, books.values(), config.workers, config.backend)
    every = held_out.scenarios()
    return Contest(
        arena,
        [every[row] for row in arena.rows],
        played,
        _random_veto(clock, arena, played[POLICY].arm, config),
        books,
        dict(zip(books, measured, strict=True)),
        {
            name: np.concatenate([period.versions[name].probabilities for period in periods])
            for name in periods[0].versions
        },
    )


def play(
    held_out: ScenarioSet,
    history: History,
    periods: Sequence[Period],
    limits: Limits,
    outcomes: OutcomesConfig,
    progress: Progress = silent,
) -> tuple[Arena, dict[str, Played]]:
    """What every arm does in all periods and what it earns, scenario by scenario: without `POLICY`
    among the versions, every arm that needs no language model."""
    rows = np.concatenate([period.rows for period in periods])
    arena = Arena.of(held_out, history.series(), outcomes, rows)
    if len(arena) != len(rows):
        raise ArenaError(f"of {len(rows)} scenarios with rewards bars judge only {len(arena)}")
    parts = []
    for number, period in enumerate(periods):
        parts.append(act(_given(held_out, arena, period, limits)))
        progress(number + 1, len(periods))
    played = {name: arena.play(Arm.joined([part[name] for part in parts])) for name in parts[0]}
    return arena, played


def _given(held_out: ScenarioSet, arena: Arena, period: Period, limits: Limits) -> Given:
    every, controls = held_out.scenarios(), held_out.controls()
    return Given(
        [every[row] for row in period.rows],
        [controls[row] for row in period.rows],
        arena.plans.at(np.searchsorted(arena.rows, period.rows)),
        held_out.features()[period.rows],
        period.past,
        period.versions,
        limits,
    )


def _random_veto(clock: Clock, arena: Arena, arm: Arm, config: EvaluateConfig) -> RandomVeto:
    rewards: list[Floats] = []
    books: list[Book] = []
    for dealt in arena.random_veto(arm, config.random_vetoes, config.seed):
        rewards.append(dealt.r)
        if len(books) < RANDOM_BOOKS:
            books.append(book(clock, arena, dealt, config))
    return RandomVeto(np.stack(rewards), tuple(books))


def book(clock: Clock, arena: Arena, played: Played, config: EvaluateConfig) -> Book:
    """The arm's trades as a portfolio, in the sizes that it asked for, or with its share of all
    equity."""
    taken = np.flatnonzero(played.arm.approve)
    numbers = {pair_of(bars.symbol): number for number, bars in enumerate(clock.bars)}
    symbol = np.array(
        [numbers[pair_of(str(name))] for name in arena.symbols[taken]], dtype=np.int64
    )
    quantity = played.arm.orders.quantity[taken]
    share = quantity / arena.plans.quantity[taken]
    size, rule = (quantity, Size.UNITS) if config.size == "agent" else (share, Size.OF_EQUITY)
    return trade(
        clock,
        Trades.of(symbol, played.fates.at(taken), played.r[taken], size),
        capital=config.capital,
        size=rule,
        max_open=config.max_open,
        costs=arena.costs,
    )
