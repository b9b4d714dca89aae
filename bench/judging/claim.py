"""A published claim re-run: `python -m bench.judging.claim --market DIRECTORY`.

Bysik and Slepaczuk 2026 (arXiv 2606.00060): hourly BTC-USDT, 27 walk-forward folds, 10 bps, and
boosted trees whose long-only strategy changes its position only where the forecast is larger than a
threshold made of the costs: "annualised returns above 65 %", a Sharpe ratio above 1.

What differs: our bars end with 2024 (theirs in 2026), the trees are scikit-learn's
HistGradientBoostingRegressor (theirs XGBoost), and features and settings are ours, chosen before
the first run and never changed. Every threshold and seed that is run is printed, and the deflated
Sharpe ratio counts them all. Buy and hold over the same hours stands beside them: a position that
is kept while forecasts are small is held most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from app.domain.charts.indicators import indicators
from bench.asked import entry
from bench.history import record
from training.arrays import DAY_S, Floats, Rows
from training.cli.options import meter
from training.market.bars import Bars
from training.market.sources import load_directory
from training.statistics.selection import deflated_sharpe

COST = 0.001
"""Of what changes hands: 10 bps."""
FOLDS = 27
FIRST_TRAIN_DAYS = 530
HOURS_A_YEAR = 365 * 24
HORIZONS = (1, 2, 3, 6, 12, 24, 72, 168)
THRESHOLDS = (0.0, 0.25, 0.5, 1.0)
"""Of the cost, that a forecast must exceed. 0: by its sign alone, the paper's naive strategy."""
TREES = {"learning_rate": 0.05, "max_iter": 100, "max_leaf_nodes": 16, "min_samples_leaf": 200}


class Strategy(NamedTuple):
    """What a strategy came to."""

    yearly: float
    """Annualised compound return, net."""
    sharpe: float
    """Per year, of hourly net returns."""
    changes: float
    """Changes of position a year."""
    held: float
    """Share of hours."""
    returns: Floats
    """(T,) net, of each hour."""


def features_of(bars: Bars) -> Floats:
    """(N, F) known at each bar's close."""
    close = np.log(bars.close)
    step = np.concatenate([[np.nan], np.diff(close)])
    signs = indicators(bars)
    columns = [_since(close, hours) for hours in HORIZONS]
    columns += [_deviation(step, hours) for hours in HORIZONS[3:]]
    columns += [
        signs.rsi,
        signs.adx,
        signs.di_plus - signs.di_minus,
        signs.macd / bars.close,
        signs.atr / bars.close,
        signs.htf_trend_pct,
        signs.volume_ratio,
        (bars.closed_at // 3600 % 24).astype(np.float64),
    ]
    return np.column_stack(columns)


def _since(close: Floats, hours: int) -> Floats:
    change = np.full(len(close), np.nan)
    change[hours:] = close[hours:] - close[:-hours]
    return change


def _deviation(step: Floats, hours: int) -> Floats:
    windows = np.lib.stride_tricks.sliding_window_view(step, hours)
    deviation = np.full(len(step), np.nan)
    deviation[hours - 1 :] = windows.std(axis=1)
    return deviation


def folds(bars: Bars) -> list[tuple[Rows, Rows]]:
    """Train and test rows of 27 consecutive periods of one length; each is foretold by all hours
    before it. The return of the last training hour has ended when the first test hour is decided.
    """
    first = int(bars.closed_at[0]) + FIRST_TRAIN_DAYS * DAY_S
    edges = np.searchsorted(bars.closed_at, np.linspace(first, bars.closed_at[-1], FOLDS + 1))
    return [(np.arange(begin - 1), np.arange(begin, end)) for begin, end in pairwise(edges)]


def forecasts(bars: Bars, seed: int) -> Floats:
    """(N,) of the coming hour's return, NaN before the first fold."""
    inputs, forecast = features_of(bars), np.full(len(bars), np.nan)
    comes = bars.close[1:] / bars.close[:-1] - 1
    with meter(f"seed {seed}") as progress, threadpool_limits(1):
        for number, (train, test) in enumerate(folds(bars)):
            trees = HistGradientBoostingRegressor(random_state=seed, max_features=0.5, **TREES)
            trees.fit(inputs[train], comes[train])
            forecast[test] = trees.predict(inputs[test])
            progress(number + 1, FOLDS)
    return forecast


def positions(forecast: Floats, threshold: float) -> Floats:
    """(T,) 1 long, 0 in cash: long from a forecast above the threshold on, until one below its
    negative."""
    wanted = np.where(forecast > threshold, 1.0, np.where(forecast < -threshold, 0.0, np.nan))
    last = np.where(np.isnan(wanted), -1, np.arange(len(wanted)))
    latest = np.maximum.accumulate(last)
    return np.where(latest >= 0, np.nan_to_num(wanted)[np.maximum(latest, 0)], 0.0)


def strategy(position: Floats, comes: Floats, cost: float = COST) -> Strategy:
    """What positions (T,) earn of the returns (T,) that follow them; each change costs."""
    changed = np.abs(np.diff(np.concatenate([[0.0], position])))
    returns = (1 + position * comes) * (1 - cost * changed) - 1
    years = len(returns) / HOURS_A_YEAR
    spread = float(returns.std(ddof=1))
    return Strategy(
        float(np.exp(np.log1p(returns).sum() / years) - 1),
        float(returns.mean() / spread * HOURS_A_YEAR**0.5) if spread else 0.0,
        float(changed.sum() / years),
        float(position.mean()),
        returns,
    )


def run(bars: Bars, seeds: int) -> dict[str, Strategy]:
    """Every threshold and seed, and buy and hold, on the same hours."""
    comes = bars.close[1:] / bars.close[:-1] - 1
    begins = folds(bars)[0][1][0]
    asked = np.arange(begins, len(comes))
    done = {"buy and hold": strategy(np.ones(len(asked)), comes[asked])}
    for seed in range(seeds):
        forecast = forecasts(bars, seed)
        for share in THRESHOLDS:
            taken = positions(forecast[asked], share * COST)
            done[f"threshold {share:g} of the cost, seed {seed}"] = strategy(taken, comes[asked])
    return done


def table(done: Mapping[str, Strategy]) -> Iterator[str]:
    """Lines of Markdown."""
    tried = [one for name, one in done.items() if name != "buy and hold"]
    sharpes = [one.sharpe / HOURS_A_YEAR**0.5 for one in tried]
    yield "| strategy | a year | Sharpe | changes a year | hours held | deflated Sharpe |"
    yield "|---|---|---|---|---|---|"
    for name, one in done.items():
        deflated = deflated_sharpe(one.returns, sharpes if name != "buy and hold" else ())
        sure = "none" if deflated.confidence is None else f"{deflated.confidence:.2f}"
        yield (
            f"| {name} | {one.yearly:+.1%} | {one.sharpe:.2f} | {one.changes:,.0f} |"
            f" {one.held:.0%} | {sure} |"
        )


def main(
    market: Annotated[Path, typer.Option(help="folder of hourly bars: BTCUSDT_1h.parquet")],
    seeds: Annotated[int, typer.Option(min=1, help="of the trees")] = 3,
) -> None:
    """Print the table."""
    (bars,) = load_directory(market, "1h", ("BTCUSDT",))
    done = run(bars, seeds)
    for line in table(done):
        typer.echo(line)
    best = max((one for name, one in done.items() if name != "buy and hold"), key=_yearly)
    record("claim", {"best_yearly": best.yearly, "hold_yearly": done["buy and hold"].yearly})


def _yearly(one: Strategy) -> float:
    return one.yearly


if __name__ == "__main__":
    entry(main)
