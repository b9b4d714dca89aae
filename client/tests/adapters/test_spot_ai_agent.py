"""What the Spot AI Agent has at hand, as documents that the service takes whole."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Scenario

from shadow_advisor_client import encode
from shadow_advisor_client.adapters.spot_ai_agent import (
    DECISION,
    Shadow,
    confidence_share,
    opened,
    outcome_of,
    plan_of,
    rejected,
    request_of,
)

NOW = datetime.now(timezone.utc)


def names(**changes: Any) -> dict[str, Any]:
    """`locals()` of the agent's loop, in its own types: NaN, numpy, whole numbers for flags."""
    index = pd.date_range(end=NOW - timedelta(minutes=2), periods=30, freq="min")
    frame = pd.DataFrame({"close": np.linspace(99.0, 100.0, 30)}, index=index)
    frame.attrs.update(news_severity=np.int64(1), atr_15m_ratio=float("nan"))
    found = {
        "symbol": "btcusdt",
        "price_data": frame,
        "indicators_df": pd.DataFrame({"atr": [1.0, 2.0]}),
        "indicators": {"rsi": 61.0, "macd": 0.2, "macd_signal": float("nan"), "adx": 25.0},
        "signal_snapshot": {
            "spoofing_alert": False,
            "order_flow_flag": 1,
            "cvd": np.float64(0.3),
            "spread_bps": float("nan"),
            "setup_type": "trend",
        },
        "setup_type": None,
        "auction_state": None,
        "session": "Asia",
        "tier": "TIER1",
        "score": 6.6,
        "pattern_name": "hammer",
        "sym_vol_pct": 0.4,
        "htf_trend_pct": 0.1,
        "orderflow": "buyers",
        "order_imb": 12.0,
        "btc_trend_bias": "up",
        "btc_d": None,
        "fg": 34,
        "sentiment_bias": "neutral",
        "sentiment_confidence": 5.0,
        "macro_ind": 0.0,
        "macro_news_assessment": {"safe": True, "reason": "x" * 3000},
        "next_news_minutes": None,
        "alt_features": {"social_score": 0.1},
        "active_trades": [
            {
                "symbol": "ETHUSDT",
                "position_size": 2.0,
                "entry": 10.0,
                "sl": 9.0,
                "entry_time": "2024-03-01 10:00:00",
            }
        ],
        "max_active_trades": 1,
        "prepared": SimpleNamespace(final_confidence=7.0, technical_score=6.0),
    }
    return {**found, **changes}


def taken(document: dict[str, Any]) -> Any:
    """As it arrives: through the client's JSON."""
    body, left_out = encode(document)
    assert left_out == {}
    return json.loads(body)


def test_a_candidate_is_a_scenario_of_the_service() -> None:
    scenario = Scenario.from_json(taken(request_of(names(), NOW)))
    candidate = scenario.candidate
    assert (candidate.symbol, candidate.setup_type, candidate.auction_state) == (
        "BTCUSDT",
        "none",
        "unknown",
    )
    assert (candidate.atr, candidate.confidence, candidate.cvd) == (2.0, 7.0, 0.3)
    assert (candidate.spread_bps, candidate.atr_15m_ratio, candidate.macd_signal) == (None,) * 3
    assert candidate.extra == {}
    assert scenario.account.positions is not None
    assert scenario.account.positions[0].opened_at == datetime(2024, 3, 1, 10, tzinfo=timezone.utc)
    assert scenario.market.last_close == 100.0


def test_the_plan_follows_the_agent_s_rules() -> None:
    plan = plan_of(100.0, 2.0, 7.0)
    assert (plan["entry"], plan["stop"], plan["quantity"]) == (100.0, 97.0, 4.5)
    assert plan["targets"] == [106.0, 108.0, 110.0]
    assert plan_of(100.0, None, None)["stop"] == 97.0  # 1.5 times 2 % of the price.
    sizes = {
        confidence: plan_of(1.0, 1.0, confidence)["quantity"] for confidence in (6.4, 6.5, 8.5)
    }
    assert sizes == {6.4: 400.0, 6.5: 450.0, 8.5: 500.0}


TRADE = {
    "symbol": "BTCUSDT",
    "entry": 100.0,
    "sl": 97.0,
    "tp1": 106.0,
    "tp2": 108.0,
    "tp3": None,
    "atr_at_entry": 2.0,
    "initial_size": 4.5,
    "size": 450.0,
    "entry_time": "2024-03-01 10:00:00",
    "llm_decision": "approved",
    "llm_approval": True,
    "llm_confidence": 7.5,
    "llm_error": True,
    "microstructure_plan": {"slices": 3},
    "take_profit_strategy": "atr_trailing",
}


def test_what_the_service_once_refused_is_taken() -> None:
    action = AgentAction.from_json(taken(opened(TRADE)))
    assert (action.llm_decision, action.llm_confidence, action.llm_error) == (True, 0.75, "True")
    assert (action.targets, action.micro_plan) == ((106.0, 108.0), "{'slices': 3}")
    skipped = AgentAction.from_json(taken(rejected({"final_skip_reason": "weak " * 60})))
    assert len(skipped.final_skip_reason or "") == 200
    assert len(skipped.reason or "") == 300


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("sl", "sl"),
        ("tp1_partial", "tp1_partial"),
        ("trailing_stop", "trailing_sl"),
        ("orderbook_exit", "other"),
        ("something_new", "other"),
    ],
)
def test_outcomes_of_every_code(told: str, code: str) -> None:
    ended = {**TRADE, "outcome": told, "exit_time": "2024-03-01 12:00:00", "exit_price": 0.0}
    outcome = Outcome.from_json(taken(outcome_of({**ended, "net_pnl": -13.6})))
    assert outcome.exit_time == datetime(2024, 3, 1, 12, tzinfo=timezone.utc)
    assert (outcome.exit_price, outcome.net_pnl) == (None, -13.6)
    assert (outcome.outcome, outcome.outcome_word) == (code, told if code == "other" else None)
    assert (outcome.holding_seconds, outcome.exit_reason) == (7200, told)


@pytest.mark.parametrize(
    ("told", "share"), [(0.7, 0.7), (7.0, 0.7), (None, None), (float("nan"), None), ("high", None)]
)
def test_confidence_of_either_scale(told: Any, share: float | None) -> None:
    assert confidence_share(told) == share


class Recorder:
    """A client that keeps what it is given."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def submit(self, document: Any) -> str:
        self.told.append(("request", document))
        return "d-1"

    def report_action(self, decision_id: str, action: Any) -> bool:
        self.told.append((decision_id, action))
        return True

    report_outcome = report_action


def test_a_trade_s_way_through_the_five_hooks() -> None:
    client: Any = Recorder()
    shadow, trade = Shadow(client), dict(TRADE)
    shadow.considers(names())
    shadow.checked({"symbol": "BTCUSDT", "confidence": 7.2, "ml_probability": 0.6})
    shadow.opens(trade)
    shadow.decided({"symbol": "BTCUSDT", "final_trade_taken": True})
    shadow.decided({"symbol": "ETHUSDT", "final_skip_reason": "low score"})  # Never considered.
    shadow.closed({**trade, "outcome": "sl", "net_pnl": -13.6})
    assert trade[DECISION] == "d-1"
    (_, (who, action), (whose, outcome)) = client.told
    assert (who, whose) == ("d-1", "d-1")
    assert action["decision"] is True
    assert action["extra"] == {"final_confidence": 7.2, "ml_probability": 0.6}
    assert outcome["net_pnl"] == -13.6


def test_nothing_raises_into_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    client: Any = Recorder()
    shadow = Shadow(client)
    shadow.considers({})
    shadow.checked({})
    shadow.opens({})
    shadow.closed({DECISION: "d-1", "exit_time": object()})
    assert client.told == []
    assert len(caplog.records) == 4
