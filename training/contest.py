"""The contest: every arm on the same held-out scenarios, as rewards per scenario and as a portfolio.

Rewards are net profit in R of the agent's plan, 0 where an arm does not trade, so that trading less is not by itself
better than trading well: it is compared with a random veto at the same rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.limits import Limits
from app.domain.manifest import Calibration
from app.domain.scenario import Scenario
from training.arena import Arena, Played
from training.arms import Arm, agent, always, fitted, policy, random_veto
from training.config import EvaluateConfig, OutcomesConfig
from training.labels import Labels
from training.market import Bars, Floats
from training.outcomes import Costs
from training.performance import Performance, performance
from training.portfolio import Book, Clock, Size, Trades, buy_and_hold, trade
from training.scenarios import PURGED, TRAIN, VALIDATE, ScenarioSet
from training.statistics import DAY_S

AGENT, ALWAYS, HOLD, RANDOM = "agent", "always approve", "buy and hold", "random veto"
HEURISTICS = ("score threshold", "logistic regression", "gradient boosting")
RAW, POLICY = "policy before vetoes", "policy"
RANDOM_BOOKS = 20
"""Draws of the random veto whose portfolios are kept; their rewards need no portfolio, and all draws count there."""


@dataclass(frozen=True, eq=False)
class Version:
    """A model version's answers to N held-out scenarios: (N, 10) raw label log-probabilities."""

    log_probabilities: NDArray[np.floating]
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class RandomVeto:
    """The policy's own answers dealt at random. rewards : (draws, N); books of the first few draws."""

    rewards: Floats
    books: tuple[Book, ...]

    @property
    def mean(self) -> Floats:
        """(N,) reward of each scenario, over draws: what the same rate earns without judgement."""
        return np.asarray(self.rewards.mean(axis=0))


@dataclass(frozen=True, eq=False)
class Contest:
    """What happened. `played` and `books` are by arm's name; buy and hold has a book only."""

    arena: Arena
    scenarios: Sequence[Scenario]
    played: Mapping[str, Played]
    random: RandomVeto
    books: Mapping[str, Book]
    performances: Mapping[str, Performance]

    @property
    def rewards(self) -> dict[str, Floats]:
        """(N,) R of every arm that answers scenario by scenario, the random veto's mean among them."""
        return {name: each.r for name, each in self.played.items()} | {RANDOM: self.random.mean}


@dataclass(frozen=True, eq=False)
class Trained:
    """What rivals are fitted on: scenarios and labels of the training period."""

    scenarios: ScenarioSet
    labels: Labels
    embargo_s: float

    @property
    def until(self) -> int:
        """The latest instant that a label of training or validation looked at; seconds since 1970 UTC."""
        used = (self.scenarios.table["split"] != PURGED).to_numpy()
        return int(self.scenarios.ends_at[used].max())


def hold_contest(
    held_out: ScenarioSet,
    labels: Labels,
    bars: Sequence[Bars],
    versions: Mapping[str, Version],
    trained: Trained,
    limits: Limits,
    config: EvaluateConfig,
    outcomes: OutcomesConfig,
) -> Contest:
    """Play every arm, on scenarios that lie an embargo or more behind everything that was trained on.

    Parameters
    ----------
    bars : of the symbols, covering the period: the portfolio's clock.
    versions : answers to all rows of `held_out` by name; `POLICY` must be among them.
    """
    after = np.flatnonzero(held_out.real & (held_out.as_of >= trained.until + trained.embargo_s))
    arena = Arena.of(held_out, labels, after)
    parsed = [held_out.scenarios()[row] for row in arena.rows]
    arms = _arms(held_out, arena, parsed, versions, trained, limits)
    played = {arm.name: arena.play(arm) for arm in arms}
    costs = Costs(outcomes.fee, outcomes.slippage)
    clock = Clock(bars, int(arena.as_of[0]), int(arena.ends_at[-1]))
    books = {name: book(clock, arena, each, config, costs) for name, each in played.items()}
    books[HOLD] = buy_and_hold(clock, capital=config.capital, costs=costs)
    dealt = [arena.play(arm) for arm in random_veto(played[POLICY].arm, config.random_vetoes, config.seed)]
    some = tuple(book(clock, arena, each, config, costs) for each in dealt[:RANDOM_BOOKS])
    rewards = np.stack([each.r for each in dealt])
    measured = {
        name: performance(each, seconds=DAY_S, draws=config.draws, seed=config.seed) for name, each in books.items()
    }
    return Contest(arena, parsed, played, RandomVeto(rewards, some), books, measured)


def _arms(
    held_out: ScenarioSet,
    arena: Arena,
    parsed: Sequence[Scenario],
    versions: Mapping[str, Version],
    trained: Trained,
    limits: Limits,
) -> list[Arm]:
    controls = held_out.controls()
    plan = always(parsed)
    rivals = _rivals(held_out, arena, plan, trained)
    arms = [agent(parsed, [controls[row] for row in arena.rows]), plan, *rivals]
    for name, version in versions.items():
        raw, guarded = policy(parsed, version.log_probabilities[arena.rows], version.calibration, limits)
        if name == POLICY:
            arms.append(raw)
        arms.append(guarded.named(name))
    return arms


def _rivals(held_out: ScenarioSet, arena: Arena, plan: Arm, trained: Trained) -> list[Arm]:
    """Fitted on every real training and validation scenario: all of them lie before the held-out period."""
    known = np.concatenate([trained.scenarios.rows(name, real_only=True) for name in (TRAIN, VALIDATE)])
    known = known[np.isfinite(trained.labels.agent_reward[known])]
    return fitted(
        trained.scenarios.features()[known],
        trained.labels.agent_reward[known],
        trained.scenarios.as_of[known],
        trained.scenarios.ends_at[known],
        trained.scenarios.weight[known],
        plan,
        held_out.features()[arena.rows],
        trained.embargo_s,
    )


def book(clock: Clock, arena: Arena, played: Played, config: EvaluateConfig, costs: Costs) -> Book:
    """The arm's trades as a portfolio, in the sizes that it asked for."""
    taken = np.flatnonzero(played.arm.approve)
    numbers = {each.symbol: number for number, each in enumerate(clock.bars)}
    trades = Trades(
        symbol=np.array([numbers[str(symbol)] for symbol in arena.symbols[taken]], dtype=np.int64),
        entered_at=played.entered_at[taken],
        exited_at=played.exited_at[taken],
        bought=played.bought[taken],
        sold=played.sold[taken],
        risk=played.arm.stop_atr[taken] * arena.atr[taken],
        size=played.quantity[taken],
    )
    return trade(clock, trades, capital=config.capital, size=Size.UNITS, max_open=config.max_open, costs=costs)
