"""Rollouts: a row for each arm and scenario of a contest: estimates, calibration and replays need
nothing else.

The random veto has no rows: its orders are the policy's, dealt many times. Buy and hold answers no
scenario.
"""

from __future__ import annotations

import polars as pl

from app.domain.model.actions import ACTIONS
from training.arrays import Floats
from training.judging.contest.arena import Played
from training.judging.contest.arms import POLICY, RAW
from training.judging.contest.contest import Contest
from training.learning.model.answers import choices
from training.outcomes.simulate import Exit

ROLLOUTS = "rollouts.parquet"
ROLLOUTS_SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "scenario": pl.String(),
    "arm": pl.String(),
    "action": pl.String(),
    "trades": pl.Boolean(),
    "entry": pl.Float64(),
    "stop": pl.Float64(),
    "quantity": pl.Float64(),
    "probability": pl.Float64(),
    "probabilities": pl.List(pl.Float64()),
    "vetoes": pl.List(pl.String()),
    "exit": pl.String(),
    "entered_at": pl.Int64(),
    "exited_at": pl.Int64(),
    "bought": pl.Float64(),
    "sold": pl.Float64(),
    "fees": pl.Float64(),
    "slippage": pl.Float64(),
    "net": pl.Float64(),
    "r": pl.Float64(),
    "mae": pl.Float64(),
    "mfe": pl.Float64(),
}
"""`row` and `scenario` (its hash): of the scenario set. `action`: what a model version proposed,
before rules; null for rules. `entry`, `stop`, `quantity`: the final order; null where none was
placed, as is its fate. `probability`: of approving. `probabilities`: of the ten actions, a model's.
`vetoes`: codes that refused; null for arms that no rule judges one by one. Prices and money in
quote currency, `mae` and `mfe` (worst and best excursion) too; times in seconds since 1970 UTC; `r`
in R of the agent's plan, 0 without a trade."""
_OF_TRADES = (
    "entry",
    "stop",
    "quantity",
    "exit",
    "entered_at",
    "exited_at",
    "bought",
    "sold",
    "fees",
    "slippage",
    "net",
    "mae",
    "mfe",
)


def rollouts(contest: Contest) -> pl.DataFrame:
    """Every arm's rows, arm by arm, in the order of the contest's scenarios."""
    ids = [scenario.hash() for scenario in contest.scenarios]
    return pl.concat(_rows(contest, name, played, ids) for name, played in contest.played.items())


def _rows(contest: Contest, name: str, played: Played, ids: list[str]) -> pl.DataFrame:
    arm, fates = played.arm, played.fates
    believed = contest.probabilities.get(POLICY if name == RAW else name)
    columns = {
        "row": contest.arena.rows,
        "scenario": ids,
        "arm": [name] * len(ids),
        "action": _actions(believed),
        "trades": arm.approve,
        "entry": arm.orders.entry,
        "stop": arm.orders.stop,
        "quantity": arm.orders.quantity,
        "probability": arm.probability,
        "probabilities": None if believed is None else believed.tolist(),
        "vetoes": None if arm.vetoes is None else [list(codes) for codes in arm.vetoes],
        "exit": [Exit(number).name.lower() for number in fates.exit.tolist()],
        "entered_at": fates.entered_at,
        "exited_at": fates.exited_at,
        "bought": fates.bought,
        "sold": fates.sold,
        "fees": fates.fees,
        "slippage": fates.slippage,
        "net": fates.net,
        "r": played.r,
        "mae": fates.mae,
        "mfe": fates.mfe,
    }
    series = [
        pl.Series(column, [None] * len(ids) if values is None else values, dtype=kind)
        for (column, kind), values in zip(ROLLOUTS_SCHEMA.items(), columns.values(), strict=True)
    ]
    only_traded = [pl.when("trades").then(pl.col(column)).alias(column) for column in _OF_TRADES]
    return pl.DataFrame(series).with_columns(only_traded)


def _actions(believed: Floats | None) -> list[str] | None:
    if believed is None:
        return None
    return [ACTIONS[number].name for number in choices(believed)]
