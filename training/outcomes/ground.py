"""The ground that an order is judged on: the finest bars that cover its window without a hole.

Finer bars tell whether stop or target came first. What no bars can judge is left out, by reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.domain.charts.series import MAX_PRICE_GAP
from app.domain.scenario import pair_of
from training.arrays import Floats, Rows, Times
from training.market.bars import Bars
from training.outcomes.orders import Orders
from training.outcomes.simulate import Costs, Fates, simulate


class Exclusion(StrEnum):
    """Why bars cannot judge a decision; the first that applies."""

    NOT_A_LONG_ORDER = "not_a_long_order"
    """A short, a stop that does not lie below entry, or no ATR: the simulator would refuse it."""
    REPORTED_ONLY = "reported_only"
    """Its agent's exits are not known: only its own reports tell how it ended."""
    NO_BARS = "no_bars"
    """No series of this symbol, or none around this time."""
    PRICE_MISMATCH = "price_mismatch"
    UNRESOLVED = "unresolved"
    """The bars end within the window."""
    GAP = "gap"
    """An outage left out bars within the window."""
    NO_VOLUME = "no_volume"
    """A bar within the window had no trades: nobody could have sold at its prices."""


_REASON = f"<U{max(map(len, Exclusion))}"


@dataclass(frozen=True, eq=False)
class Ground:
    """Which bars judge each of N decisions.

    excluded : (N,) reasons why none can, "" where some do.
    judges : bars, and the decisions (rows) that they judge; every judged row is in one of them.
    """

    excluded: NDArray[np.str_]
    judges: tuple[tuple[Bars, Rows], ...]

    @classmethod
    def of(cls, series: Mapping[str, Sequence[Bars]], plans: Orders) -> Self:
        """Of N plans. `series` : bars of every symbol, however it is spelt, of one length or more,
        in any order."""
        sound = plans.sound & (plans.atr > 0)  # Actions have their stops at so many ATR.
        excluded = np.where(sound, Exclusion.NO_BARS, Exclusion.NOT_A_LONG_ORDER).astype(_REASON)
        excluded[plans.longest == 0] = Exclusion.REPORTED_ONLY
        judges = []
        by_pair = {pair_of(symbol): bars for symbol, bars in series.items()}
        for symbol in np.unique(plans.symbol):
            waiting = np.flatnonzero((plans.symbol == symbol) & sound)
            for bars in sorted(
                by_pair.get(pair_of(str(symbol)), ()), key=lambda bars: bars.seconds
            ):
                reasons = fitness(bars, plans.at(waiting))
                excluded[waiting] = reasons
                fit = reasons == ""
                if fit.any():
                    judges.append((bars, waiting[fit]))
                waiting = waiting[~fit]
        return cls(excluded, tuple(judges))

    def __len__(self) -> int:
        return len(self.excluded)

    @property
    def resolution(self) -> NDArray[np.int64]:
        """(N,) length of the bars that judge, seconds; 0 where none does."""
        seconds = np.zeros(len(self), dtype=np.int64)
        for bars, rows in self.judges:
            seconds[rows] = bars.seconds
        return seconds

    def range_of(self, plans: Orders) -> Floats:
        """(N,) highest high less lowest low from the entry bar to the time exit, quote currency;
        NaN where no bars judge. What a stop did in between changes nothing."""
        span = np.full(len(self), np.nan)
        for bars, judged in self.judges:
            for longest in np.unique(plans.longest[judged]):
                rows = judged[plans.longest[judged] == longest]
                opened = bars.closed_at - bars.seconds
                first = np.searchsorted(opened, plans.as_of[rows], side="left")
                window = first[:, None] + np.arange(-(-longest // bars.seconds))
                span[rows] = bars.high[window].max(axis=1) - bars.low[window].min(axis=1)
        return span

    def follow(self, orders: Orders, costs: Costs, decisions: Rows | None = None) -> Fates:
        """Fates of M orders, each on the bars that judge its decision.

        `decisions` : (M,) which decision each order answers; None: one order each, in order.
        """
        which = np.arange(len(self)) if decisions is None else decisions
        judge = np.full(len(self), -1)
        for number, (_, rows) in enumerate(self.judges):
            judge[rows] = number
        fates = Fates.unknown(len(orders))
        for number, (bars, _) in enumerate(self.judges):
            here = np.flatnonzero((judge[which] == number) & orders.placed)
            fates.put(here, simulate(bars, orders.at(here), costs))
        return fates


def fitness(bars: Bars, plans: Orders, ended_at: Times | None = None) -> NDArray[np.str_]:
    """Whether bars can judge each plan: "" or the reason why not. Shape (N,).

    They can when every bar from the entry to the end of the longest trade that its exits allow is
    there and had trades, and the price that was planned is the market's.

    Parameters
    ----------
    ended_at : closes of the bars in which the orders ended, as simulated: no later bar matters to
        them. None where every order of the plans shall be judged.
    """
    reasons = np.full(len(plans), "", dtype=_REASON)
    if not len(bars):
        reasons[:] = Exclusion.NO_BARS
        return reasons
    opened = bars.closed_at - bars.seconds
    longest = plans.longest
    steps = -(-longest // bars.seconds)
    first = np.searchsorted(opened, plans.as_of, side="left")
    last = first + steps - 1
    if ended_at is not None:
        last = np.minimum(last, np.searchsorted(bars.closed_at, ended_at, side="left"))
    begin, end = (np.minimum(place, len(bars) - 1) for place in (first, last))
    late = opened[begin] - plans.as_of >= bars.seconds
    holes = bars.closed_at[end] - opened[begin] > (last - first + 1) * bars.seconds
    empty = np.concatenate([[0], np.cumsum(bars.volume == 0)])
    gap: Floats = np.abs(plans.entry / bars.open[begin] - 1)
    outside = (plans.as_of < opened[0] - bars.seconds) | (
        plans.as_of > bars.closed_at[-1] + longest
    )
    # The later a line, the stronger its word.
    reasons[empty[end + 1] > empty[begin]] = Exclusion.NO_VOLUME
    reasons[late | holes] = Exclusion.GAP
    reasons[~late & (gap > MAX_PRICE_GAP)] = Exclusion.PRICE_MISMATCH
    reasons[last >= len(bars)] = Exclusion.UNRESOLVED
    reasons[outside] = Exclusion.NO_BARS
    return reasons
