"""Lessons: what the teacher is told of scenarios, and what became of them.

It is asked one question at a time. Three are of the profit before costs of one unit with its stop
at each distance of the action space, in ATR, and three of its square. What that is in R follows
from the plan's own stop, and costs follow from the plan too: both are no question. An action trades
a share of the plan's quantity (`shares_of`), so that three answers value all ten actions. The
others are of the agent's plan: does it win, is it stopped; and of the market: how far does it
range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import ACTIONS, RISK_FRACTIONS, STOP_ATRS
from app.domain.scenario import Scenario
from training.agent.reference import ASSUMED_SPREAD_BPS, STOP_ATR
from training.arrays import Columns, Flags, Floats, Rows, Times
from training.config.data import OutcomesConfig
from training.outcomes.labels import APPROVALS, Labels, shares_of
from training.scenarios.table import ScenarioSet

GROSS = tuple(f"gross_{distance:g}" for distance in STOP_ATRS)
SQUARE = tuple(f"square_{distance:g}" for distance in STOP_ATRS)
WIN, STOPPED, RANGE = "win", "stopped", "range"
CHANCES = (WIN, STOPPED)
QUESTIONS = (*GROSS, *SQUARE, WIN, STOPPED, RANGE)
UNREAD = ("day_pnl_fraction", "drawdown_fraction", "consecutive_losses")
"""Features that the teacher is not told: a price does not know whose account it moves."""
READ = tuple(number for number, name in enumerate(FEATURE_NAMES) if name not in UNREAD)
OF_STOP = tuple(STOP_ATRS.index(action.stop_atr) for action in APPROVALS)
"""(9,) which of the three distances each approving action has."""
_LEAST_STOP_ATR = 1e-6
_WHOLE = tuple(
    number
    for number, action in enumerate(ACTIONS)
    if action.approve and action.risk_fraction == max(RISK_FRACTIONS)
)


@dataclass(frozen=True, eq=False)
class Told(Columns):
    """What is known of N scenarios when they are decided.

    inputs : (N, len(READ) + 1) features, then costs; NaN where not known.
    shares : (N, 9) quantity of each approving action over the plan's.
    stop_atr : (N,) distance of the plan's stop, ATR: what one R is.
    stake : (N,) the plan's risk over the account's equity: what one R is to the account; NaN where
        that is not reported.
    costs : (N,) of trading the plan's whole quantity, both sides, in R.
    beyond : (N,) the part of them that labels leave out, for a spread wider than the assumed one.
    """

    inputs: Floats
    shares: Floats
    stop_atr: Floats
    stake: Floats
    costs: Floats
    beyond: Floats

    @classmethod
    def of(cls, scenarios: ScenarioSet, outcomes: OutcomesConfig) -> Self:
        """Of a table of scenarios."""
        parsed = scenarios.scenarios()
        beyond = spread_beyond(parsed)
        costs = 2 * (outcomes.fee + outcomes.slippage) / risk_of(parsed) + beyond
        inputs = np.column_stack([scenarios.features()[:, list(READ)], costs])
        return cls(inputs, shares_of(parsed), stop_atr_of(parsed), stake_of(parsed), costs, beyond)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What N scenarios teach.

    answers : (N, len(QUESTIONS)); NaN where bars cannot judge.
    weight : (N,) uniqueness. as_of, ends_at : (N,) seconds.
    """

    told: Told
    answers: Floats
    weight: Floats
    as_of: Times
    ends_at: Times

    @classmethod
    def of(cls, scenarios: ScenarioSet, labels: Labels, outcomes: OutcomesConfig) -> Self:
        """Of labelled scenarios."""
        told = Told.of(scenarios, outcomes)
        return cls(
            told,
            answers_of(told, labels),
            scenarios.weight,
            np.minimum(scenarios.as_of, scenarios.as_of[scenarios.parent]),
            np.maximum(scenarios.ends_at, scenarios.ends_at[scenarios.parent]),
        )

    def at(self, rows: Rows | Flags) -> Self:
        """Some of them."""
        return type(self)(
            self.told.at(rows),
            self.answers[rows],
            self.weight[rows],
            self.as_of[rows],
            self.ends_at[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(
            Told.joined([part.told for part in parts]),
            np.concatenate([part.answers for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.as_of for part in parts]),
            np.concatenate([part.ends_at for part in parts]),
        )


def risk_of(scenarios: Sequence[Scenario]) -> Floats:
    """(N,) the plan's distance to its stop over its entry: what one R is, as a fraction."""
    plans = [scenario.plan for scenario in scenarios]
    return np.array([abs(plan.entry - plan.stop) / plan.entry for plan in plans])


def stop_atr_of(scenarios: Sequence[Scenario]) -> Floats:
    """(N,) the plan's distance to its stop, ATR; the reference agent's where no ATR is known."""
    distances = [
        STOP_ATR if s.candidate.atr is None else abs(s.plan.entry - s.plan.stop) / s.candidate.atr
        for s in scenarios
    ]
    return np.maximum(distances, _LEAST_STOP_ATR)


def stake_of(scenarios: Sequence[Scenario]) -> Floats:
    """(N,) the plan's risk over the account's equity; NaN where that is not reported."""
    return np.array([s.plan.risk / (s.account.equity or np.nan) for s in scenarios])


def spread_beyond(scenarios: Sequence[Scenario]) -> Floats:
    """(N,) R. Slippage stands for the spread that the reference agent assumes; what a scenario's
    spread has beyond it is paid on top, half on each side."""
    spreads = (scenario.candidate.spread_bps for scenario in scenarios)
    wider = [max((spread or 0.0) - ASSUMED_SPREAD_BPS, 0.0) / 10_000 for spread in spreads]
    return np.asarray(np.array(wider) / risk_of(scenarios))


def answers_of(told: Told, labels: Labels) -> Floats:
    """(N, len(QUESTIONS)) what came, from the labels."""
    whole = list(_WHOLE)
    net = labels.rewards[:, whole] / told.shares[:, [number - 1 for number in whole]]
    gross = (net + (told.costs - told.beyond)[:, None]) * told.stop_atr[:, None]
    known = np.isfinite(labels.agent_reward)
    won = labels.agent_reward > told.beyond
    chances = np.column_stack([won, labels.stopped]).astype(float)
    chances[~known] = np.nan
    return np.column_stack([gross, gross**2, chances, np.log(labels.range_atr)])
