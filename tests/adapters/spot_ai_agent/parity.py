"""The Spot AI Agent's own risk veto and our rules with its profile, on the same generated inputs:
every kind of difference, counted. `python -m tests.adapters.spot_ai_agent.parity CHECKOUT` prints
them.

An input is what the agent's loop hands to its veto, with what may stand in its place when a source
is away or of another version: nothing, NaN, a text, another unit. Ours gets it as the adapter sends
it, in a request that is sound otherwise.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random
from typing import Any

from pydantic import ValidationError
from shadow_advisor_client import encode

from app.api.receiving import candidate_of
from app.domain.record.decision import review_control
from app.domain.rules.case import TradingState
from app.domain.rules.limits import Limits, read_limits
from app.domain.rules.vetoes import VetoCode

INPUTS = 20_000
AT = datetime(2026, 11, 23, 9, tzinfo=UTC)
PROFILE = Path(__file__).parents[3] / "limits/spot-ai-agent.toml"
Veto = Callable[[Mapping[str, Any]], Mapping[str, Any]]
CONFLICTS = {
    "btc trend conflict": VetoCode.BTC_TREND_CONFLICT,
    "news<30m": VetoCode.NEWS_WINDOW,
    "volatility_spike": VetoCode.VOLATILITY_SPIKE,
}
"""The agent's word, and the code of ours that asks the same."""
TRENDS, HIGH = ("up", "down", "flat"), 0.75


def veto_of(checkout: Path) -> Veto:
    """The agent's own function, of a checkout of it."""
    spec = spec_from_file_location("spot_ai_agent_risk_veto", checkout / "risk_veto.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look their module up.
    spec.loader.exec_module(module)
    veto: Veto = module.evaluate_risk_veto
    return veto


def payload(source: Random) -> dict[str, Any]:
    """What the agent's loop knows at its veto; most values as its sources give them."""
    news = source.choice([None, source.uniform(0, 240), 29.99, 30.0, 119.0, -3.0, math.nan, "45"])
    rank = source.choice(
        [None, *(source.random() for _ in range(4)), 0.75, 0.9, 0.8999999, 45.0, 95.0, math.nan]
    )
    return {
        "direction": source.choice(["long"] * 9 + ["short", None, "sideways", "LONG", "buy"]),
        "btc_trend": source.choice(
            ["up", "down", "flat"] * 3 + [None, "bullish", "bearish", "", "unclear", 0.8, -0.8]
        ),
        "time_to_news_minutes": news,
        "volatility": rank,
        "setup_type": source.choice(["trend", "mean_reversion", "counter_trend", None]),
        "news_severity": source.choice([None, 0, 1, 2, 3]),
        "macro_news_safe": source.choice([None, True, True, True, False]),
        "reward_risk": source.choice([0.8, 1.0, 1.3, 1.6, 2.0, 2.0, 2.0, 3.0]),
        "max_rr": 2.0,
    }


def ours(told: Mapping[str, Any], limits: Limits) -> set[str]:
    """Codes that refuse the agent's own order; that of a request which is refused is 422."""
    entry, atr, away = 40_000.0, 400.0, -1 if told["direction"] == "short" else 1
    stop = entry - away * 1.5 * atr
    document = {
        "candidate": {
            "symbol": "BTCUSDT",
            "ts": AT,
            "atr": atr,
            "direction": told["direction"],
            "btc_trend": told["btc_trend"],
            "time_to_news_minutes": told["time_to_news_minutes"],
            "volatility_pct": told["volatility"],
            "setup_type": told["setup_type"] or "none",
            "news_severity": told["news_severity"],
            "macro_news_safe": told["macro_news_safe"],
        },
        "plan": {
            "entry": entry,
            "stop": stop,
            "targets": [entry + told["reward_risk"] * (entry - stop)],
            "quantity": 0.01,
        },
        "account": {"positions": []},
    }
    try:
        scenario = candidate_of(encode(document).body).scenario()
    except ValidationError:
        return {"422"}
    verdict = review_control(scenario, limits, TradingState.ACTIVE, AT)
    return {veto.code.value for veto in verdict.vetoes}


def why(told: Mapping[str, Any], code: str) -> str:
    """What of an input made the difference under a code."""
    if code == VetoCode.BTC_TREND_CONFLICT:
        word = "BTC " + told["btc_trend"] if told["btc_trend"] in TRENDS else "another word for it"
        return f"a short, {word}" if told["direction"] == "short" else word
    if code == VetoCode.NEWS_WINDOW:
        severe = "severity 3" if told["news_severity"] == 3 else "another severity"
        return f"{severe}, {_when(told['time_to_news_minutes'])}"
    rank = told["volatility"]
    in_per_cent = rank is not None and rank > 1
    if code == VetoCode.VOLATILITY_SPIKE:
        return "a rank in per cent" if in_per_cent else f"a rank of {rank}"
    if code == VetoCode.REWARD_RISK:
        if in_per_cent:
            return "a rank in per cent"
        high = rank is not None and rank >= HIGH
        return f"{told['reward_risk']} in {'high' if high else 'low'} volatility"
    return f"direction {told['direction']}" if code in {"422", VetoCode.DIRECTION} else "any"


def _when(minutes: Any) -> str:
    if minutes is None or math.isnan(float(minutes)):
        return "not known"
    if float(minutes) < 0:
        return "in the past"
    return "30 to 120 minutes" if 30 <= float(minutes) < 120 else "sooner or later"


def differences(veto: Veto, count: int = INPUTS) -> Counter[str]:
    """Kinds of differences: who alone refuses, under which code, and for what of the input."""
    source, limits, kinds = Random(1), read_limits(PROFILE), Counter[str]()
    for _ in range(count):
        told = payload(source)
        theirs = {CONFLICTS[conflict].value for conflict in veto(told)["conflicts"]}
        refused = ours(told, limits)
        kinds["the same codes" if theirs == refused else "some difference"] += 1
        if refused == {"422"}:
            theirs = set()  # There is no order of ours that the others could refuse.
        for who, alone in (("it", theirs - refused), ("ours", refused - theirs)):
            for code in alone:
                kinds[f"{who} alone, `{code}`: {why(told, code)}"] += 1
    return kinds


def rows(kinds: Mapping[str, int]) -> list[str]:
    """The table of the documentation."""
    return [f"| {kind} | {count:,} |" for kind, count in sorted(kinds.items())]


if __name__ == "__main__":
    print("\n".join(rows(differences(veto_of(Path(sys.argv[1]))))))
