"""History: the bars and other sources that a rebuild is configured to read, and the scenarios in
them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain, groupby
from pathlib import Path

from app.domain.exits import Exits
from training.agent.reference import MIN_BARS, Agent, Opportunity, chart, opportunities
from training.arrays import HELD_OUT_FROM, Progress, instant, silent
from training.config.data import MarketConfig, ScenariosConfig
from training.market.bars import Bars, MarketDataError, length_seconds
from training.market.context import KnownContext, load_context
from training.market.sources import load_market
from training.scenarios.table import NEUTRAL, RealScenario, ScenarioError, build_scenarios
from training.stages.declared import stage
from training.stages.store import Facts


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
        return {bars.symbol: (*self.finer.get(bars.symbol, ()), bars) for bars in self.bars}

    def hash(self) -> str:
        """Of every bar, headline and reading: what an artefact made of them depends on."""
        sha = hashlib.sha256()
        for bars in chain.from_iterable(self.series().values()):
            sha.update(f"{bars.symbol} {bars.seconds} {len(bars)}".encode())
            for column in (bars.closed_at, bars.open, bars.high, bars.low, bars.close, bars.volume):
                sha.update(column.tobytes())
        sha.update(self.context.fingerprint().encode())
        return f"sha256:{sha.hexdigest()}"


def bars_until(config: ScenariosConfig) -> date | None:
    """The day on which no bar may close any more; None: no end."""
    return config.until or (HELD_OUT_FROM if config.source == "history" else None)


def load_history(config: MarketConfig, ends: int | None) -> History:
    """What the configuration names. No bar that closes after `ends` (seconds since 1970 UTC)
    is kept. Where no symbols are named, those that begin after it are left out.

    Raises
    ------
    MarketDataError : a file is absent or bad, a length cannot be had, or nothing is left before
        `ends`.
    """
    main = length_seconds(config.length)
    if any(length_seconds(length) >= main for length in config.finer):
        raise MarketDataError(
            f"market.finer {', '.join(config.finer)}: must be shorter than the bars,"
            f" {config.length}"
        )
    market = load_market(config)
    kept = {
        length: [_until(bars, ends) for bars in series]
        for length, series in market.by_length.items()
    }
    begun = [bars for bars in kept[config.length] if len(bars)]
    read = begun if begun and not config.symbols else kept[config.length]
    empty = [bars.symbol for bars in read if not len(bars)]
    if empty and ends is not None:
        raise MarketDataError(
            f"{', '.join(empty)}: no bar before {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}, where"
            " what may be read ends (scenarios.until; the held-out period at the latest): bring"
            " earlier bars, or leave them out of market.symbols"
        )
    finer: dict[str, list[Bars]] = defaultdict(list)
    for length in sorted(set(config.finer), key=length_seconds):
        for bars in kept[length]:
            if len(bars):
                finer[bars.symbol].append(bars)
    context = load_context(config.news or market.news, config.fear_greed or market.fear_greed)
    return History(
        tuple(read),
        {symbol: tuple(series) for symbol, series in finer.items()},
        context,
    )


def _until(bars: Bars, moment: int | None) -> Bars:
    return bars if moment is None else bars.known_at(moment)


@stage("scenarios")
def of_history(
    folder: Path, market: History, *, settings: ScenariosConfig, progress: Progress = silent
) -> Facts:
    """The reference agent's candidates on the market's bars."""
    scenarios, left_out = find_scenarios(market, settings, progress)
    return build_scenarios(folder, scenarios, settings, left_out, market.seconds, progress)


def find_scenarios(
    history: History, config: ScenariosConfig, progress: Progress = silent
) -> tuple[list[RealScenario], dict[str, int]]:
    """Scenarios of all of the reference agent's candidates, with its own answers; and counts of
    what was left out, by reason.

    Raises
    ------
    MarketDataError : no symbol has enough history for the indicators, or one that is named.
    ScenarioError : no candidate in the period, or no bars of a wanted symbol.
    """
    known = [b for b in history.bars if len(b) >= MIN_BARS or b.symbol in config.symbols]
    series = known or history.bars
    agent = Agent([chart(bars) for bars in series], history.context)
    candidates = opportunities(agent.charts)
    first = instant(config.since) if config.since else 0
    ends = bars_until(config)
    last = instant(ends) if ends else None
    symbols = wanted(history, config)
    mine = [at for at in candidates if series[at.chart].symbol in symbols]
    within = [at for at in mine if at.as_of >= first and (last is None or at.as_of < last)]
    if not within:
        count = sum(len(bars) for bars in history.bars)
        raise ScenarioError(
            f"no candidate between since and until in {count} bars: widen them, or bring more bars"
        )
    peers = {
        moment: list(together) for moment, together in groupby(candidates, key=lambda at: at.as_of)
    }
    scenarios = []
    for done, at in enumerate(within, 1):
        scenarios.append(_decided(agent, at, peers[at.as_of], config.exits))
        progress(done, len(within))
    left_out = {
        "other_symbol": len(candidates) - len(mine),
        "outside_period": len(mine) - len(within),
    }
    return scenarios, left_out


def wanted(history: History, config: ScenariosConfig) -> set[str]:
    """Symbols whose candidates count; the others' bars are still looked at for what moves alike.
    Raises `ScenarioError` for one that has no bars."""
    symbols = {bars.symbol for bars in history.bars}
    absent = sorted(set(config.symbols) - symbols)
    if absent:
        raise ScenarioError(
            f"symbols: no bars of {', '.join(absent)}; there are {', '.join(sorted(symbols))}"
        )
    return set(config.symbols) or symbols


def _decided(
    agent: Agent, at: Opportunity, peers: Sequence[Opportunity], exits: Exits | None
) -> RealScenario:
    scenario = agent.scenario(at, NEUTRAL).declaring(exits)
    decide = partial(agent.decide, correlated=agent.correlated(at, peers))
    return RealScenario(scenario, decide(scenario), redecide=decide)
