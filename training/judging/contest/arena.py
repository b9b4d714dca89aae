"""Where arms meet: the same scenarios, the same bars, the same costs. An order per scenario becomes
what it earned.

Orders are looked up, not simulated again: an arm's stop is the plan's or one of the action space's,
its size a share of the plan's, and `training.outcomes.labels` followed exactly those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.actions import ACTIONS, STOP_ATRS
from app.domain.errors import AdvisorError
from training.arrays import Floats
from training.judging.contest.arms import Arm
from training.outcomes.labels import AGENT, Labels
from training.scenarios.table import ScenarioSet

_COLUMNS = ("net", "fees", "slippage", "quantity", "bought", "sold", "r", "mae", "mfe", "holding_s")
_TIMES = ("entered_at", "exited_at")
_SAME_STOP = 1e-6


class ArenaError(AdvisorError):
    """An arm cannot be played on these scenarios."""


@dataclass(frozen=True, eq=False)
class Played:
    """What an arm did and earned; arrays of shape (N,) over the arena's scenarios.

    r : net profit in R of the agent's plan, 0 where it did not trade. own_r : in R of the order
    itself, NaN likewise. quantity (base units), bought, sold (before costs), fees, slippage, net
    (quote): of the trade, NaN likewise.
    entered_at, exited_at : seconds since 1970 UTC, 0 likewise.
    """

    arm: Arm
    r: Floats
    own_r: Floats
    quantity: Floats
    bought: Floats
    sold: Floats
    fees: Floats
    slippage: Floats
    net: Floats
    entered_at: NDArray[np.int64]
    exited_at: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arena:
    """Real, labelled scenarios in order of time. Arrays of shape (N,); `ways` holds each stop's
    fate at whole size.

    rows : their rows in the scenario set. stops : distance in ATR of each way, the agent's plan
        first.
    risk : quote, of the agent's plan. atr : price.
    """

    rows: NDArray[np.int64]
    as_of: NDArray[np.int64]
    ends_at: NDArray[np.int64]
    symbols: NDArray[np.str_]
    risk: Floats
    plan_quantity: Floats
    plan_stop_atr: Floats
    atr: Floats
    ways: dict[str, dict[str, Floats]]

    @classmethod
    def of(
        cls, scenarios: ScenarioSet, labels: Labels, rows: NDArray[np.int64] | None = None
    ) -> Self:
        """Of scenario rows, by default all real ones; excluded ones and synthetic ones are left
        out."""
        wanted = np.flatnonzero(scenarios.real) if rows is None else np.asarray(rows)
        known = wanted[scenarios.real[wanted] & np.isfinite(labels.rewards[wanted]).all(axis=1)]
        if not len(known):
            raise ArenaError(
                "no scenario with a known outcome is left: more bars are needed after the last"
                " decision"
            )
        parsed = scenarios.scenarios()
        plans = [(parsed[row].plan, parsed[row].candidate.atr) for row in known]
        quantity = np.array([plan.quantity for plan, _ in plans])
        distance = np.array([plan.entry - plan.stop for plan, _ in plans])
        atr = np.array([each for _, each in plans])
        return cls(
            known,
            scenarios.as_of[known],
            scenarios.ends_at[known],
            scenarios.symbols[known],
            quantity * distance,
            quantity,
            distance / atr,
            atr,
            _ways(labels.table, known),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def play(self, arm: Arm) -> Played:
        """What the arm earned.

        Raises
        ------
        ArenaError : another number of scenarios, or a stop that no label has.
        """
        if len(arm.approve) != len(self):
            raise ArenaError(
                f"arm {arm.name!r} answers {len(arm.approve)} scenarios, there are {len(self)}"
            )
        found = {name: np.full(len(self), np.nan) for name in (*_COLUMNS, *_TIMES)}
        left = arm.approve.copy()
        distances = {AGENT: self.plan_stop_atr} | {
            str(each): np.full(len(self), each) for each in STOP_ATRS
        }
        for name, distance in distances.items():
            here = left & (np.abs(arm.stop_atr - distance) < _SAME_STOP)
            left &= ~here
            for column, values in found.items():
                values[here] = self.ways[name][column][here]
        if left.any():
            where = int(np.argmax(left))
            raise ArenaError(
                f"arm {arm.name!r}, scenario {where}: no label has a stop at"
                f" {arm.stop_atr[where]:.4f} ATR"
            )
        share = np.where(arm.approve, arm.share, 0.0)
        net = found["net"] * share
        return Played(
            arm,
            r=np.nan_to_num(net / self.risk),
            own_r=found["r"],
            quantity=found["quantity"] * share,
            bought=found["bought"],
            sold=found["sold"],
            fees=found["fees"] * share,
            slippage=found["slippage"] * share,
            net=net,
            entered_at=np.nan_to_num(found["entered_at"]).astype(np.int64),
            exited_at=np.nan_to_num(found["exited_at"]).astype(np.int64),
        )


def _ways(table: pl.DataFrame, rows: NDArray[np.int64]) -> dict[str, dict[str, Floats]]:
    """Fates of the agent's plan and of each stop, scaled to the plan's whole quantity. Times as
    float seconds."""
    whole = {
        action.stop_atr: action.label
        for action in ACTIONS
        if action.approve and action.risk_fraction == 1.0
    }
    plan = _columns(table, AGENT, rows)
    ways = {AGENT: plan}
    for distance in STOP_ATRS:
        way = _columns(table, whole[distance], rows)
        scale = plan["quantity"] / way["quantity"]
        for column in ("net", "fees", "slippage", "quantity"):
            way[column] = way[column] * scale
        ways[str(distance)] = way
    return ways


def _columns(table: pl.DataFrame, action: str, rows: NDArray[np.int64]) -> dict[str, Floats]:
    part = table.filter(pl.col("action") == action).sort("row")
    places = np.searchsorted(part["row"].to_numpy(), rows)
    return {name: part[name].cast(pl.Float64).to_numpy()[places] for name in (*_COLUMNS, *_TIMES)}
