"""An exchange that shows its bars as time goes by, and a clock that goes when somebody sleeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.market.bars import Bars


class Clock:
    """`sleep` moves it; nobody waits. Stops the feed by raising at `end`."""

    def __init__(self, start: float, end: float) -> None:
        self.time, self.end = start, end

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.time >= self.end:
            raise KeyboardInterrupt


class Exchange:
    """As much of ccxt as is used. `away` lists times (from, to) at which it does not answer."""

    id = "fake"

    def __init__(
        self, markets: Sequence[Bars], clock: Clock, away: Sequence[tuple[float, float]] = ()
    ) -> None:
        self.markets = {each.symbol: each for each in markets}
        self.clock = clock
        self.away = away
        self.late: dict[str, float] = {}
        """Seconds after which a symbol's bar is complete."""
        self.ends: dict[str, float] = {}
        """When a symbol was delisted."""
        self.calls = 0

    def fetch_ohlcv(
        self, pair: str, length: str, since: int, limit: int, params: dict[str, int]
    ) -> list[list[float]]:
        self.calls += 1
        if any(begin <= self.clock.time < end for begin, end in self.away):
            raise ConnectionError("no route to host")
        bars = self.markets[pair.replace("/", "")]
        now = min(self.clock.time, self.ends.get(bars.symbol, self.clock.time))
        known = bars.known_at(now - self.late.get(bars.symbol, 0))
        opened = (known.closed_at - known.seconds) * 1000
        rows = np.column_stack(
            [opened, known.open, known.high, known.low, known.close, known.volume]
        )
        return [list(row) for row in rows[opened >= since][:limit]]
