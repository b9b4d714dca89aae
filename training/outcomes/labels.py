"""Labels: what every action of the action space would have earned in every scenario, and what the
agent's plan would.

Each scenario is four orders on the bars after its decision: the agent's plan, and entries with the
stop at 1.0, 1.5 and 2.5 ATR, all with the agent's targets. They are followed by
`training.outcomes.simulate.simulate`, all of a symbol at once, on the finest series that covers the
window without a hole, since finer bars tell whether stop or target came first. A risk fraction
changes the size and not the path, so that ten actions cost three simulations. Rejected candidates
are labelled like the others.

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
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.actions import ACTIONS, STOP_ATRS
from app.domain.candidate import Direction
from app.domain.case import order_for
from app.domain.scenario import Scenario
from training.agent.reference import TIME_EXIT_S
from training.arrays import Floats, Progress, silent
from training.config.data import OutcomesConfig
from training.market.bars import Bars
from training.outcomes.simulate import TRAIL_ATR, Costs, Exit, Fates, Orders, simulate
from training.scenarios.history import History
from training.scenarios.table import ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

TABLE = "labels.parquet"
REWARDS = "rewards.npy"
AGENT = "agent"
APPROVALS = ACTIONS[1:]
MAX_PRICE_GAP = 0.2
"""A plan whose entry is further than this fraction from the bars' price belongs to another market
or unit."""


class Exclusion(StrEnum):
    """Why a scenario has no labels; the first that applies."""

    NOT_A_LONG_ORDER = "not_a_long_order"
    """A short, or a stop that does not lie below entry: the simulator would refuse it."""
    NO_BARS = "no_bars"
    """No series of this symbol, or none around this time."""
    PRICE_MISMATCH = "price_mismatch"
    UNRESOLVED = "unresolved"
    """The bars end within the window."""
    GAP = "gap"
    """An outage left out bars within the window."""
    NO_VOLUME = "no_volume"
    """A bar within the window had no trades: nobody could have sold at its prices."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Rewards of N scenarios, rows aligned with the scenario set; NaN rows are excluded.

    rewards : (N, 10) agent R by action in the order of `ACTIONS`, clipped.
    agent_reward : (N,) R of the agent's plan if it is traded, clipped alike.
    table : N x 11 rows: `row`, `action` (label, or "agent"), `exit` (member of `Exit`),
        `entered_at`, `exited_at` (seconds since 1970 UTC), `bought`, `sold` (before costs),
        `quantity` (base units), `fees`, `slippage`, `net` (quote), `r` (own R: net over the order's
        own risk), `reward` (agent R, unclipped), `mae`, `mfe` (own R), `holding_s`, `resolution_s`
        (length of the bars that decided), `excluded` (reason or null). An action that rejects has
        an exit of null and zeros.
    """

    rewards: Floats
    agent_reward: Floats
    table: pl.DataFrame

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        table = pl.read_parquet(artifact / TABLE)
        clip = float(artifact.facts["clip_r"])
        agent = table.filter(pl.col("action") == AGENT).sort("row")["reward"].to_numpy()
        return cls(np.load(artifact / REWARDS), np.clip(agent, -clip, clip), table)


class Plans(NamedTuple):
    """Scenarios of one symbol as arrays of shape (N,); targets (N, 3), shares and stops by
    approving action (N, 9).

    Prices in quote currency, quantity in base units, times in seconds since 1970 UTC. `share` is an
    action's quantity over the plan's.
    """

    as_of: NDArray[np.int64]
    entry: Floats
    stop: Floats
    targets: Floats
    atr: Floats
    quantity: Floats
    long: NDArray[np.bool_]
    share: Floats

    @property
    def risk(self) -> Floats:
        """Of the agent's plan, per base unit."""
        return self.entry - self.stop

    def at(self, chosen: NDArray[np.int64]) -> Plans:
        """Some of them."""
        return Plans(
            self.as_of[chosen],
            self.entry[chosen],
            self.stop[chosen],
            self.targets[chosen],
            self.atr[chosen],
            self.quantity[chosen],
            self.long[chosen],
            self.share[chosen],
        )

    def orders(self, stop: Floats) -> Orders:
        """The entries with another stop."""
        return Orders(self.as_of, self.entry, stop, self.targets, self.atr)


def plans(scenarios: Sequence[Scenario], as_of: NDArray[np.int64]) -> Plans:
    """Arrays of scenarios. `as_of` is (N,), seconds rounded up."""
    rows = [
        (
            s.plan.entry,
            s.plan.stop,
            *three(s.plan.targets),
            s.candidate.atr,
            s.plan.quantity,
            s.candidate.direction,
        )
        for s in scenarios
    ]
    columns = np.array([row[:-1] for row in rows], dtype=np.float64).reshape(-1, 7)
    shares = [
        [order_for(action, s).quantity / s.plan.quantity for action in APPROVALS] for s in scenarios
    ]
    return Plans(
        as_of,
        columns[:, 0],
        columns[:, 1],
        columns[:, 2:5],
        columns[:, 5],
        columns[:, 6],
        np.array([row[-1] is Direction.LONG for row in rows], dtype=bool),
        np.array(shares).reshape(-1, len(APPROVALS)),
    )


def three(targets: Sequence[float]) -> tuple[float, ...]:
    """The nearest three targets; an absent one is out of reach."""
    return (*sorted(targets), np.inf, np.inf, np.inf)[: len(TRAIL_ATR)]


@dataclass(frozen=True, eq=False)
class Judged:
    """What became of N scenarios of a symbol. `fates` by stop distance in ATR, and of the agent's
    plan under `AGENT`.

    excluded : (N,) reasons, "" where there is none. resolution : (N,) seconds, 0 where excluded.
    """

    plans: Plans
    fates: dict[float | str, Fates]
    excluded: NDArray[np.str_]
    resolution: NDArray[np.int64]

    def rewards(self) -> Floats:
        """(N, 10) agent R, unclipped."""
        earned = [
            self.fates[a.stop_atr].net * self.plans.share[:, n] for n, a in enumerate(APPROVALS)
        ]
        approve = np.stack(earned, axis=1) / self.plans.risk[:, None]
        reject = np.where(np.isnan(approve[:, :1]), np.nan, 0.0)
        return np.concatenate([reject, approve], axis=1)

    def agent_reward(self) -> Floats:
        """(N,) R of the agent's plan if it is traded, unclipped."""
        return self.fates[AGENT].net / self.plans.risk


def judge(series: Sequence[Bars], given: Plans, costs: Costs) -> Judged:
    """Follow every order of one symbol on `series`, its bars of different lengths in any order."""
    count = len(given.as_of)
    excluded = np.full(count, "", dtype="<U24")
    excluded[~(given.long & (given.stop < given.entry) & (given.atr > 0))] = (
        Exclusion.NOT_A_LONG_ORDER
    )
    resolution = np.zeros(count, dtype=np.int64)
    stops: dict[float | str, Floats] = {AGENT: given.stop}
    stops |= {distance: given.entry - distance * given.atr for distance in STOP_ATRS}
    fates = {name: _nothing(count) for name in stops}
    waiting = excluded == ""
    reasons = np.full(count, Exclusion.NO_BARS, dtype="<U24")
    for bars in sorted(series, key=lambda one: one.seconds):
        here = np.flatnonzero(waiting)
        found = fitness(bars, given.at(here))
        reasons[here] = found
        here = here[found == ""]
        if not len(here):
            continue
        chosen = given.at(here)
        for name, stop in stops.items():
            _put(fates[name], here, simulate(bars, chosen.orders(stop[here]), costs))
        resolution[here] = bars.seconds
        waiting[here] = False
    excluded[waiting] = reasons[waiting]
    return Judged(given, fates, excluded, resolution)


def fitness(bars: Bars, given: Plans) -> NDArray[np.str_]:
    """Whether bars can judge each plan: "" or the reason why not. Shape (N,).

    They can when every bar from the entry to six hours after it is there and had trades, and the
    price that was planned is the market's.
    """
    reasons = np.full(len(given.as_of), "", dtype="<U24")
    if not len(bars):
        reasons[:] = Exclusion.NO_BARS
        return reasons
    opened = bars.closed_at - bars.seconds
    steps = -(-TIME_EXIT_S // bars.seconds)
    first = np.searchsorted(opened, given.as_of, side="left")
    begin, end = (np.minimum(place, len(bars) - 1) for place in (first, first + steps - 1))
    late = opened[begin] - given.as_of >= bars.seconds
    holes = bars.closed_at[end] - opened[begin] > steps * bars.seconds
    empty = np.concatenate([[0], np.cumsum(bars.volume == 0)])
    # The later a line, the stronger its word.
    reasons[empty[end + 1] > empty[begin]] = Exclusion.NO_VOLUME
    reasons[late | holes] = Exclusion.GAP
    reasons[~late & (np.abs(given.entry / bars.open[begin] - 1) > MAX_PRICE_GAP)] = (
        Exclusion.PRICE_MISMATCH
    )
    reasons[first + steps > len(bars)] = Exclusion.UNRESOLVED
    outside = (given.as_of < opened[0] - bars.seconds) | (
        given.as_of > bars.closed_at[-1] + TIME_EXIT_S
    )
    reasons[outside] = Exclusion.NO_BARS
    return reasons


def _nothing(count: int) -> Fates:
    numbers = {
        name: np.full(count, np.nan)
        for name in ("bought", "sold", "fees", "slippage", "net", "r", "mae", "mfe", "highest")
    }
    return Fates(
        exit=np.zeros(count, dtype=np.int8),
        entered_at=np.zeros(count, dtype=np.int64),
        exited_at=np.zeros(count, dtype=np.int64),
        **numbers,
    )


def _put(all_fates: Fates, where: NDArray[np.int64], some: Fates) -> None:
    for name, values in vars(some).items():
        getattr(all_fates, name)[where] = values


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
        folder,
        scenarios.scenarios(),
        scenarios.as_of,
        scenarios.real,
        market.series(),
        settings,
        progress,
    )


def build_labels(
    folder: Path,
    scenarios: Sequence[Scenario],
    as_of: NDArray[np.int64],
    real: NDArray[np.bool_],
    series: Mapping[str, Sequence[Bars]],
    config: OutcomesConfig,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Label every scenario, write table and rewards, and return facts: counts by exclusion, exit
    and resolution.

    Parameters
    ----------
    as_of, real : (N,), of the scenario set. Facts count real rows only.
    series : bars of every symbol, of one length or more.
    """
    symbols = np.array([s.candidate.symbol for s in scenarios])
    costs = Costs(config.fee, config.slippage)
    rewards = np.full((len(scenarios), len(ACTIONS)), np.nan)
    parts = []
    for done, symbol in enumerate(names := np.unique(symbols)):
        rows = np.flatnonzero(symbols == symbol)
        mine = [scenarios[int(row)] for row in rows]
        judged = judge(
            series.get(str(symbol), ()), plans(mine, as_of[rows] + config.delay_s), costs
        )
        rewards[rows] = judged.rewards()
        parts.append(_table(judged, rows, rewards[rows]))
        progress(done + 1, len(names))
    table = pl.concat(parts).sort("row", pl.col("action") != AGENT, "action")
    table.write_parquet(folder / TABLE)
    np.save(folder / REWARDS, np.clip(rewards, -config.clip_r, config.clip_r))
    return _facts(
        table.filter(pl.col("row").is_in(np.flatnonzero(real).tolist())), rewards[real], config
    )


def _table(judged: Judged, rows: NDArray[np.int64], rewards: Floats) -> pl.DataFrame:
    given = judged.plans
    parts = [
        _arm(judged, rows, AGENT, judged.fates[AGENT], np.ones(len(rows)), judged.agent_reward())
    ]
    parts.append(_arm(judged, rows, ACTIONS[0].label, None, np.zeros(len(rows)), rewards[:, 0]))
    for n, action in enumerate(APPROVALS):
        fates = judged.fates[action.stop_atr]
        parts.append(_arm(judged, rows, action.label, fates, given.share[:, n], rewards[:, n + 1]))
    return pl.concat(parts)


def _arm(
    judged: Judged,
    rows: NDArray[np.int64],
    name: str,
    fates: Fates | None,
    share: Floats,
    reward: Floats,
) -> pl.DataFrame:
    known = judged.excluded == ""
    quantity = share * judged.plans.quantity
    if fates is None:
        still = _nothing(len(rows))
        zero = np.where(known, 0.0, np.nan)
        fates = replace(still, fees=zero, slippage=zero, net=zero, r=zero, mae=zero, mfe=zero)
    traded = known & (fates.exit != Exit.UNRESOLVED)
    columns: dict[str, Any] = {
        "row": rows,
        "action": [name] * len(rows),
        "exit": pl.Series([Exit(int(e)).name.lower() for e in fates.exit], dtype=pl.String()),
        "entered_at": fates.entered_at,
        "exited_at": fates.exited_at,
        "bought": fates.bought,
        "sold": fates.sold,
        "quantity": quantity,
        "fees": fates.fees * quantity,
        "slippage": fates.slippage * quantity,
        "net": fates.net * quantity,
        "r": fates.r,
        "reward": reward,
        "mae": fates.mae,
        "mfe": fates.mfe,
        "holding_s": (fates.exited_at - fates.entered_at).astype(np.float64),
        "resolution_s": judged.resolution,
        "excluded": pl.Series([reason or None for reason in judged.excluded], dtype=pl.String()),
    }
    blank = pl.Series(~traded)
    only_traded = ("exit", "entered_at", "exited_at", "bought", "sold", "holding_s")
    return pl.DataFrame(columns).with_columns(
        pl.when(blank).then(None).otherwise(pl.col(c)).alias(c) for c in only_traded
    )


def _facts(table: pl.DataFrame, rewards: Floats, config: OutcomesConfig) -> dict[str, Any]:
    agent = table.filter(pl.col("action") == AGENT)
    known = ~np.isnan(rewards[:, 0])
    best = rewards[known].max(axis=1) if known.any() else np.zeros(0)
    return {
        "scenarios": len(agent),
        "labelled": int(known.sum()),
        "excluded": dict(sorted(Counter(agent["excluded"].drop_nulls()).items())),
        "exits": dict(sorted(Counter(agent["exit"].drop_nulls()).items())),
        "resolution_s": {
            str(key): n for key, n in sorted(Counter(agent["resolution_s"].filter(known)).items())
        },
        "mean_reward": {a.label: _mean(rewards[known, n]) for n, a in enumerate(ACTIONS)},
        "mean_agent_reward": _mean(agent["reward"].filter(known).to_numpy()),
        "mean_best_reward": _mean(best),
        "clipped": float(np.mean(np.abs(rewards[known]) > config.clip_r)) if known.any() else 0.0,
        "clip_r": config.clip_r,
        "costs": {"fee": config.fee, "slippage": config.slippage},
        "delay_s": config.delay_s,
    }


def _mean(values: Floats) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
