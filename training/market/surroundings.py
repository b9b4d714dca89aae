"""What moved around a candidate, at every bar from that bar and earlier ones only: volatility at
several horizons, returns, ranks among the symbols, the lead of BTC.

The names and definitions are those of `app.domain.scenario.Surroundings`. Horizons count bars, so
that an outage lengthens them. NaN where the history is too short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.domain.charts.movements import OWN, movements
from app.domain.text import parts_of
from training.arrays import Floats, Times
from training.market.bars import Bars

_OTHERS = 2
"""A rank needs so many other symbols."""
_LEADER, _DOLLARS = "BTC", "USDT"
_LEAD = ("return_1h", "return_6h", "return_24h", "volatility_24h")


class Neighbourhood:
    """Several symbols' bars, side by side.

    Parameters
    ----------
    series : bars of each symbol, of one length.
    """

    def __init__(self, series: Sequence[Bars]) -> None:
        self._series = list(series)
        self._own = [movements(bars) for bars in series]
        self._times: Times = np.unique(np.concatenate([bars.closed_at for bars in series]))
        self._across = across(self._series, self._own, self._times)
        self._leader = leader(series)

    def at(self, chart: int, bar: int) -> dict[str, float | None]:
        """Fields of `Surroundings` when a bar of a symbol closes. No later bar is looked at."""
        moment = int(self._series[chart].closed_at[bar])
        values = {name: self._own[chart][name][bar] for name in OWN}
        place = int(np.searchsorted(self._times, moment))
        values |= {name: columns[place, chart] for name, columns in self._across.items()}
        values |= self._lead(moment)
        return {
            name: float(value) if np.isfinite(value) else None for name, value in values.items()
        }

    def _lead(self, moment: int) -> dict[str, float]:
        """What BTC did, unless its last bar is older than two: that tells nothing of now."""
        if self._leader is None:
            return {}
        bars, moved = self._series[self._leader], self._own[self._leader]
        last = int(np.searchsorted(bars.closed_at, moment, side="right")) - 1
        if last < 0 or moment - bars.closed_at[last] > 2 * bars.seconds:
            return {}
        return {f"btc_{name}": moved[name][last] for name in _LEAD}


def leader(series: Sequence[Bars]) -> int | None:
    """Which of them is BTC, in dollars if there are several; None: none is."""
    quotes = {
        number: quote
        for number, (coin, quote) in enumerate(parts_of(bars.symbol) for bars in series)
        if coin == _LEADER
    }
    return min(quotes, key=lambda number: (quotes[number] != _DOLLARS, number), default=None)


def across(
    series: Sequence[Bars], own: Sequence[Mapping[str, Floats]], times: Times
) -> dict[str, Floats]:
    """Ranks and means over all symbols, each of shape (times, symbols); NaN where a symbol has no
    bar that closes then."""
    names = ("return_24h", "volatility_24h")
    table = {name: np.full((len(times), len(series)), np.nan) for name in names}
    for number, bars in enumerate(series):
        places = np.searchsorted(times, bars.closed_at)
        for name, values in table.items():
            values[places, number] = own[number][name]
    returns, volatilities = (table[name] for name in names)
    return {
        "momentum_rank": ranks(returns),
        "volatility_rank": ranks(volatilities),
        "market_return_24h": means(returns),
        "market_volatility_24h": means(volatilities),
    }


def ranks(values: Floats) -> Floats:
    """(T, S) -> (T, S), share of the other known symbols whose value is lower."""
    finite = np.isfinite(values)
    others = finite.sum(axis=1, keepdims=True) - 1
    with np.errstate(invalid="ignore"):
        lower = np.column_stack([(values < column[:, None]).sum(axis=1) for column in values.T])
    return np.where(finite & (others >= _OTHERS), lower / np.maximum(others, 1), np.nan)


def means(values: Floats) -> Floats:
    """(T, S) -> (T, S), mean of the known symbols, the same for each of them."""
    finite = np.isfinite(values)
    count = finite.sum(axis=1, keepdims=True)
    mean = np.where(finite, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    return np.where(finite & (count > _OTHERS), mean, np.nan)
