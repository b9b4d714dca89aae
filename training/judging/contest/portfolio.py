"""One portfolio engine for every arm: trades with known fates in, an equity curve on the bars' own
clock out.

Conventions, beside those of `training.outcomes.simulate`, which says when and at what price a trade
enters and leaves:

- Spot and long only: an order is cut down to what the cash can pay, and refused when there is none.
- At most `max_open` trades at a time, and one per symbol. A trade that leaves in a bar makes room
  at the next open.
- Orders of one moment are taken as they are listed: list the preferred first.
- Slippage worsens both prices, the fee is paid on both notionals.
- At every close open trades are worth quantity x close, before what selling would cost. Where a bar
  is missing, the last close stands; before a symbol's first close, the price that was paid for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Self

import numpy as np

from app.domain.errors import AdvisorError
from training.arrays import DAY_S, Columns, Floats, Rows, Times
from training.market.bars import Bars
from training.outcomes.simulate import COSTS, Costs, Fates

_DUST = 1e-9
"""A share of an order that is rounding, not a trade."""


class PortfolioError(AdvisorError):
    """Trades or bars do not fit together."""


class Refused(StrEnum):
    """Why an order did not become a trade."""

    UNRESOLVED = "unresolved"
    """The bars end, or leave a hole, before its exit is known."""
    OUTSIDE = "outside"
    """It enters before the clock begins or leaves after it ends."""
    MAX_OPEN = "max_open"
    SYMBOL_OPEN = "symbol_open"
    NO_CASH = "no_cash"


@dataclass(frozen=True, eq=False)
class Trades(Columns):
    """Fates as a portfolio sees them; arrays of shape (N,), in any order. Prices in quote currency,
    before costs.

    symbol : position in the list of bars.
    entered_at, exited_at : open of the entry bar, close of the exit bar; seconds since 1970 UTC.
    bought, sold : NaN where unresolved.
    r : what the order earned, in R of the agent's plan; NaN where there is no plan.
    size : what the `Size` rule says.
    """

    symbol: Rows
    entered_at: Times
    exited_at: Times
    bought: Floats
    sold: Floats
    r: Floats
    size: Floats

    @classmethod
    def of(cls, symbol: Rows, fates: Fates, r: Floats, size: Floats) -> Self:
        """Trades with these fates."""
        return cls(symbol, fates.entered_at, fates.exited_at, fates.bought, fates.sold, r, size)


def _units(size: float, equity: float, price: float) -> float:
    return size


def _of_equity(size: float, equity: float, price: float) -> float:
    return size * equity / price


class Size(Enum):
    """What `Trades.size` means: (size, equity at entry, price with slippage) gives base units."""

    UNITS = (_units,)
    """Base units."""
    OF_EQUITY = (_of_equity,)
    """Fraction of equity that is spent, before the fee."""

    @property
    def units(self) -> Callable[[float, float, float], float]:
        """The rule."""
        return self.value[0]


def drawdown(value: Floats, begin: float) -> Floats:
    """(..., T) fraction by which each value lies below the last peak, 0-1; `begin` is the first
    peak."""
    peak = np.maximum(np.maximum.accumulate(value, axis=-1), begin)
    return np.asarray(1 - value / peak)


@dataclass(frozen=True, eq=False)
class Curve:
    """Equity at each close of the clock; arrays of shape (T,). It begins with `capital` at
    `begins_at`."""

    begins_at: int
    at: Times
    value: Floats
    capital: float

    @property
    def returns(self) -> Floats:
        """Simple return of each step, (T,)."""
        return np.asarray(self.value / np.concatenate([[self.capital], self.value[:-1]]) - 1)

    @property
    def years(self) -> float:
        """Its length; a year has 365.25 days."""
        return float(self.at[-1] - self.begins_at) / (365.25 * DAY_S)

    @property
    def steps_per_year(self) -> float:
        """The curve's own clock: what it is annualised by."""
        return len(self.at) / self.years

    @property
    def drawdown(self) -> Floats:
        """(T,) fraction below the last peak."""
        return drawdown(self.value, self.capital)

    def sampled(self, seconds: int) -> Curve:
        """The same curve seen only at the last close of each period of `seconds` (UTC)."""
        # A close at the stroke of midnight belongs to the day that it ends.
        period = (self.at - 1) // seconds
        last = np.flatnonzero(np.append(np.diff(period) > 0, True))
        return Curve(self.begins_at, self.at[last], self.value[last], self.capital)


@dataclass(frozen=True, eq=False)
class Book:
    """What a portfolio did. Arrays over the M trades taken, in order of entry.

    taken : (M,) positions in the trades given.
    quantity, pnl, notional : base units; profit after costs; what was paid and received, before
        fees. Quote currency.
    r : what the order earned, in R of the agent's plan, times the share of it that the cash could
        pay; NaN where there is no plan.
    exposed : (T,) value of open trades at each close.
    refused : how many orders were not taken, for every reason.
    """

    curve: Curve
    taken: Rows
    quantity: Floats
    pnl: Floats
    r: Floats
    notional: Floats
    entered_at: Times
    held_s: Times
    exposed: Floats
    refused: Mapping[Refused, int]


class Clock:
    """Closes of all symbols on one time line: the union of their bars' closes from `first` to
    `last` (seconds).

    Build it once and use it for all arms.
    """

    def __init__(
        self, bars: Sequence[Bars], first: int | None = None, last: int | None = None
    ) -> None:
        if not bars or not all(len(each) for each in bars):
            raise PortfolioError("a portfolio needs symbols with bars: one has none")
        closes = np.unique(np.concatenate([each.closed_at for each in bars]))
        begin = 0 if first is None else np.searchsorted(closes, first, side="left")
        end = len(closes) if last is None else np.searchsorted(closes, last, side="right")
        self.at: Times = closes[begin:end]
        if not len(self.at):
            raise PortfolioError(f"no bar closes between {first} and {last}")
        self.bars = bars
        self.begins_at = int(self.at[0] - min(each.seconds for each in bars))
        seen = [np.searchsorted(each.closed_at, self.at, side="right") - 1 for each in bars]
        self.close: Floats = np.stack(
            [
                np.where(i >= 0, each.close[np.maximum(i, 0)], np.nan)
                for each, i in zip(bars, seen, strict=True)
            ]
        )
        """(S, T) last close known of each symbol; NaN before its first."""


def trade(
    clock: Clock,
    trades: Trades,
    *,
    capital: float,
    size: Size = Size.UNITS,
    max_open: int = 1,
    costs: Costs = COSTS,
) -> Book:
    """Take the trades one after the other, as far as the rules above allow, and mark them to
    market.

    Raises
    ------
    PortfolioError : capital or `max_open` is not positive, or a resolved trade lacks a positive
        price, risk or size.
    """
    _check(clock, trades, capital, max_open)
    refused = dict.fromkeys(Refused, 0)
    resolved = np.isfinite(trades.sold)
    inside = (trades.entered_at >= clock.begins_at) & (trades.exited_at <= clock.at[-1])
    refused[Refused.UNRESOLVED] = int((~resolved).sum())
    refused[Refused.OUTSIDE] = int((resolved & ~inside).sum())
    candidates = np.flatnonzero(resolved & inside)
    candidates = candidates[np.argsort(trades.entered_at[candidates], kind="stable")]
    ledger = _Ledger(clock, trades, capital, costs, size.units)
    for row in candidates.tolist():
        reason = ledger.offer(row, max_open)
        if reason is not None:
            refused[reason] += 1
    return _book(clock, trades, ledger, refused)


class _Ledger:
    """Cash and open trades while time goes on, one order at a time."""

    def __init__(
        self,
        clock: Clock,
        trades: Trades,
        capital: float,
        costs: Costs,
        units: Callable[[float, float, float], float],
    ) -> None:
        self.clock, self.capital, self.units = clock, capital, units
        self.cash = capital
        # Lists: Python reads single numbers from them several times faster than from arrays.
        self.symbol, self.entered_at = trades.symbol.tolist(), trades.entered_at.tolist()
        self.exited_at, self.size = trades.exited_at.tolist(), trades.size.tolist()
        self.price: list[float] = (trades.bought * (1 + costs.slippage)).tolist()
        self.paid = trades.bought * (1 + costs.slippage) * (1 + costs.fee)
        self.received = trades.sold * (1 - costs.slippage) * (1 - costs.fee)
        self.pay, self.receive = self.paid.tolist(), self.received.tolist()
        self.open: list[int] = []
        self.quantity: dict[int, float] = {}
        self.filled: dict[int, float] = {}
        """Of what was wanted, the share that the cash could pay."""

    def offer(self, row: int, max_open: int) -> Refused | None:
        """Take an order, or say why not. Orders come in order of entry."""
        now = self.entered_at[row]
        for done in [other for other in self.open if self.exited_at[other] <= now]:
            self.open.remove(done)
            self.cash += self.quantity[done] * self.receive[done]
        if len(self.open) >= max_open:
            return Refused.MAX_OPEN
        if any(self.symbol[other] == self.symbol[row] for other in self.open):
            return Refused.SYMBOL_OPEN
        wanted = self.units(self.size[row], self._equity(now), self.price[row])
        quantity = min(wanted, self.cash / self.pay[row])
        if quantity <= _DUST * wanted:
            return Refused.NO_CASH
        self.cash -= quantity * self.pay[row]
        self.quantity[row], self.filled[row] = quantity, quantity / wanted
        self.open.append(row)
        return None

    def _equity(self, now: int) -> float:
        if not self.open:
            return self.cash
        # The entry bar opens when the bar before it closes: that close is the last one known.
        last = int(np.searchsorted(self.clock.at, now, side="right")) - 1
        return self.cash + sum(self.quantity[row] * self._mark(row, last) for row in self.open)

    def _mark(self, row: int, last: int) -> float:
        close = float(self.clock.close[self.symbol[row], last]) if last >= 0 else np.nan
        return self.price[row] if np.isnan(close) else close


def _book(clock: Clock, trades: Trades, ledger: _Ledger, refused: dict[Refused, int]) -> Book:
    """Mark to market: at each close, capital + profit of what has left + unrealised profit of what
    is open."""
    taken = np.array(list(ledger.quantity), dtype=np.int64)
    quantity = np.array(list(ledger.quantity.values()))
    paid, received = quantity * ledger.paid[taken], quantity * ledger.received[taken]
    pnl = received - paid
    count = len(clock.at)
    first = np.searchsorted(clock.at, trades.entered_at[taken], side="right")
    done = np.searchsorted(clock.at, trades.exited_at[taken], side="left")
    realised = np.cumsum(np.bincount(done, pnl, count)[:count])
    # One row for each trade at each close while it is open: trade `which` at close `at`. A trade
    # that is open at closes 3, 4 and 5 has three rows, which count 0, 1, 2 from its first one.
    steps = np.maximum(done - first, 0)
    which = np.repeat(np.arange(len(taken)), steps)
    rows_before = np.cumsum(steps) - steps
    at = first[which] + np.arange(steps.sum()) - rows_before[which]
    close = clock.close[trades.symbol[taken][which], at]
    price = np.where(np.isnan(close), np.array(ledger.price)[taken][which], close)
    exposed = np.bincount(at, quantity[which] * price, count).astype(np.float64)
    unrealised = exposed - np.bincount(at, paid[which], count)
    curve = Curve(clock.begins_at, clock.at, ledger.capital + realised + unrealised, ledger.capital)
    return Book(
        curve=curve,
        taken=taken,
        quantity=quantity,
        pnl=pnl,
        r=trades.r[taken] * np.array(list(ledger.filled.values())),
        notional=quantity * (trades.bought + trades.sold)[taken],
        entered_at=trades.entered_at[taken],
        held_s=(trades.exited_at - trades.entered_at)[taken],
        exposed=exposed,
        refused=refused,
    )


def buy_and_hold(clock: Clock, *, capital: float, costs: Costs = COSTS) -> Book:
    """Equal capital in every symbol, bought at its first open on the clock and sold at its last
    close.

    It has no plan, and so no R. The share of a symbol without a bar on the clock
    stays cash.
    """
    spans = []
    for number, bars in enumerate(clock.bars):
        rows = np.flatnonzero((bars.closed_at >= clock.at[0]) & (bars.closed_at <= clock.at[-1]))
        if len(rows):
            first, last = int(rows[0]), int(rows[-1])
            opened = int(bars.closed_at[first]) - bars.seconds
            spans.append(
                (number, opened, int(bars.closed_at[last]), bars.open[first], bars.close[last])
            )
    symbol, entered_at, exited_at, bought, sold = (
        np.array(column) for column in zip(*spans, strict=True)
    )
    units = capital / len(clock.bars) / (bought * (1 + costs.slippage) * (1 + costs.fee))
    trades = Trades(
        symbol,
        np.maximum(entered_at, clock.begins_at),
        exited_at,
        bought,
        sold,
        np.full(len(symbol), np.nan),
        units,
    )
    return trade(clock, trades, capital=capital, max_open=len(clock.bars), costs=costs)


def _check(clock: Clock, trades: Trades, capital: float, max_open: int) -> None:
    if not capital > 0 or max_open < 1:
        raise PortfolioError(f"capital {capital} and max_open {max_open}: both must be positive")
    if len(trades) and (trades.symbol.min() < 0 or trades.symbol.max() >= len(clock.bars)):
        raise PortfolioError(
            f"symbol {int(trades.symbol.max())} is not among the clock's {len(clock.bars)}"
        )
    resolved = np.isfinite(trades.sold)
    sound = (trades.bought > 0) & (trades.sold > 0) & (trades.size > 0)
    sound &= np.isfinite(trades.size) & (trades.exited_at > trades.entered_at)
    if (resolved & ~sound).any():
        row = int(np.argmax(resolved & ~sound))
        raise PortfolioError(
            f"trade {row}: entered {trades.entered_at[row]} at {trades.bought[row]}, left"
            f" {trades.exited_at[row]} at {trades.sold[row]}, size"
            f" {trades.size[row]}: all must be positive, exits later"
        )
