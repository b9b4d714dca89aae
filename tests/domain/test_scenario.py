"""What a scenario accepts, refuses and keeps."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given

from app.domain.candidate import Candidate
from app.domain.canonical import canonical_json, content_hash
from app.domain.errors import InvalidRecord
from app.domain.features import FEATURE_NAMES, features
from app.domain.model.prompt import render
from app.domain.scenario import Plan, Scenario
from tests.domain.scenarios import AS_OF, MINIMAL, scenario, scenario_json, scenarios

FIRST_SCHEMA = "sha256:1a8b86273e2043a77fdad48735e3ec8396b94bdc8c0a3db473951187624be3f1"
"""Of the names of the features of 2026-11-1."""
AGENT_FIELDS = [
    "symbol",
    "direction",
    "ts",
    "session",
    "tier",
    "setup_type",
    "pattern",
    "auction_state",
    "score",
    "normalized_score_pre_macro",
    "score_after_profile",
    "trend_norm",
    "mean_rev_norm",
    "activation_threshold",
    "macro_score_adjustment",
    "alt_adjustment",
    "technical_score",
    "confidence",
    "score_threshold",
    "pattern_memory",
    "rsi",
    "macd",
    "macd_signal",
    "adx",
    "di_plus",
    "di_minus",
    "next_return",
    "atr",
    "atr_15m_ratio",
    "hurst",
    "volatility_pct",
    "htf_trend_pct",
    "near_support",
    "near_resistance",
    "btc_dominance",
    "fear_greed",
    "btc_dominance_age_s",
    "fear_greed_age_s",
    "macro_flags",
    "sentiment_bias",
    "sentiment_confidence",
    "macro_indicator",
    "macro_news_safe",
    "macro_news_reason",
    "news_summary",
    "symbol_news_summary",
    "news_severity",
    "time_to_news_minutes",
    "btc_trend",
    "orderflow",
    "order_flow_score",
    "order_flow_flag",
    "order_imbalance",
    "cvd",
    "cvd_change",
    "cvd_divergence",
    "cvd_absorption",
    "cvd_accumulation",
    "taker_buy_ratio",
    "trade_imbalance",
    "aggressive_trade_rate",
    "spoofing_intensity",
    "spoofing_alert",
    "volume_ratio",
    "price_change_pct",
    "spread_bps",
    "social",
    "onchain",
    "volume_profile",
    "lvn_level",
    "open_positions",
    "max_trades",
    "ml_probability",
]


def test_every_field_of_the_agent_is_a_field_of_the_candidate() -> None:
    assert set(AGENT_FIELDS) == Candidate.model_fields.keys() - {"extra"}


def test_a_full_candidate_comes_back_as_it_went_in() -> None:
    document = json.loads((Path(__file__).parent / "full_candidate.json").read_text())
    assert set(AGENT_FIELDS) <= document.keys()
    stored = Candidate.from_json(document).as_json()
    assert stored.pop("extra") == {"my_new_signal": 0.25, "nested": {"list": [1, "two", None]}}
    unknown = ("my_new_signal", "nested")
    assert stored == {key: value for key, value in document.items() if key not in unknown}


@given(scenarios())
def test_a_scenario_survives_json_with_the_same_hash(s: Scenario) -> None:
    again = Scenario.from_json(orjson.loads(canonical_json(s.as_json())))
    assert again == s
    assert again.hash() == s.hash()


def test_hash_ignores_the_sign_of_zero_and_the_spelling_of_integers() -> None:
    zero, negative = (
        scenario(account__day_pnl_fraction=0.0),
        scenario(account__day_pnl_fraction=-0.0),
    )
    assert zero.hash() == negative.hash()
    assert (
        scenario(candidate__extra={"n": 1.0}).hash() == scenario(candidate__extra={"n": 1}).hash()
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"candidate__rsi": float("nan")}, "candidate.rsi"),
        ({"plan__entry": float("inf")}, "plan.entry"),
        ({"candidate__volatility_pct": 55}, "candidate.volatility_pct"),
        ({"candidate__confidence": 72}, "candidate.confidence"),
        ({"candidate__fear_greed": 101}, "candidate.fear_greed"),
        ({"candidate__atr": 0}, "candidate.atr"),
        ({"candidate__symbol": "btc usdt"}, "candidate.symbol"),
        ({"candidate__ts": datetime(2026, 11, 23, 9)}, "candidate.ts"),
        ({"candidate__direction": "sideways"}, "candidate.direction"),
        ({"candidate__symbol": "BTC\u200bUSDT"}, "candidate.symbol"),
        ({"candidate__ts": ...}, "candidate.ts"),
        ({"candidate__time_to_news_minutes": "soon"}, "candidate.time_to_news_minutes"),
        ({"candidate__time_to_news_minutes": -1}, "candidate.time_to_news_minutes"),
        ({"plan__notional": 0}, "plan"),
        ({"plan__quantity": ...}, "plan.quantity"),
        ({"candidate__extra": {"x": float("nan")}}, "candidate.extra"),
        ({"candidate__extra": {"x": 2**60}}, "candidate.extra"),
        ({"candidate__news_summary": "x" * 2001}, "candidate.news_summary"),
        ({"plan__targets": []}, "plan.targets"),
        ({"plan__quantity": -1}, "plan.quantity"),
        ({"market__bar_closed_at": AS_OF + timedelta(seconds=1)}, "market.bar_closed_at"),
        (
            {"account__positions": [{"symbol": "ETHUSDT", "quantity": 1, "entry": 0}]},
            "account.positions[0].entry",
        ),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRecord, match=field.replace("[", r"\[").replace("]", r"\]")):
        scenario(**changes)


def test_ages_must_be_of_known_fields_and_not_in_the_future() -> None:
    document = scenario_json()
    assert Scenario.from_json(document | {"ages": {"fear_greed": 3600.0}}).ages == {
        "fear_greed": 3600.0
    }
    with pytest.raises(InvalidRecord, match="ages names fields"):
        Scenario.from_json(document | {"ages": {"no_such_field": 1.0}})
    with pytest.raises(InvalidRecord, match=r"ages\.fear_greed"):
        Scenario.from_json(document | {"ages": {"fear_greed": -1.0}})


def test_a_position_from_the_future_is_refused() -> None:
    late = {"symbol": "ETHUSDT", "quantity": 1, "entry": 5, "opened_at": AS_OF + timedelta(hours=1)}
    with pytest.raises(InvalidRecord, match="opened_at is later"):
        scenario(account__positions=[late])


def test_times_are_stored_in_utc() -> None:
    karachi = "2026-11-23T14:00:00+05:00"
    assert scenario(candidate__ts=karachi).as_of == datetime(2026, 11, 23, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("microseconds", "second"),
    [(0, 0), (1, 1), (400_000, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)],
)
def test_the_second_of_a_decision_is_rounded_up_to_the_microsecond(
    microseconds: int, second: int
) -> None:
    for whole in (datetime(2026, 11, 23, 9, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)):
        decided = scenario(candidate__ts=whole + timedelta(microseconds=microseconds))
        assert decided.second - int(whole.timestamp()) == second


def test_control_characters_are_dropped_from_texts_that_postgres_must_store() -> None:
    s = scenario(candidate__news_summary="a\x00b\ud800c", candidate__extra={"k\x00": "v\x01"})
    assert s.candidate.news_summary == "a b c"
    assert s.candidate.extra == {"k ": "v "}


@given(scenarios())
def test_features_have_one_value_per_name(s: Scenario) -> None:
    assert len(features(s)) == len(FEATURE_NAMES) == len(set(FEATURE_NAMES))


def test_surroundings_that_nobody_sent_are_unknown_and_leave_no_trace_in_the_record() -> None:
    s = scenario()
    assert "surroundings" not in s.as_json()["market"]
    known = dict(zip(FEATURE_NAMES, features(s), strict=True))
    assert math.isnan(known["momentum_rank"])
    assert math.isnan(known["volatility_24h_over_atr"])


def test_features_of_the_surroundings_by_hand() -> None:
    around = {"volatility_24h": 0.005, "volatility_1h": 0.0, "return_6h": -0.02, "btc_return_1h": 0}
    s = scenario(market__surroundings=around)
    known = dict(zip(FEATURE_NAMES, features(s), strict=True))
    assert known["volatility_24h_over_atr"] == pytest.approx(math.log(0.5))
    assert math.isnan(known["volatility_1h_over_atr"]), "no logarithm of an hour without a trade"
    assert known["return_6h_in_atr"] == pytest.approx(-2.0)
    assert known["btc_return_1h"] == 0.0
    assert math.isnan(known["btc_return_6h"])
    assert Scenario.from_json(s.as_json()) == s
    assert render(s) == render(scenario()), "the prompt shows none of it"


def test_the_features_of_the_first_schema_stand_first_and_unchanged() -> None:
    first = FEATURE_NAMES[: FEATURE_NAMES.index("hour_cos") + 1]
    assert content_hash(first) == FIRST_SCHEMA


def test_features_by_hand() -> None:
    row = dict(zip(FEATURE_NAMES, features(scenario()), strict=True))
    assert row["atr_fraction"] == 0.01
    assert row["plan_stop_atr"] == 1.5
    assert row["plan_reward_risk"] == pytest.approx(80 / 30)
    assert row["session=Europe"] == 1.0
    assert row["session=Asia"] == 0.0
    assert row["score_over_threshold"] == pytest.approx(1.3)
    assert row["hurst"] != row["hurst"], "not known is NaN"


def test_symbol_side_prices_size_and_time_are_all_that_is_needed() -> None:
    least = Scenario.from_json(MINIMAL)
    assert least.plan.quantity == 500.0 / 2000.0
    assert least.candidate.session == "Europe", "09:00 UTC is 14:00 in Karachi"
    assert render(least).user == "ETH long Europe none\nreward 2.7"
    assert Scenario.from_json(least.as_json()) == least
    row = dict(zip(FEATURE_NAMES, features(least), strict=True))
    assert all(math.isnan(row[name]) for name in ("score", "rsi", "atr_fraction", "plan_stop_atr"))


@pytest.mark.parametrize(
    ("hour", "session"), [(19, "Asia"), (2, "Asia"), (3, "Europe"), (10, "Europe"), (11, "US")]
)
def test_a_session_that_is_not_told_is_that_of_the_hour_in_karachi(hour: int, session: str) -> None:
    at = AS_OF.replace(hour=hour)
    told = scenario(candidate__ts=at, candidate__session=..., market__bar_closed_at=at)
    assert told.candidate.session == session


def test_a_size_may_be_told_in_quote_currency() -> None:
    both = scenario(plan__notional=500.0)
    assert both.as_json()["plan"] == scenario().as_json()["plan"]
    assert both.plan.quantity == 0.25
    with pytest.raises(InvalidRecord, match=r"quantity x entry is 500, notional 450"):
        scenario(plan__notional=450.0)


@pytest.mark.parametrize(
    "symbol", ["BTC/USDC", "btceur", "\u5e01\u5b89\u4eba\u751f/USDT", "BTC-PERP", "XBT/EUR:EUR"]
)
def test_a_symbol_may_be_of_any_script_and_quote(symbol: str) -> None:
    assert scenario(candidate__symbol=symbol).candidate.symbol == symbol


def test_what_is_not_known_is_absent_from_the_prompt() -> None:
    gone = dict.fromkeys(
        ("candidate__score", "candidate__confidence", "candidate__score_threshold"), None
    )
    assert "conf" not in render(scenario(**gone)).user
    assert "score" not in render(scenario(**gone)).user
    assert "event" not in render(scenario(candidate__time_to_news_minutes="clear")).user


def test_a_plan_is_sent_with_its_size_in_either_unit() -> None:
    schema = Plan.model_json_schema()
    assert schema["anyOf"] == [{"required": ["quantity"]}, {"required": ["notional"]}]
    assert "quantity" not in schema["required"]
    sizes = {"entry": 2000.0, "stop": 1970.0, "targets": [2060.0]}
    assert Plan.from_json(sizes | {"notional": 500.0}).quantity == 0.25
    assert Plan.from_json(sizes | {"notional": None, "quantity": 0.5}).quantity == 0.5
