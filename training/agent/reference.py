"""The production agent's rules, as far as bars allow: which bars are candidates, and what the agent
does with them.

Bars carry no order book, no calendar and no LLM. What the agent would take from those is left
unknown (null), but for the spread, which is assumed and marked as such under `extra`. The LLM's
approval is played by a stated stand-in, `stand_in_approval`, so that the control approves some
candidates and rejects others. docs/decisions/0005-reference-agent.md lists every difference from
the production agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.charts.computed import NEAR_ATR, SETTLED_BARS, WHOLE, candidate_fields
from app.domain.charts.indicators import Indicators, indicators
from app.domain.record.control import AgentAction
from app.domain.scenario import Account, Scenario
from training.arrays import DAY_S, Floats
from training.market.bars import Bars, MarketDataError
from training.market.surroundings import Neighbourhood, leader

STOP_ATR = 1.5
TARGETS_ATR = (3.0, 4.0, 5.0)
SIZES = ((8.5, 500.0), (6.5, 450.0), (-np.inf, 400.0))
"""USDT by confidence, highest first."""
MIN_CONFIDENCE = 4.0
MIN_VOLUME_24H = 2_000_000.0
ASSUMED_SPREAD_BPS = 2.0
COOL_DOWN_S = 6 * 3600
"""At most one candidate per symbol in this time, the longest a trade lasts: outcomes of a symbol do
not overlap."""
MAX_GAP_S = DAY_S
MIN_BARS = 400
CORRELATION_BARS = 96
MAX_CORRELATION = 0.8
THRESHOLDS = {"Asia": 6.0, "Europe": 5.5, "US": 5.5}
TRENDS = {1: "up", 0: "flat", -1: "down"}

Context = Callable[[str, datetime], Mapping[str, Any]]
"""Candidate fields known from elsewhere (news, fear and greed) for a symbol at a time."""


def nothing_else(symbol: str, as_of: datetime) -> Mapping[str, Any]:
    """No source but the bars."""
    return {}


@dataclass(frozen=True, eq=False)
class Chart:
    """Bars of a symbol with its indicators and scores, each of shape (N,)."""

    bars: Bars
    signs: Indicators
    trend_norm: Floats
    mean_reversion_norm: Floats
    score: Floats
    threshold: Floats
    confidence: Floats
    session: NDArray[np.int8]


class Opportunity(NamedTuple):
    """A bar at which the agent considers a trade: position of the symbol's chart, and of the bar in
    it."""

    chart: int
    bar: int
    as_of: int
    """When the bar closed; seconds since 1970 UTC."""


class SkipReason(StrEnum):
    """Why the agent passed a candidate up: its `final_skip_reason`, in the order of its gates."""

    DAY_LOSS = "drawdown_guard_day"
    STOP_LOSSES = "drawdown_guard_losses"
    DRAWDOWN = "drawdown_guard"
    MAX_TRADES = "max_trades"
    CORRELATED = "correlated_with_better"
    LLM_VETO = "llm_veto"
    BITCOIN_TREND = "risk_btc_trend"
    VOLATILITY = "risk_volatility"
    REWARD_RISK = "risk_reward"


class Guards(NamedTuple):
    """The agent's own guards on its book, as fractions."""

    max_day_loss: float = 0.03
    max_drawdown: float = 0.25
    max_stop_losses: int = 2


GUARDS = Guards()
SESSIONS = ("Asia", "Europe", "US")


def sessions(closed_at: NDArray[np.int64]) -> NDArray[np.int8]:
    """Position in `SESSIONS`: the hour in Asia/Karachi (UTC+5, no summer time), 0-8, 8-16,
    16-24."""
    return (((closed_at // 3600 + 5) % 24) // 8).astype(np.int8)


def chart(bars: Bars) -> Chart:
    """Indicators and scores of one symbol. Raises `MarketDataError` when its history is too
    short, or its bars make no whole day."""
    if DAY_S % bars.seconds:
        raise MarketDataError(
            f"{bars.symbol}: the agent counts in days, and bars of {bars.seconds} s make no whole"
            " one: take a length that divides it, for example 30m, 1h or 4h"
        )
    if len(bars) < MIN_BARS:
        raise MarketDataError(
            f"{bars.symbol}: {len(bars)} bars are too few, {MIN_BARS} are needed for the indicators"
        )
    signs = indicators(bars)
    with np.errstate(invalid="ignore"):
        lean = (signs.di_plus - signs.di_minus) / 100 * np.minimum(signs.adx / 25, 1.5)
        trend = 10 * np.clip(0.3 + 1.5 * lean + 0.02 * signs.htf_trend_pct, 0, 1)
        reversion = 10 * np.clip((42 - signs.rsi) / 22, 0, 1)
        bonus = 0.8 * signs.volume_ratio + 0.4 * np.sign(signs.macd) + 0.4 * (signs.pattern >= 0)
        score = np.maximum(trend, reversion) + bonus
        confidence = np.clip(score + 4 * np.abs(lean) - 2 * signs.atr_percentile, 0, 10)
        session = sessions(bars.closed_at)
        base = np.array([THRESHOLDS[name] for name in SESSIONS])[session]
        threshold = np.clip(base + 4 * np.maximum(signs.atr_percentile - 0.75, 0), 5.5, 7.5)
    return Chart(bars, signs, trend, reversion, score, threshold, confidence, session)


def opportunities(charts: Sequence[Chart]) -> list[Opportunity]:
    """Every bar that passes the agent's gates before its LLM is asked, over all symbols, in order
    of time.

    Volume floor, score threshold, resistance guard, confidence; no missing or empty bar in the last
    24 hours, and no more than a tenth of those missing that indicators remember, as the service
    asks of bars that it is sent; at most one per symbol in six hours.
    """
    candidates = []
    for number, chart in enumerate(charts):
        times, last = chart.bars.closed_at, -COOL_DOWN_S
        for bar in np.flatnonzero(passes(chart)):
            if times[bar] - last >= COOL_DOWN_S:
                last = int(times[bar])
                candidates.append(Opportunity(number, int(bar), last))
    return sorted(candidates, key=lambda at: (at.as_of, at.chart))


def passes(c: Chart) -> NDArray[np.bool_]:
    """Bars that pass the gates, each for itself: `opportunities` without its cool-down. Shape
    (N,)."""
    signs, volume = c.signs, c.bars.volume
    times, per_day = c.bars.closed_at, MAX_GAP_S // c.bars.seconds
    begun = np.searchsorted(times, times - SETTLED_BARS * c.bars.seconds, side="right")
    asked = np.minimum(SETTLED_BARS, (times - times[0]) // c.bars.seconds + 1)
    settled = np.arange(1, len(times) + 1) - begun >= WHOLE * asked
    whole = np.zeros(len(c.bars), dtype=bool)
    whole[per_day:] = times[per_day:] - times[:-per_day] == MAX_GAP_S
    empty = np.concatenate([[0], np.cumsum(volume == 0)])
    whole[per_day:] &= empty[per_day + 1 :] == empty[1:-per_day]
    with np.errstate(invalid="ignore"):
        passes = (
            whole
            & settled
            & (signs.volume_24h >= MIN_VOLUME_24H)
            & (c.score >= c.threshold)
            & (c.confidence >= MIN_CONFIDENCE)
            & (signs.resistance_gap > NEAR_ATR)
            & np.isfinite(signs.htf_trend_pct)
            & np.isfinite(signs.atr_percentile)
        )
    return np.asarray(passes)


class Agent:
    """The reference agent: builds the scenario of an opportunity, and decides on it."""

    def __init__(
        self, charts: Sequence[Chart], context: Context = nothing_else, guards: Guards = GUARDS
    ) -> None:
        self.charts = charts
        self._context = context
        self._guards = guards
        series = [c.bars for c in charts]
        first = leader(series)
        self._bitcoin = None if first is None else charts[first]
        self._around = Neighbourhood(series)

    def scenario(self, at: Opportunity, account: Account) -> Scenario:
        """What is known when the bar closes. No later bar is looked at."""
        c, i = self.charts[at.chart], at.bar
        as_of = datetime.fromtimestamp(at.as_of, UTC)
        close, atr = float(c.bars.close[i]), float(c.signs.atr[i])
        plan = {
            "entry": close,
            "stop": close - STOP_ATR * atr,
            "targets": [close + distance * atr for distance in TARGETS_ATR],
            "quantity": next(size for least, size in SIZES if c.confidence[i] >= least) / close,
        }
        market = {
            "last_close": close,
            "bar_closed_at": as_of,
            "bar_seconds": c.bars.seconds,
            "volume_24h": float(c.signs.volume_24h[i]),
            "surroundings": self._around.at(at.chart, i),
        }
        candidate = self._candidate(c, i, as_of, account) | dict(
            self._context(c.bars.symbol, as_of)
        )
        return Scenario.from_json(
            {"candidate": candidate, "plan": plan, "account": account, "market": market}
        )

    def _candidate(self, c: Chart, i: int, as_of: datetime, account: Account) -> dict[str, Any]:
        signs, score = c.signs, float(c.score[i])
        setup = "trend"
        if c.mean_reversion_norm[i] > c.trend_norm[i]:
            setup = "counter_trend" if signs.htf_trend_pct[i] < 0 else "mean_reversion"
        return {
            **candidate_fields(signs, i),
            "symbol": c.bars.symbol,
            "direction": "long",
            "ts": as_of,
            "session": SESSIONS[c.session[i]],
            "setup_type": setup,
            "score": score,
            "normalized_score_pre_macro": min(max(score, 0.0), 10.0),
            "trend_norm": float(c.trend_norm[i]),
            "mean_rev_norm": float(c.mean_reversion_norm[i]),
            "activation_threshold": float(c.threshold[i]),
            "score_threshold": float(c.threshold[i]),
            "confidence": float(c.confidence[i]),
            "btc_trend": self._bitcoin_trend(as_of),
            "spread_bps": ASSUMED_SPREAD_BPS,
            "open_positions": len(account.positions or ()),
            "max_trades": 1,
            "extra": {"assumed": ["spread_bps"]},
        }

    def _bitcoin_trend(self, as_of: datetime) -> str | None:
        """Trend of the last BTC bar that closed by `as_of`, unless it is old."""
        if self._bitcoin is None:
            return None
        times = self._bitcoin.bars.closed_at
        i = int(np.searchsorted(times, as_of.timestamp(), side="right")) - 1
        if i < 0 or as_of.timestamp() - times[i] > 2 * self._bitcoin.bars.seconds:
            return None
        return TRENDS[int(self._bitcoin.signs.trend[i])]

    def decide(self, scenario: Scenario, correlated: bool) -> AgentAction:
        """The control: the agent's remaining gates in their order, the stand-in for its LLM, its
        risk veto."""
        skip = self._guard(scenario.account)
        if skip is None and correlated:
            skip = SkipReason.CORRELATED
        if skip is not None:
            return AgentAction(decision=False, decided_at=scenario.as_of, final_skip_reason=skip)
        approval, confidence = stand_in_approval(scenario)
        skip = _risk_veto(scenario) if approval else SkipReason.LLM_VETO
        asked = {
            "llm_decision": approval,
            "llm_approval": approval,
            "llm_confidence": confidence,
            "llm_model": "stand-in",
        }
        if skip is not None:
            return AgentAction(
                decision=False, decided_at=scenario.as_of, final_skip_reason=skip, **asked
            )
        plan = scenario.plan
        return AgentAction(
            decision=True,
            decided_at=scenario.as_of,
            **asked,
            entry=plan.entry,
            stop=plan.stop,
            targets=plan.targets,
            atr_at_entry=scenario.candidate.atr,
            size_usd=plan.notional,
            quantity=plan.quantity,
            take_profit_strategy="trail_after_tp1",
        )

    def _guard(self, account: Account) -> SkipReason | None:
        """Drawdown guard and the limit of one open trade."""
        guards = self._guards
        if (account.day_pnl_fraction or 0) <= -guards.max_day_loss:
            return SkipReason.DAY_LOSS
        if (account.consecutive_losses or 0) >= guards.max_stop_losses and (
            account.seconds_since_loss or 0
        ) < MAX_GAP_S:
            return SkipReason.STOP_LOSSES
        if (account.drawdown_fraction or 0) >= guards.max_drawdown:
            return SkipReason.DRAWDOWN
        return SkipReason.MAX_TRADES if account.positions else None

    def correlated(self, at: Opportunity, others: Sequence[Opportunity]) -> bool:
        """Whether a better-scored candidate of the same moment moved alike (correlation of 96
        returns above 0.8)."""
        mine = self._returns(at)
        score = self.charts[at.chart].score[at.bar]
        better = (o for o in others if o != at and self.charts[o.chart].score[o.bar] > score)
        return any(
            np.corrcoef(mine, self._returns(other))[0, 1] > MAX_CORRELATION for other in better
        )

    def _returns(self, at: Opportunity) -> Floats:
        closes = self.charts[at.chart].bars.close[at.bar - CORRELATION_BARS : at.bar + 1]
        return np.diff(np.log(closes))


def stand_in_approval(scenario: Scenario) -> tuple[bool, float]:
    """Plays the LLM: approve when at least three of four plain readings of the chart agree.
    Confidence 0-1.

    Buyers lead (+DI above -DI), momentum is up (MACD histogram above 0), not overbought (RSI below
    68), volume above its mean. A counter-trend setup needs RSI below 30 instead of leading buyers.
    """
    c = scenario.candidate
    lead, rsi = (c.di_plus or 0) - (c.di_minus or 0), 50 if c.rsi is None else c.rsi
    leads = rsi < 30 if c.setup_type == "counter_trend" else lead > 0
    votes = sum((leads, (c.macd or 0) > 0, rsi < 68, (c.volume_ratio or 0) > 0))
    return votes >= 3, votes / 4


def _risk_veto(scenario: Scenario) -> SkipReason | None:
    """BTC conflict, ATR percentile and reward:risk, as the agent judges them: what is missing
    passes."""
    c, plan = scenario.candidate, scenario.plan
    if c.btc_trend == "down" and c.setup_type != "counter_trend":
        return SkipReason.BITCOIN_TREND
    percentile = c.volatility_pct or 0.0
    if percentile >= 0.9:
        return SkipReason.VOLATILITY
    ratio = (plan.targets[0] - plan.entry) / (plan.entry - plan.stop)
    least = 1.8 if percentile >= 0.75 else 1.0
    return SkipReason.REWARD_RISK if ratio < least else None
