"""The brief: a scenario as a decision model elsewhere is told it, rendered here and nowhere else.

Names that a stranger understands, numbers to four digits, prices as distances: what is said of one
symbol at one time reads like what is said of another. No text that somebody else wrote enters it:
a brief has no news, so whatever a text says, it approves nothing. Masked, it has neither symbol nor
date nor what would give them away, against what a model may remember of the past. Change anything
here and bump `BRIEF_VERSION`: what was asked before keeps its own hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from app.domain.scenario import Scenario
from app.domain.text import OTHER_COIN, coin_of, pattern_of

BRIEF_VERSION = "2026-11-1"
_DIGITS = 4
_INDICATORS = {
    "rsi": "rsi_14",
    "adx": "adx_14",
    "di_plus": "di_plus",
    "di_minus": "di_minus",
    "hurst": "hurst_exponent",
    "volatility_pct": "atr_percentile_0_to_1",
    "htf_trend_pct": "higher_timeframe_trend_percent",
    "price_change_pct": "price_change_fraction",
    "next_return": "agent_forecast_return",
    "near_support": "near_support",
    "near_resistance": "near_resistance",
}
_OPINIONS = {
    "score": "score",
    "score_threshold": "score_needed",
    "confidence": "confidence_0_to_10",
    "technical_score": "technical_score_0_to_10",
    "trend_norm": "trend_score",
    "mean_rev_norm": "mean_reversion_score",
    "ml_probability": "agent_model_probability",
}
_CONTEXT = {
    "btc_trend": "bitcoin_trend",
    "fear_greed": "fear_and_greed_0_to_100",
    "sentiment_bias": "sentiment",
    "sentiment_confidence": "sentiment_confidence_0_to_10",
    "news_severity": "news_severity_0_to_3",
}
_FLOW = {
    "orderflow": "aggressor",
    "order_imbalance": "order_book_imbalance_percent",
    "cvd_change": "cumulative_volume_delta_change",
    "taker_buy_ratio": "taker_buy_ratio",
    "volume_ratio": "volume_against_average",
    "spread_bps": "spread_basis_points",
}
_ACCOUNT = {
    "day_pnl_fraction": "profit_today_fraction_of_equity",
    "drawdown_fraction": "drawdown_fraction",
    "consecutive_losses": "losses_in_a_row",
}


def brief_of(scenario: Scenario, *, masked: bool = False) -> dict[str, Any]:
    """The brief of a scenario, JSON. Pure: the same scenario gives the same brief. What is not
    known is left out."""
    candidate, account = scenario.candidate, scenario.account
    surroundings = scenario.market.surroundings
    positions = account.positions
    parts: dict[str, Any] = {
        **_identity(scenario, masked),
        "plan": _plan(scenario),
        "agent": _named(candidate, _OPINIONS),
        "indicators": _named(candidate, _INDICATORS),
        "context": _named(candidate, _CONTEXT),
        "order_flow": _named(candidate, _FLOW),
        "account": _named(account, _ACCOUNT)
        | ({} if positions is None else {"open_positions": len(positions)}),
        "surroundings": {} if surroundings is None else _named_all(surroundings.as_json()),
    }
    if not masked and candidate.btc_dominance is not None:
        parts["context"]["bitcoin_dominance_percent"] = _rounded(candidate.btc_dominance)
    return {name: part for name, part in parts.items() if part not in ({}, None)}


def _identity(scenario: Scenario, masked: bool) -> dict[str, Any]:
    candidate = scenario.candidate
    pattern, _ = pattern_of(candidate.pattern)
    known = {
        "coin": OTHER_COIN if masked else coin_of(candidate.symbol),
        "direction": candidate.direction.value,
        "session": candidate.session.value,
        "setup": candidate.setup_type.value,
        "pattern": pattern or None,
    }
    return known if masked else {**known, "time": f"{scenario.as_of:%Y-%m-%dT%H:%MZ}"}


def _plan(scenario: Scenario) -> dict[str, Any]:
    """Distances in ATR and in per cent of the entry; what a target earns for what the stop
    costs."""
    plan, market, atr = scenario.plan, scenario.market, scenario.candidate.atr
    distance = abs(plan.entry - plan.stop)
    known = {
        "atr_percent_of_price": _ratio(atr, market.last_close, 100),
        "stop_distance_atr": _ratio(distance, atr),
        "stop_distance_percent": 100 * distance / plan.entry,
        "bar_minutes": _ratio(market.bar_seconds, 60),
    }
    return _named_all(known) | {
        "reward_to_risk": [
            _rounded((target - plan.entry) / distance) for target in plan.targets if distance
        ],
    }


def _ratio(value: float | None, unit: float | None, scale: float = 1) -> float | None:
    return None if value is None or unit is None else scale * value / unit


def _named(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
    return _named_all({told: getattr(record, name) for name, told in names.items()})


def _named_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items() if value is not None}


def _rounded(value: Any) -> Any:
    """A number to four significant digits; flags, and names of closed sets, as they are."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool | str):
        return value
    return float(f"{value:.{_DIGITS}g}") + 0.0
