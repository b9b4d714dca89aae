"""What bars say at the moment of a trade: the last complete bar, and the indicators of it, by the
code that computes those of a request.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shadow_advisor_client.adapters.spot_ai_agent import plan_of

from app.domain.charts.computed import SETTLED_BARS, Chart, candidate_fields, hole
from app.domain.charts.indicators import Indicators, indicators
from app.domain.charts.series import MAX_PRICE_GAP
from app.domain.scenario import pair_of
from app.shadow_log.bar_files import PRICES, BarFile, files_in, time_column
from app.shadow_log.importing.rows import ImportFault, frame_of
from app.shadow_log.importing.trade import Told

COLUMNS = (*PRICES, "volume")
STALE_BARS = 2
"""A bar that closed longer ago, in bars, says nothing of the moment."""


class Series(NamedTuple):
    """Bars of one symbol, oldest first, and what they say at each."""

    chart: Chart
    signs: Indicators


class BarsFolder:
    """Bars by pair, read when first asked for; the finest length of each."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, BarFile] = {
            pair: files[0] for pair, files in files_in(folder).items()
        }
        if not self._files:
            raise ImportFault(f"{folder}: no files of bars there, such as BTCUSDT_1h.parquet")
        self._series: dict[str, Series] = {}

    def completed(self, told: Told, own_rules: bool) -> Told:
        """The row with what bars add. With `own_rules` of the Spot AI Agent the plan too, where
        its file does not tell it."""
        series = self._of(told.symbol)
        if series is None:
            return told
        chart, signs = series
        at = told.as_of.timestamp()
        place = int(np.searchsorted(chart.closed_at, at, side="right")) - 1
        if place < 0 or at - chart.closed_at[place] > STALE_BARS * chart.seconds:
            return told
        computed, close = candidate_fields(signs, place), float(chart.close[place])
        entry = told.plan.get("entry") or told.action.get("entry") or close
        if computed["atr"] is None or abs(entry / close - 1) > MAX_PRICE_GAP:
            return told
        if hole(chart.closed_at[max(place + 1 - SETTLED_BARS, 0) : place + 1], chart.seconds):
            return told
        candidate = computed | _told_in(told.candidate)
        plan = _told_in(told.plan)
        if own_rules:
            entry = plan.get("entry", close)
            plan = plan_of(entry, computed["atr"], told.candidate.get("confidence")) | plan
        volume = float(signs.volume_24h[place])
        market = {
            "last_close": close,
            "bar_closed_at": datetime.fromtimestamp(int(chart.closed_at[place]), UTC),
            "bar_seconds": chart.seconds,
            "volume_24h": volume if np.isfinite(volume) else None,
        }
        return replace(told, candidate=candidate, plan=plan, market=market | _told_in(told.market))

    def _of(self, symbol: str) -> Series | None:
        pair = pair_of(symbol)
        if pair not in self._files:
            return None
        if pair not in self._series:
            self._series[pair] = _series(*self._files[pair])
        return self._series[pair]


def _told_in(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}


def _series(seconds: int, path: Path) -> Series:
    frame = frame_of(path)
    times = time_column(frame.columns)
    lacking = set(COLUMNS) - set(frame.columns)
    if times is None or lacking:
        raise ImportFault(f"{path}: no column {', '.join(sorted(lacking)) or 'of times'}")
    if not str(frame[times].dtype).startswith("Datetime"):
        raise ImportFault(f"{path}: {times} holds no times")
    frame = frame.unique().sort(times)
    if frame[times].n_unique() < len(frame):
        raise ImportFault(f"{path}: bars of one time that differ")
    shift = 0 if times == "closed_at" else seconds
    closed_at = frame[times].dt.epoch("s").to_numpy() + shift
    columns = (frame[name].cast(float).to_numpy() for name in COLUMNS)
    chart = Chart(seconds, closed_at, *columns)
    return Series(chart, indicators(chart))
