"""Labels: what every action of the action space would have earned in every scenario, and what the
agent's plan would.

Each scenario is several orders on the bars after its decision: the agent's plan, and entries with
the stop at each distance of the action space, all with the agent's targets. They are followed on
the ground that judges the decision (`training.outcomes.ground`). A risk fraction changes the size
and not the path, so that all actions cost one simulation a stop. Rejected candidates are labelled
like the others.

The reward of an action is the net profit of its order (`order_for`: never more than the agent's
risk nor its notional) over the agent's own risk, quantity x (entry - stop) of its plan: "agent R".
The risk is some multiple of the ATR, so that rewards are normalised by volatility and by size.
`reject` earns 0. R is always computed from entry and stop: a risk that the agent reports ignores
structure-based stops.

Scenarios that bars cannot judge are left out, counted by reason (`Exclusion`), and carry NaN. A
decision that was skipped for an outage never becomes a scenario: `training/scenarios/recorded.py`
counts those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl

from app.domain.model.actions import ACTIONS, REJECT, STOP_ATRS
from app.domain.rules.case import order_for
from app.domain.scenario import Scenario
from training.arrays import Flags, Floats, Progress, Rows, silent
from training.config.data import OutcomesConfig
from training.market.bars import Bars
from training.outcomes.ground import Ground
from training.outcomes.orders import Orders, plan_order
from training.outcomes.simulate import Costs, Exit, Fates
from training.scenarios.history import History
from training.scenarios.table import ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

TABLE = "labels.parquet"
REWARDS = "rewards.npy"
AGENT = "agent"
APPROVALS = ACTIONS[1:]
ONLY_OF_TRADES = ("exit", "entered_at", "exited_at", "bought", "sold", "holding_s")
"""Columns that are null where nothing was traded."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Rewards of N scenarios, rows aligned with the scenario set; NaN rows are excluded.

    rewards : (N, 10) agent R by action in the order of `ACTIONS`, clipped.
    agent_reward : (N,) R of the agent's plan if it is traded, clipped alike.
    table : N x 11 rows: `row`, `action` (label, or "agent"), `exit` (member of `Exit`),
        `entered_at`, `exited_at` (seconds since 1970 UTC), `bought`, `sold` (before costs),
        `quantity` (base units), `fees`, `slippage`, `net` (quote), `reward` (agent R, unclipped),
        `mae`, `mfe` (agent R), `holding_s`, `resolution_s` (length of the bars that decided),
        `range_atr` (highest high less lowest low of the whole horizon, whatever the exit; ATR),
        `excluded` (reason or null). An action that rejects has an exit of null and zeros.
    """

    rewards: Floats
    agent_reward: Floats
    table: pl.DataFrame

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        table = pl.read_parquet(artifact / TABLE, glob=False)
        clip = float(artifact.facts["clip_r"])
        agent = table.filter(pl.col("action") == AGENT).sort("row")["reward"].to_numpy()
        return cls(np.load(artifact / REWARDS), np.clip(agent, -clip, clip), table)

    @cached_property
    def _plans(self) -> pl.DataFrame:
        return self.table.filter(pl.col("action") == AGENT).sort("row")

    @property
    def stopped(self) -> Flags:
        """(N,) whether the agent's plan ended at its initial stop."""
        stop = Exit.STOP.name.lower()
        return (self._plans["exit"] == stop).fill_null(value=False).to_numpy()

    @property
    def range_atr(self) -> Floats:
        """(N,) highest high less lowest low of the horizon, ATR; NaN where excluded."""
        return self._plans["range_atr"].to_numpy()


class Labelled(NamedTuple):
    """Scenarios, and what became of every answer to them."""

    scenarios: ScenarioSet
    labels: Labels


def plan_orders(scenarios: Sequence[Scenario], delay_s: int = 0) -> Orders:
    """The agent's plans, decided at each scenario's own second or so much later."""
    plans = Orders.of([plan_order(scenario) for scenario in scenarios])
    return replace(plans, as_of=plans.as_of + delay_s)


def shares_of(scenarios: Sequence[Scenario]) -> Floats:
    """(N, 9) quantity of every approving action's order over the plan's."""
    shares = [
        [order_for(action, scenario).quantity / scenario.plan.quantity for action in APPROVALS]
        for scenario in scenarios
    ]
    return np.array(shares).reshape(-1, len(APPROVALS))


@dataclass(frozen=True, eq=False)
class Judged:
    """What became of N scenarios.

    shares : (N, 9) quantity of every approving action over the plan's.
    fates : of the plan under `AGENT`, and of the plan's whole quantity with its stop at so many
        ATR.
    """

    plans: Orders
    shares: Floats
    ground: Ground
    fates: dict[float | str, Fates]

    def rewards(self) -> Floats:
        """(N, 10) agent R, unclipped."""
        rewards = np.empty((len(self.plans), len(ACTIONS)))
        rewards[:, 0] = np.where(self.ground.excluded == "", 0.0, np.nan)
        for number, action in enumerate(APPROVALS):
            net = self.fates[action.stop_atr].net * self.shares[:, number]
            rewards[:, number + 1] = net / self.plans.plan_risk
        return rewards

    def agent_reward(self) -> Floats:
        """(N,) R of the agent's plan if it is traded, unclipped."""
        return self.fates[AGENT].net / self.plans.plan_risk


def judge(
    series: Mapping[str, Sequence[Bars]], plans: Orders, shares: Floats, costs: Costs
) -> Judged:
    """Follow every order on `series`: bars of every symbol, of different lengths in any order."""
    ground = Ground.of(series, plans)
    fates: dict[float | str, Fates] = {AGENT: ground.follow(plans, costs)}
    for distance in STOP_ATRS:
        with_stop = replace(plans, stop=plans.entry - distance * plans.atr)
        fates[distance] = ground.follow(with_stop, costs)
    return Judged(plans, shares, ground, fates)


@stage("labels")
def labels(
    folder: Path,
    scenarios: ScenarioSet,
    market: History,
    *,
    settings: OutcomesConfig,
    progress: Progress = silent,
) -> Facts:
    """What every action would have earned."""
    return build_labels(
        folder, scenarios.scenarios(), scenarios.real, market.series(), settings, progress
    )


def build_labels(
    folder: Path,
    scenarios: Sequence[Scenario],
    real: Flags,
    series: Mapping[str, Sequence[Bars]],
    config: OutcomesConfig,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Label every scenario, write table and rewards, and return facts: counts by exclusion, exit
    and resolution.

    Parameters
    ----------
    real : (N,), of the scenario set. Facts count real rows only.
    series : bars of every symbol, of one length or more.
    """
    symbols = np.array([scenario.candidate.symbol for scenario in scenarios])
    costs = Costs.of(config)
    rewards = np.full((len(scenarios), len(ACTIONS)), np.nan)
    parts = []
    names = np.unique(symbols)
    for done, symbol in enumerate(names):
        rows = np.flatnonzero(symbols == symbol)
        mine = [scenarios[int(row)] for row in rows]
        judged = judge(series, plan_orders(mine, config.delay_s), shares_of(mine), costs)
        rewards[rows] = judged.rewards()
        parts.append(_table(judged, rows))
        progress(done + 1, len(names))
    table = pl.concat(parts).sort("row", pl.col("action") != AGENT, "action")
    table.write_parquet(folder / TABLE)
    np.save(folder / REWARDS, np.clip(rewards, -config.clip_r, config.clip_r))
    return _facts(
        table.filter(pl.col("row").is_in(np.flatnonzero(real).tolist())), rewards[real], config
    )


def _table(judged: Judged, rows: Rows) -> pl.DataFrame:
    whole = np.ones(len(rows))
    parts = [
        _of_action(judged, rows, AGENT, judged.fates[AGENT], whole),
        _of_rejection(judged, rows),
    ]
    for number, action in enumerate(APPROVALS):
        fates, share = judged.fates[action.stop_atr], judged.shares[:, number]
        parts.append(_of_action(judged, rows, action.label, fates, share))
    return pl.concat(parts)


def _of_action(judged: Judged, rows: Rows, name: str, fates: Fates, share: Floats) -> pl.DataFrame:
    """One action's rows; `fates` are those of the plan's quantity, of which it trades `share`."""
    traded = pl.Series(fates.exit != Exit.UNRESOLVED)
    exits = [Exit(int(number)).name.lower() for number in fates.exit]
    in_r = share / judged.plans.plan_risk
    table = pl.DataFrame({
        "row": rows,
        "action": [name] * len(rows),
        "exit": pl.Series(exits, dtype=pl.String()),
        "entered_at": fates.entered_at,
        "exited_at": fates.exited_at,
        "bought": fates.bought,
        "sold": fates.sold,
        "quantity": judged.plans.quantity * share,
        "fees": fates.fees * share,
        "slippage": fates.slippage * share,
        "net": fates.net * share,
        "reward": fates.net * in_r,
        "mae": fates.mae * in_r,
        "mfe": fates.mfe * in_r,
        "holding_s": (fates.exited_at - fates.entered_at).astype(np.float64),
        **_grounds(judged),
    })  # fmt: skip
    return table.with_columns(
        pl.when(traded).then(pl.col(column)).alias(column) for column in ONLY_OF_TRADES
    )


def _of_rejection(judged: Judged, rows: Rows) -> pl.DataFrame:
    """Nothing is traded and nothing earned, where anything could have been."""
    nothing = _of_action(judged, rows, REJECT.label, Fates.unknown(len(rows)), np.zeros(len(rows)))
    zero = np.where(judged.ground.excluded == "", 0.0, np.nan)
    money = ("fees", "slippage", "net", "reward", "mae", "mfe")
    return nothing.with_columns(pl.Series(name, zero) for name in money)


def _grounds(judged: Judged) -> dict[str, Any]:
    reasons = [str(reason) or None for reason in judged.ground.excluded]
    return {
        "resolution_s": judged.ground.resolution,
        "range_atr": judged.ground.range_of(judged.plans) / judged.plans.atr,
        "excluded": pl.Series(reasons, dtype=pl.String()),
    }


def _facts(table: pl.DataFrame, rewards: Floats, config: OutcomesConfig) -> dict[str, Any]:
    agent = table.filter(pl.col("action") == AGENT)
    labelled = ~np.isnan(rewards[:, 0])
    best = rewards[labelled].max(axis=1) if labelled.any() else np.zeros(0)
    return {
        "scenarios": len(agent),
        "labelled": int(labelled.sum()),
        "excluded": dict(sorted(Counter(agent["excluded"].drop_nulls()).items())),
        "exits": dict(sorted(Counter(agent["exit"].drop_nulls()).items())),
        "resolution_s": {
            str(key): n
            for key, n in sorted(Counter(agent["resolution_s"].filter(labelled)).items())
        },
        "mean_reward": {a.label: _mean(rewards[labelled, n]) for n, a in enumerate(ACTIONS)},
        "mean_agent_reward": _mean(agent["reward"].filter(labelled).to_numpy()),
        "mean_best_reward": _mean(best),
        "clipped": float(np.mean(np.abs(rewards[labelled]) > config.clip_r))
        if labelled.any()
        else 0.0,
        "clip_r": config.clip_r,
        "costs": {"fee": config.fee, "slippage": config.slippage},
        "delay_s": config.delay_s,
    }


def _mean(values: Floats) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
