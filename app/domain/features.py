"""Numeric features of a scenario: one code path for serving, training and drift.

Every feature is scale free (ratios, fractions, ranks), so that symbols and years compare. Not known
is NaN.
"""

from __future__ import annotations

import math

from app.domain.candidate import BtcTrend, Candidate, Orderflow, SentimentBias, Session, SetupType
from app.domain.scenario import Scenario

FEATURE_SCHEMA = "2026-11-2"
SERVED_SCHEMAS = ("2026-11-1", FEATURE_SCHEMA)
"""Each begins with all features of those before it, unchanged: what was made for an earlier one is
served on."""
NAN = math.nan

_CANDIDATE_NUMBERS = (
    "score",
    "normalized_score_pre_macro",
    "score_after_profile",
    "trend_norm",
    "mean_rev_norm",
    "macro_score_adjustment",
    "alt_adjustment",
    "technical_score",
    "confidence",
    "rsi",
    "adx",
    "di_plus",
    "di_minus",
    "next_return",
    "atr_15m_ratio",
    "hurst",
    "volatility_pct",
    "htf_trend_pct",
    "near_support",
    "near_resistance",
    "btc_dominance",
    "fear_greed",
    "sentiment_confidence",
    "macro_indicator",
    "news_severity",
    "order_flow_score",
    "order_imbalance",
    "cvd",
    "cvd_change",
    "cvd_divergence",
    "taker_buy_ratio",
    "trade_imbalance",
    "aggressive_trade_rate",
    "spoofing_intensity",
    "volume_ratio",
    "price_change_pct",
    "spread_bps",
    "ml_probability",
)
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "session": tuple(Session),
    "setup_type": tuple(SetupType),
    "sentiment_bias": tuple(SentimentBias),
    "btc_trend": tuple(BtcTrend),
    "orderflow": tuple(Orderflow),
}
_VOLATILITIES = (
    "volatility_1h",
    "volatility_6h",
    "volatility_24h",
    "volatility_7d",
    "volatility_same_hours",
)
_RETURNS = ("return_6h", "return_24h", "return_7d", "return_30d")
_RANKS = ("momentum_rank", "volatility_rank")
_ABROAD = (
    "market_return_24h",
    "market_volatility_24h",
    "btc_return_1h",
    "btc_return_6h",
    "btc_return_24h",
    "btc_volatility_24h",
)
FEATURE_NAMES: tuple[str, ...] = (
    *_CANDIDATE_NUMBERS,
    *(f"{name}={value}" for name, values in _CATEGORIES.items() for value in values),
    "score_over_threshold",
    "macd_atr",
    "atr_fraction",
    "plan_stop_atr",
    "plan_reward_risk",
    "pattern_win_rate",
    "social_score",
    "onchain_score",
    "day_pnl_fraction",
    "drawdown_fraction",
    "consecutive_losses",
    "hour_sin",
    "hour_cos",
    *(f"{name}_over_atr" for name in _VOLATILITIES),
    *(f"{name}_in_atr" for name in _RETURNS),
    *_RANKS,
    *_ABROAD,
)


def features(scenario: Scenario) -> tuple[float, ...]:
    """Feature vector of length `len(FEATURE_NAMES)`, in that order; NaN where a field is not
    known."""
    candidate = scenario.candidate
    numbers = [_number(getattr(candidate, name)) for name in _CANDIDATE_NUMBERS]
    flags = [
        NAN if getattr(candidate, name) is None else float(getattr(candidate, name) == value)
        for name, values in _CATEGORIES.items()
        for value in values
    ]
    return (*numbers, *flags, *_derived(scenario, candidate), *_surroundings(scenario))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _derived(scenario: Scenario, c: Candidate) -> tuple[float, ...]:
    plan, account = scenario.plan, scenario.account
    distance, atr = abs(plan.entry - plan.stop), _number(c.atr)
    angle = 2 * math.pi * (scenario.as_of.hour + scenario.as_of.minute / 60) / 24
    return (
        _number(c.score) - _number(c.score_threshold),
        _number(c.macd) / atr,
        atr / _number(scenario.market.last_close),
        distance / atr,
        (max(plan.targets) - plan.entry) / distance if distance else NAN,
        _number(c.pattern_memory.posterior_mean if c.pattern_memory else None),
        _number(c.social.score if c.social else None),
        _number(c.onchain.score if c.onchain else None),
        _number(account.day_pnl_fraction),
        _number(account.drawdown_fraction),
        _number(account.consecutive_losses),
        math.sin(angle),
        math.cos(angle),
    )


def _surroundings(s: Scenario) -> tuple[float, ...]:
    """A volatility is the logarithm of its ratio to the ATR, a return is in ATR."""
    around = s.market.surroundings
    if around is None:
        return (NAN,) * (len(_VOLATILITIES) + len(_RETURNS) + len(_RANKS) + len(_ABROAD))
    atr = _number(s.candidate.atr) / _number(s.market.last_close)
    volatilities = (_number(getattr(around, name)) / atr for name in _VOLATILITIES)
    returns = (_number(getattr(around, name)) / atr for name in _RETURNS)
    return (
        *(math.log(ratio) if ratio > 0 else NAN for ratio in volatilities),
        *returns,
        *(_number(getattr(around, name)) for name in (*_RANKS, *_ABROAD)),
    )
