"""How well a portfolio did: measures of its curve and of its trades, each with its interval or the
reason for none.

The risk-free rate is 0. Annualised numbers follow the curve's own clock. The formulas are those of
empyrical, for all bootstrap samples at once; the tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.arrays import DAY_S, Floats
from training.judging.contest.portfolio import Book, Curve, drawdown
from training.statistics.bootstrap import (
    DRAWS,
    LEVEL,
    SAME,
    Estimate,
    interval,
    is_constant,
    mean_intervals,
    none,
)

NO_TRADES = "no trades"
NO_PLAN = "no plan, so no R"
CONSTANT = "constant returns"
Measure = Callable[[Floats], Floats]
"""Of samples (draws, N) to values (draws,); not finite where it is not defined."""


@dataclass(frozen=True)
class Performance:
    """Of one book. `n` of a measure counts steps of the curve, or trades.

    Of the curve: total_return (fraction), sharpe, sortino, cagr, max_drawdown (fraction below the
    last peak, 0-1), tail_ratio (95th percentile of returns over the 5th, absolute), drawdown_days
    (longest time below a peak). Of trades after costs: win_rate, expectancy_r (mean R of
    the agent's plan), profit_factor (profits over losses). turnover : notional traded per year over
    mean equity. exposure : share of time with an open trade.
    """

    total_return: Estimate
    sharpe: Estimate
    sortino: Estimate
    cagr: Estimate
    max_drawdown: Estimate
    drawdown_days: Estimate
    tail_ratio: Estimate
    win_rate: Estimate
    expectancy_r: Estimate
    profit_factor: Estimate
    turnover: Estimate
    exposure: Estimate

    def as_json(self) -> dict[str, Any]:
        """For reports: a dict per measure."""
        return {name: Estimate(*value)._asdict() for name, value in asdict(self).items()}


def performance(
    book: Book,
    *,
    seconds: int | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Performance:
    """Every measure of a book.

    Parameters
    ----------
    seconds : look at the curve only every so often (a day: 86400); None looks at every close.
        Sharpe and its like differ with the clock, so compare arms on one clock.
    draws : bootstrap samples for the intervals; 0 leaves intervals out.
    """
    curve = book.curve if seconds is None else book.curve.sampled(seconds)
    of_curve = {
        name: _of_curve(curve, measure, level, draws, seed)
        for name, measure in curve_measures(curve.steps_per_year).items()
    }
    if not len(book.taken):
        for name in ("sharpe", "sortino", "tail_ratio"):
            of_curve[name] = none(NO_TRADES, len(curve.at))
    won = (book.pnl > 0).astype(float)
    return Performance(
        **of_curve,
        drawdown_days=Estimate(longest_drawdown_s(curve) / DAY_S, n=len(curve.at)),
        win_rate=_mean_of_trades(won, book, level, draws, seed),
        expectancy_r=_mean_of_trades(book.r, book, level, draws, seed),
        profit_factor=_profit_factor(book, level, draws, seed),
        turnover=Estimate(
            float(book.notional.sum() / curve.years / curve.value.mean()), n=len(book.taken)
        ),
        exposure=Estimate(open_share(book), n=len(book.taken)),
    )


def curve_measures(steps_per_year: float) -> dict[str, Measure]:
    """Measures of returns, for samples (draws, N) at once."""
    return {
        "total_return": lambda returns: np.asarray(np.prod(1 + returns, axis=-1) - 1),
        "sharpe": lambda returns: (
            _defined(_mean_over_deviation, returns) * math.sqrt(steps_per_year)
        ),
        "sortino": lambda returns: _defined(_mean_over_losses, returns) * math.sqrt(steps_per_year),
        "cagr": lambda returns: np.asarray(
            np.prod(1 + returns, axis=-1) ** (steps_per_year / returns.shape[-1]) - 1
        ),
        "max_drawdown": lambda returns: _fall(returns).max(axis=-1),
        "tail_ratio": tail_ratio,
    }


def sharpe(returns: Floats, steps_per_year: float) -> float | None:
    """Annualised Sharpe ratio of (N,) returns; None when they are constant."""
    if len(returns) < 2 or is_constant(returns):
        return None
    return float(_mean_over_deviation(returns)) * math.sqrt(steps_per_year)


def max_drawdown(returns: Floats) -> float:
    """Deepest fall below a peak, the beginning counted as one; fraction, 0-1."""
    return float(_fall(returns).max()) if len(returns) else 0.0


def _fall(returns: Floats) -> Floats:
    value: Floats = np.cumprod(1 + returns, axis=-1, dtype=np.float64)
    return drawdown(value, 1.0)


def tail_ratio(returns: Floats) -> Floats:
    """95th percentile over the 5th, absolute: (draws, N) to (draws,). NaN where the 5th percentile
    is 0."""
    low, high = np.abs(np.quantile(returns, [0.05, 0.95], axis=-1))
    return np.where(low > 0, high / np.where(low > 0, low, 1), np.nan)


def longest_drawdown_s(curve: Curve) -> float:
    """Longest time from a peak to the close at which it is reached again, or to the end;
    seconds."""
    at = np.concatenate([[curve.begins_at], curve.at])
    # The beginning is a peak. A rounding error is not a fall.
    peaks = np.flatnonzero(np.concatenate([[0.0], curve.drawdown]) <= 1e-12)
    ends = np.append(at[np.minimum(peaks[1:], len(at) - 1)], at[-1])
    below = np.append(np.diff(peaks) > 1, peaks[-1] < len(at) - 1)
    return float(((ends - at[peaks]) * below).max())


def open_share(book: Book) -> float:
    """Share of the curve's time in which at least one trade was open."""
    if not len(book.taken):
        return 0.0
    ends = np.maximum.accumulate(book.entered_at + book.held_s)
    begins = np.maximum(book.entered_at, np.concatenate([[book.curve.begins_at], ends[:-1]]))
    return float(np.maximum(ends - begins, 0).sum() / (book.curve.at[-1] - book.curve.begins_at))


def _mean_over_deviation(returns: Floats) -> Floats:
    """Of (..., N) returns that vary."""
    return np.asarray(returns.mean(axis=-1) / returns.std(axis=-1, ddof=1))


def _mean_over_losses(returns: Floats) -> Floats:
    """Over the root of the mean squared loss, gains counting as 0; NaN without losses."""
    losses = np.sqrt((np.minimum(returns, 0) ** 2).mean(axis=-1))
    return np.where(losses > 0, returns.mean(axis=-1) / np.where(losses > 0, losses, 1), np.nan)


def _defined(formula: Measure, returns: Floats) -> Floats:
    """The formula where returns vary, NaN elsewhere: it would divide by 0 there, or by rounding
    errors."""
    varies = np.ptp(returns, axis=-1) > SAME
    values = np.full(len(returns), np.nan)
    if varies.any():
        values[varies] = formula(returns[varies])
    return values


def _of_curve(curve: Curve, measure: Measure, level: float, draws: int, seed: int) -> Estimate:
    returns = curve.returns
    if draws and len(returns) >= 2:
        estimate = interval(returns, measure, level=level, draws=draws, seed=seed)
    else:
        value = float(measure(returns[None])[0])
        estimate = (
            Estimate(value, n=len(returns))
            if np.isfinite(value)
            else none("not defined on these rows", len(returns))
        )
    if estimate.value is None:
        return none(CONSTANT if is_constant(returns) else "no losses to compare with", len(returns))
    return estimate


def _mean_of_trades(values: Floats, book: Book, level: float, draws: int, seed: int) -> Estimate:
    if not len(values):
        return none(NO_TRADES)
    if not np.isfinite(values).all():
        return none(NO_PLAN, len(values))
    mean = Estimate(float(values.mean()), n=len(values))
    if not draws:
        return mean
    (estimate,) = mean_intervals(
        values[:, None], as_of=book.entered_at, level=level, draws=draws, seed=seed
    )
    # Trades of one day only have a mean, though no interval.
    return mean._replace(reason=estimate.reason) if estimate.value is None else estimate


def _profit_factor(book: Book, level: float, draws: int, seed: int) -> Estimate:
    if not len(book.pnl):
        return none(NO_TRADES)
    if not (book.pnl < 0).any():
        return none("no losing trade", len(book.pnl))
    if not draws or len(book.pnl) < 2:
        return Estimate(float(_gains_over_losses(book.pnl[None])[0]), n=len(book.pnl))
    return interval(book.pnl, _gains_over_losses, level=level, draws=draws, seed=seed)


def _gains_over_losses(pnl: Floats) -> Floats:
    gains, losses = np.maximum(pnl, 0).sum(-1), np.maximum(-pnl, 0).sum(-1)
    return np.where(losses > 0, gains / np.where(losses > 0, losses, 1), np.nan)
