"""What paper trading follows: a replayed market, or an exchange that is polled as its bars
complete.

A feed is an iterable of moments, oldest first. The market's clock is the close of bars; the wall
clock is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from app.domain.charts.indicators import PERCENTILE_DAYS
from training.agent.reference import (
    COOL_DOWN_S,
    Agent,
    Chart,
    Context,
    Opportunity,
    chart,
    nothing_else,
    opportunities,
    passes,
)
from training.arrays import DAY_S
from training.log import Recalled
from training.market.bars import MarketDataError, length_seconds
from training.market.sources import load_exchange, market_named, open_exchange

WINDOW_BARS = 1000
SETTLE_S = 2.0
"""Exchanges need a moment to complete a bar."""
PATIENCE_S = 60.0
"""After this, symbols that lack the newest bar are left behind for this bar."""


def nothing_said(line: str) -> None:
    """Hears, and is silent."""


class Moment(NamedTuple):
    """The market when bars closed: charts as they are known then, and the candidates of this
    moment."""

    as_of: int
    """Seconds since 1970 UTC."""
    agent: Agent
    opportunities: Sequence[Opportunity]


def first_candidates(
    charts: Sequence[Chart], since: datetime | None, count: int
) -> list[Opportunity]:
    """The first `count` candidates from `since` on. Raises `MarketDataError`: there are none."""
    first = since.timestamp() if since else 0
    chosen = [at for at in opportunities(charts) if at.as_of >= first][:count]
    if not chosen:
        bars = sum(len(chart.bars) for chart in charts)
        raise MarketDataError(f"no candidate since {since or 'the first bar'} in {bars} bars")
    return chosen


def replayed(agent: Agent, chosen: Iterable[Opportunity]) -> Iterator[Moment]:
    """The moments of chosen opportunities, oldest first, on bars that are all known already."""
    for as_of, together in groupby(chosen, key=lambda at: at.as_of):
        yield Moment(as_of, agent, list(together))


def limited(feed: Iterable[Moment], candidates: int) -> Iterator[Moment]:
    """A feed that ends with the last of so many candidates."""
    left = candidates
    for moment in feed:
        taken = moment.opportunities[:left]
        yield moment._replace(opportunities=taken)
        left -= len(taken)
        if not left:
            return


class LiveFeed:
    """An exchange, polled as bars complete. Iterating never ends by itself.

    Every chart is computed anew from the last `window` bars, so that what the agent sees at a bar
    does not depend on when this process began; against a replay, whose averages remember all bars,
    scores differ by some 1e-4. A candidate is judged only while its bar is the newest: nobody can
    trade an old close. Those of bars that completed while nobody looked are counted in `missed` and
    left out.

    Parameters
    ----------
    exchange : a ccxt object; only `fetch_ohlcv` and `id` are used.
    symbols : ours, for example BTCUSDT.
    length : of a bar, for example 1h.
    asked : when each symbol was last judged (seconds since 1970), to keep the cool-down over a
        restart.
    now : wall clock, seconds since 1970.
    sleep : waits so many seconds.
    tell : hears of polls that failed; the feed tries again.
    """

    def __init__(
        self,
        exchange: Any,
        symbols: Sequence[str],
        length: str,
        *,
        asked: Mapping[str, int],
        now: Callable[[], float],
        sleep: Callable[[float], None],
        tell: Callable[[str], None] = lambda line: None,
        context: Context = nothing_else,
        poll_s: float = 5.0,
    ) -> None:
        if not symbols:
            raise MarketDataError(
                "a live feed needs symbols: name them with --symbols BTCUSDT,ETHUSDT"
            )
        self._exchange = exchange
        self._symbols = tuple(symbols)
        self._length = length
        self._seconds = length_seconds(length)
        self._window = max(WINDOW_BARS, 2 * PERCENTILE_DAYS * DAY_S // self._seconds)
        self._asked = dict(asked)
        self._now, self._sleep, self._tell = now, sleep, tell
        self._context = context
        self._poll_s = poll_s
        self._charts: dict[str, Chart] = {}
        self.missed = 0

    def __iter__(self) -> Iterator[Moment]:
        """Moments from now on; the first is the newest bar.

        Raises
        ------
        MarketDataError : at the start a symbol has no bars or too few of them. Later failures are
            told and tried again.
        """
        seen = 0
        while True:
            now = self._now()
            close = int(now // self._seconds) * self._seconds
            if close <= seen:
                self._sleep(max(seen + self._seconds + SETTLE_S - now, self._poll_s))
                continue
            self._refresh(close, strict=not seen and not self._charts)
            have = {name for name in self._symbols if self._newest(name) >= close}
            late = self._now() >= close + PATIENCE_S
            if have and (late or have >= self._waited_for(close)):
                yield self._moment(close, seen)
                seen = close
            else:
                self._sleep(self._poll_s)

    def _newest(self, symbol: str) -> int:
        return int(self._charts[symbol].bars.closed_at[-1])

    def _waited_for(self, close: int) -> set[str]:
        """Symbols that had the bar before. What lacked that too, because it is delisted or hardly
        traded, delays nobody."""
        before = close - self._seconds
        return {name for name in self._symbols if self._newest(name) >= before}

    def _refresh(self, close: int, *, strict: bool) -> None:
        """Fetch every symbol that lacks the bar that closed at `close`."""
        begin = datetime.fromtimestamp(close - self._window * self._seconds, UTC)
        until = datetime.fromtimestamp(close, UTC)
        for symbol in self._symbols:
            if symbol in self._charts and self._newest(symbol) >= close:
                continue
            # Later polls would say again what the first one said.
            tell = nothing_said if symbol in self._charts else self._tell
            try:
                bars = load_exchange(self._exchange, symbol, self._length, begin, until, tell)
                self._charts[symbol] = chart(bars)
            except MarketDataError as error:
                if strict:
                    raise
                self._tell(f"{error}; trying again")

    def _moment(self, close: int, seen: int) -> Moment:
        charts = [self._charts[symbol] for symbol in self._symbols]
        agent = Agent(charts, self._context)
        candidates = []
        for number, chart_now in enumerate(charts):
            symbol, times = chart_now.bars.symbol, chart_now.bars.closed_at
            good = passes(chart_now)
            after = max(seen, self._asked.get(symbol, 0) + COOL_DOWN_S - 1)
            if seen:
                self.missed += int(np.count_nonzero(good & (times > after) & (times < close)))
            if good[-1] and times[-1] == close and close > after:
                self._asked[symbol] = close
                candidates.append(Opportunity(number, len(times) - 1, close))
        return Moment(close, agent, candidates)


def live_feed(
    source: str,
    symbols: Sequence[str],
    length: str | None,
    recalled: Sequence[Recalled],
    tell: Callable[[str], None],
) -> LiveFeed:
    """The exchange named `ccxt:EXCHANGE`, for a run that the log recalls. Raises
    `MarketDataError`: another source, or no such exchange."""
    market = market_named(source, symbols, length)
    if market.exchange is None:
        raise MarketDataError(
            f"--live needs an exchange, --source {source} is none: write --source ccxt:binance"
        )
    asked = {decision.scenario.candidate.symbol: decision.scenario.second for decision in recalled}
    return LiveFeed(
        open_exchange(market.exchange),
        symbols,
        market.length,
        asked=asked,
        now=time.time,
        sleep=time.sleep,
        tell=tell,
    )
