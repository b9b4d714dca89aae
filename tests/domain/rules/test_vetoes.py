"""Every rule refuses what it should, passes what it should, and fails closed."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.domain.errors import LimitsError
from app.domain.model.actions import ACTIONS, BY_LABEL, LABELS
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Outlook
from app.domain.record.decision import AdviceStatus, Reading, Role, Version, conclude
from app.domain.rules.case import Case, Order, TradingState, agents_order, order_for, side_of
from app.domain.rules.limits import Cost, DirectionLimits, Limits, parse_limits, read_limits
from app.domain.rules.review import review
from app.domain.rules.vetoes import AFTER_CAPS, RULES, Rule, VetoCode
from app.domain.scenario import Scenario
from tests.domain.scenarios import (
    AS_OF,
    LIMITS,
    MINIMAL,
    case,
    sane_scenarios,
    scenario,
    scenario_json,
    scenarios,
)

VERSION = Version("test-1", "sha256:" + "0" * 64, Calibration(), Role.PRIMARY)
HELD = {"symbol": "ETHUSDT", "quantity": 0.1, "entry": 2000.0}
OTHER = {"symbol": "BTCUSDT", "quantity": 0.1, "entry": 40_000.0}


def limits(**sections: Any) -> Limits:
    return Limits.model_validate({"version": "test", **sections})


def codes(c: Case, by: Limits = LIMITS) -> set[str]:
    return {veto.code.value for veto in review(c, by).vetoes}


def reading(label: str) -> Reading:
    return Reading(
        log_probabilities=tuple(math.log(0.91 if each == label else 0.01) for each in LABELS)
    )


def test_the_plain_scenario_passes_every_rule() -> None:
    verdict = review(case(), LIMITS)
    assert verdict.vetoes == ()
    assert verdict.caps == ()
    assert (verdict.quantity, verdict.stop) == (0.25, 1970.0)


REFUSED: list[tuple[str, Case, Limits]] = [
    ("STATE_HALTED", case(state=TradingState.HALTED), LIMITS),
    ("STATE_REDUCING", case(state=TradingState.REDUCING), LIMITS),
    ("STALE_SNAPSHOT", case(now=AS_OF + timedelta(seconds=31)), LIMITS),
    ("STALE_SNAPSHOT", case(now=AS_OF - timedelta(seconds=6)), LIMITS),
    ("STALE_SNAPSHOT", case(scenario(market__bar_closed_at=AS_OF - timedelta(hours=3))), LIMITS),
    ("INPUT_SANITY", case(scenario(candidate__atr=600.0)), LIMITS),
    ("INPUT_SANITY", case(scenario(market__last_close=2200.0)), LIMITS),
    ("PRICE_SANITY", case(scenario(plan__stop=2030.0)), LIMITS),
    ("PRICE_SANITY", case(scenario(plan__targets=[1990.0])), LIMITS),
    ("DIRECTION", case(scenario(candidate__direction="short")), LIMITS),
    ("STOP_DISTANCE", case(scenario(plan__stop=1991.0)), LIMITS),
    (
        "STOP_DISTANCE",
        case(scenario(plan__stop=1900.0)),
        limits(stop_distance={"on_excess": "refuse"}),
    ),
    ("BTC_TREND_CONFLICT", case(scenario(candidate__btc_trend="down")), LIMITS),
    ("NEWS_WINDOW", case(scenario(candidate__time_to_news_minutes=29)), LIMITS),
    (
        "NEWS_WINDOW",
        case(scenario(candidate__time_to_news_minutes=90, candidate__news_severity=3)),
        LIMITS,
    ),
    ("MACRO_NEWS", case(scenario(candidate__macro_news_safe=False)), LIMITS),
    ("VOLATILITY_SPIKE", case(scenario(candidate__volatility_pct=0.9)), LIMITS),
    ("REWARD_RISK", case(scenario(plan__targets=[2029.0])), LIMITS),
    ("REWARD_RISK", case(scenario(plan__targets=[2047.0], candidate__volatility_pct=0.8)), LIMITS),
    ("SPREAD", case(scenario(candidate__spread_bps=10.5)), LIMITS),
    ("LIQUIDITY", case(scenario(market__volume_24h=900_000)), LIMITS),
    (
        "RISK_PER_TRADE",
        case(scenario(account__equity=300)),
        limits(risk_per_trade={"on_excess": "refuse"}),
    ),
    (
        "FORETOLD_RANGE",
        case()._replace(outlook=Outlook(range_atr=2.5)),
        limits(foretold_range={"max_equity_fraction": 0.001, "on_excess": "refuse"}),
    ),
    ("SYMBOL_EXPOSURE", case(scenario(account__positions=[HELD], account__equity=800)), LIMITS),
    ("TOTAL_EXPOSURE", case(scenario(account__positions=[OTHER], account__equity=4_000)), LIMITS),
    ("MIN_NOTIONAL", case(scenario(plan__quantity=0.004)), LIMITS),
    ("OPEN_POSITIONS", case(scenario(account__positions=[OTHER] * 3)), LIMITS),
    (
        "OPEN_POSITIONS",
        case(scenario(account__positions=None, candidate__open_positions=3)),
        LIMITS,
    ),
    ("DAILY_LOSS", case(scenario(account__day_pnl_fraction=-0.03)), LIMITS),
    ("DRAWDOWN", case(scenario(account__drawdown_fraction=0.25)), LIMITS),
    ("CONSECUTIVE_LOSSES", case(scenario(account__consecutive_losses=4)), LIMITS),
    (
        "COOL_DOWN",
        case(scenario(account__consecutive_losses=2, account__seconds_since_loss=3599)),
        LIMITS,
    ),
    ("DUPLICATE_SYMBOL", case(scenario(account__positions=[HELD])), LIMITS),
    ("RESTRICTED_SYMBOL", case(), limits(restricted_symbols={"symbols": ["ETHUSDT"]})),
    ("SESSION_CLOSED", case(), limits(trading_hours={"sessions": ["Asia"]})),
    (
        "MAINTENANCE_WINDOW",
        case(),
        limits(trading_hours={"daily_maintenance": [["08:55", "09:05"]]}),
    ),
    (
        "MAINTENANCE_WINDOW",
        case(),
        limits(trading_hours={"daily_maintenance": [["23:00", "09:01"]]}),
    ),
    ("MODEL_CONFIDENCE", case(approve_probability=0.49), LIMITS),
    ("COST_OVER_RISK", case(), limits(cost={"max_share_of_risk": 0.2})),
]


@pytest.mark.parametrize(
    ("code", "refused", "by"), REFUSED, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(REFUSED)]
)
def test_a_rule_refuses(code: str, refused: Case, by: Limits) -> None:
    assert code in codes(refused, by)


PLAIN = agents_order(scenario())
REFUSE = {"on_excess": "refuse"}
NO_FLOOR = limits(exposure={"min_notional": 0}, liquidity={"min_volume_24h": 0} | REFUSE)
TIGHT = limits(exposure=REFUSE, risk_per_trade=REFUSE, stop_distance=REFUSE)
COSTLY = limits(cost={"fee": 0.001, "slippage": 0.0005, "max_share_of_risk": 0.5})
TENTH = limits(cost={"fee": 0.001, "slippage": 0.0005, "max_share_of_risk": 0.1})
# A range of 2.5 ATR is 50 of 2,000, and moves the plain order of 500 by 12.5.
RANGED = limits(foretold_range={"max_equity_fraction": 0.001} | REFUSE)
FORETOLD: dict[str, Any] = {"outlook": Outlook(range_atr=2.5)}
CHEAP: dict[str, Any] = {
    "market__last_close": 1.0,
    "candidate__atr": 0.1,
    "plan__entry": 1.0,
    "plan__targets": [2.0],
}
Edge = tuple[dict[str, Any], dict[str, Any], Limits]


def at(name: str, passes: Any, refuses: Any, by: Limits = LIMITS, **more: Any) -> Edge:
    """A field on the last value that passes, and beyond it."""
    return more | {name: passes}, more | {name: refuses}, by


def moved(**changes: Any) -> Order:
    return PLAIN._replace(**changes)


LAST_TO_PASS: list[tuple[str, Edge]] = [
    ("STALE_SNAPSHOT", at("now", AS_OF + timedelta(seconds=30), AS_OF + timedelta(seconds=30.1))),
    ("STALE_SNAPSHOT", at("now", AS_OF - timedelta(seconds=5), AS_OF - timedelta(seconds=5.1))),
    (
        "STALE_SNAPSHOT",
        at(
            "market__bar_closed_at",
            AS_OF - timedelta(hours=2),
            AS_OF - timedelta(hours=2, seconds=1),
        ),
    ),
    ("INPUT_SANITY", at("candidate__atr", 500.0, 500.1)),
    (
        "INPUT_SANITY",
        at("plan__entry", 2500.0, 2501.0, limits(input_sanity={"max_entry_gap_fraction": 0.25})),
    ),
    (
        "INPUT_SANITY",
        at("plan__entry", 1500.0, 1499.0, limits(input_sanity={"max_entry_gap_fraction": 0.25})),
    ),
    ("PRICE_SANITY", at("order", PLAIN, moved(target=math.inf))),
    ("PRICE_SANITY", at("order", PLAIN, moved(quantity=math.inf))),
    ("PRICE_SANITY", at("order", moved(quantity=1e-9), moved(quantity=0.0))),
    ("PRICE_SANITY", at("order", moved(stop=1999.99), moved(stop=2000.0))),
    ("PRICE_SANITY", at("order", moved(stop=0.01), moved(stop=0.0))),
    ("PRICE_SANITY", at("order", moved(target=2000.01), moved(target=2000.0))),
    ("PRICE_SANITY", at("plan__stop", 1999.99, 2000.0, order=PLAIN)),
    ("PRICE_SANITY", at("plan__stop", 0.5, 1.0, **CHEAP)),
    ("STOP_DISTANCE", at("plan__stop", 1990.0, 1990.01)),
    ("STOP_DISTANCE", at("plan__stop", 2000 - 10 * (1 - 5e-10), 2000 - 10 * (1 - 2e-9))),
    ("STOP_DISTANCE", at("plan__stop", 1998.0, 1998.01, candidate__atr=2.0)),
    ("STOP_DISTANCE", at("plan__stop", 1940.0, 1939.99, TIGHT)),
    ("STOP_DISTANCE", at("plan__stop", 1700.0, 1699.9, TIGHT, candidate__atr=200.0)),
    (
        "BTC_TREND_CONFLICT",
        at("candidate__setup_type", "counter_trend", "trend", candidate__btc_trend="down"),
    ),
    ("NEWS_WINDOW", at("candidate__time_to_news_minutes", 30, 29.9, candidate__news_severity=2)),
    ("NEWS_WINDOW", at("candidate__time_to_news_minutes", 120, 119.9, candidate__news_severity=3)),
    ("NEWS_WINDOW", at("candidate__news_severity", 2, 3, candidate__time_to_news_minutes=119.9)),
    (
        "NEWS_WINDOW",
        at(
            "candidate__time_to_news_minutes",
            30,
            29.9,
            limits(news_window={"systemic_minutes": 10}),
            candidate__news_severity=3,
        ),
    ),
    ("VOLATILITY_SPIKE", at("candidate__volatility_pct", 0.899, 0.9)),
    ("REWARD_RISK", at("plan__targets", [2030.0], [2029.9])),
    ("REWARD_RISK", at("plan__targets", [2048.0], [2047.9], candidate__volatility_pct=0.75)),
    ("REWARD_RISK", at("candidate__volatility_pct", 0.749, 0.75, plan__targets=[2047.9])),
    (
        "REWARD_RISK",
        at(
            "plan__targets",
            [2060.0],
            [2059.9],
            limits(reward_risk={"min_ratio": 2.0}),
            candidate__volatility_pct=0.8,
        ),
    ),
    ("SPREAD", at("candidate__spread_bps", 10.0, 10.1)),
    ("LIQUIDITY", at("market__volume_24h", 1_000_000, 999_999)),
    ("LIQUIDITY", at("market__volume_24h", 500_000, 499_999, NO_FLOOR)),
    ("RISK_PER_TRADE", at("account__equity", 375, 374, TIGHT)),
    ("FORETOLD_RANGE", at("account__equity", 12_500, 12_499, RANGED, **FORETOLD)),
    ("FORETOLD_RANGE", at("candidate__atr", 16.0, 16.01, RANGED, **FORETOLD)),
    ("FORETOLD_RANGE", at("outlook", Outlook(range_atr=2.0), Outlook(range_atr=2.01), RANGED)),
    ("SYMBOL_EXPOSURE", at("account__equity", 2000, 1999, TIGHT)),
    ("SYMBOL_EXPOSURE", at("account__equity", 2800, 2799, TIGHT, account__positions=[HELD, OTHER])),
    ("SYMBOL_EXPOSURE", at("account__equity", 802, 800, account__positions=[HELD])),
    ("TOTAL_EXPOSURE", at("account__equity", 4700, 4699, TIGHT, account__positions=[HELD, OTHER])),
    ("TOTAL_EXPOSURE", at("account__equity", 4000.5, 4000, account__positions=[OTHER])),
    ("MIN_NOTIONAL", at("order", moved(quantity=0.005), moved(quantity=0.00499))),
    ("MIN_NOTIONAL", at("order", moved(quantity=1e-9), moved(quantity=0.0), NO_FLOOR)),
    ("OPEN_POSITIONS", at("account__positions", [OTHER] * 2, [OTHER] * 3)),
    ("OPEN_POSITIONS", at("candidate__open_positions", 2, 3)),
    (
        "OPEN_POSITIONS",
        at("candidate__open_positions", 0, 1, limits(open_positions={"max_count": 1})),
    ),
    ("DAILY_LOSS", at("account__day_pnl_fraction", -0.0299, -0.03)),
    ("DRAWDOWN", at("account__drawdown_fraction", 0.249, 0.25)),
    ("CONSECUTIVE_LOSSES", at("account__consecutive_losses", 3, 4)),
    ("COOL_DOWN", at("account__consecutive_losses", 1, 2, account__seconds_since_loss=0)),
    (
        "COOL_DOWN",
        at("account__seconds_since_loss", 3600, 3599.9, account__consecutive_losses=2),
    ),
    ("DUPLICATE_SYMBOL", at("account__positions", [OTHER], [OTHER, HELD])),
    ("MODEL_CONFIDENCE", at("approve_probability", 0.5, 0.499)),
    # Entry 2,000: 0.3 % twice 0.15 is 6, half of a stop 12 away; 1.5 bps of spread are 0.3 more.
    ("COST_OVER_RISK", at("plan__stop", 1988.0, 1988.1, COSTLY, candidate__spread_bps=None)),
    ("COST_OVER_RISK", at("plan__stop", 1987.3, 1987.5, COSTLY)),
    # 200 bps: 2.3 % of 2,000 is 46, half of a stop 92 away; an ATR that lets it be so far.
    (
        "COST_OVER_RISK",
        at(
            "plan__stop",
            1907.999,
            1908.001,
            COSTLY,
            candidate__spread_bps=200.0,
            candidate__atr=40.0,
        ),
    ),
    # What a cap leaves is judged: 6.3 is 6 % of 100, and 10.5 % of the three ATR that remain.
    ("COST_OVER_RISK", at("candidate__atr", 40.0, 20.0, TENTH, plan__stop=1900.0)),
    # A hundredth of 10 bps is 0.1; a hundredth of the 90th percentile is 0.9 of one.
    ("SPREAD", at("candidate__spread_bps", 10.09, 10.11, limits(tolerance=0.01))),
    ("VOLATILITY_SPIKE", at("candidate__volatility_pct", 0.8909, 0.8911, limits(tolerance=0.01))),
]


@pytest.mark.parametrize(
    ("code", "edge"), LAST_TO_PASS, ids=[f"{c}-{i}" for i, (c, _) in enumerate(LAST_TO_PASS)]
)
def test_a_rule_passes_what_reaches_its_limit_and_refuses_what_is_beyond(
    code: str, edge: Edge
) -> None:
    passes, refuses, by = edge
    assert code not in codes(changed_case(passes), by)
    assert code in codes(changed_case(refuses), by)


def changed_case(changes: dict[str, Any]) -> Case:
    """The plain case with changes of its scenario, and of the case itself."""
    own = {name: value for name, value in changes.items() if "__" not in name}
    outlook = own.pop("outlook", None)
    plain = case(scenario(**{k: v for k, v in changes.items() if "__" in k}), **own)
    return plain._replace(outlook=outlook)


def test_open_positions_are_those_of_the_account_or_else_those_reported() -> None:
    reported = scenario(account__positions=None, candidate__open_positions=2)
    assert "OPEN_POSITIONS" not in codes(case(reported))
    neither = review(case(scenario(account__positions=None)), LIMITS).vetoes
    assert [v.missing for v in neither if v.code is VetoCode.OPEN_POSITIONS] == [
        "account.positions"
    ]


def observed(c: Case, code: VetoCode, by: Limits = LIMITS) -> list[Any]:
    return [veto.observed for veto in review(c, by).vetoes if veto.code is code]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"plan__stop": 2030.0}, "stop 2030 is not between 0 and entry"),
        ({"plan__targets": [1990.0]}, "target 1990 is not above entry"),
        ({"plan__stop": 1960.0, "candidate__direction": "short"}, "stop 1960 is not above entry"),
        (
            {"plan__stop": 2030.0, "candidate__direction": "short"},
            "target 2080 is not below entry",
        ),
    ],
)
def test_prices_on_the_wrong_side_are_named(changes: dict[str, Any], says: str) -> None:
    s = scenario(**changes)
    mine = case(s, order=agents_order(s, side_of(s, BOTH_WAYS)))
    assert observed(mine, VetoCode.PRICE_SANITY, BOTH_WAYS) == [says]


def test_of_an_order_its_target_is_named_before_the_plans_stop() -> None:
    mine = case(scenario(plan__stop=2030.0), order=PLAIN._replace(target=1990.0))
    assert observed(mine, VetoCode.PRICE_SANITY) == ["target 1990 is not above entry"]


def test_too_little_confidence_says_in_what() -> None:
    unsure = case(approve_probability=0.49)._replace(outlook=Outlook(win_probability=0.31))
    assert observed(unsure, VetoCode.MODEL_CONFIDENCE) == [0.49]
    by = limits(model_confidence={"min_approve_probability": 0.4, "min_win_probability": 0.33})
    assert observed(unsure, VetoCode.MODEL_CONFIDENCE, by) == ["win_probability 0.3100"]


def test_what_a_range_may_move_is_asked_of_a_version_alone_and_a_silent_one_is_refused() -> None:
    agents = case(approve_probability=None)
    assert codes(agents, RANGED) == set()
    for silent in (None, Outlook(win_probability=0.6)):
        vetoes = review(case()._replace(outlook=silent), RANGED).vetoes
        assert [(veto.code.value, veto.missing) for veto in vetoes] == [
            ("FORETOLD_RANGE", "range_atr")
        ]
    lenient = limits(foretold_range={"when_missing": "pass"})
    assert codes(case(), lenient) == set()
    nothing = limits(foretold_range={"max_equity_fraction": 0})
    assert "FORETOLD_RANGE" in codes(changed_case(FORETOLD), nothing)


def test_where_nothing_may_be_risked_every_order_is_refused() -> None:
    nothing = limits(risk_per_trade={"max_equity_fraction": 0})
    assert "RISK_PER_TRADE" in codes(case(), nothing)


def test_limits_may_allow_trading_while_macro_news_are_unsafe() -> None:
    unsafe = case(scenario(candidate__macro_news_safe=False))
    assert codes(unsafe, limits(news_window={"allow_unsafe_macro": True})) == set()


def test_where_no_stop_fits_between_the_limits_every_order_is_refused() -> None:
    # At least half an ATR, 10; at most 0.4 % of entry, 8: a clamp would come too near.
    narrow = limits(stop_distance={"max_fraction": 0.004})
    for stop in (1991.0, 1990.0, 1970.0):
        assert "STOP_DISTANCE" in codes(case(scenario(plan__stop=stop)), narrow)


def test_every_code_has_a_refusal_tested_here() -> None:
    tested = {code for code, _, _ in REFUSED} | {VetoCode.RULE_FAILED.value}
    assert tested == {code.value for code in VetoCode}


@pytest.mark.parametrize(
    ("changes", "code", "missing"),
    [
        ({"candidate__atr": None}, "INPUT_SANITY", "atr"),
        ({"candidate__btc_trend": None}, "BTC_TREND_CONFLICT", "btc_trend"),
        ({"candidate__time_to_news_minutes": None}, "NEWS_WINDOW", "time_to_news_minutes"),
        ({"candidate__macro_news_safe": None}, "MACRO_NEWS", "macro_news_safe"),
        ({"candidate__volatility_pct": None}, "VOLATILITY_SPIKE", "volatility_pct"),
        ({"candidate__spread_bps": None}, "SPREAD", "spread_bps"),
        ({"market__volume_24h": None}, "LIQUIDITY", "market.volume_24h"),
        ({"account__equity": None}, "RISK_PER_TRADE", "account.equity"),
        ({"account__positions": None}, "SYMBOL_EXPOSURE", "account.positions"),
        ({"account__positions": None}, "DUPLICATE_SYMBOL", "account.positions"),
        ({"account__day_pnl_fraction": None}, "DAILY_LOSS", "account.day_pnl_fraction"),
        ({"account__drawdown_fraction": None}, "DRAWDOWN", "account.drawdown_fraction"),
        ({"account__consecutive_losses": None}, "CONSECUTIVE_LOSSES", "account.consecutive_losses"),
    ],
)
def test_a_missing_input_refuses_and_says_which(
    changes: dict[str, Any], code: str, missing: str
) -> None:
    vetoes = {veto.code.value: veto for veto in review(case(scenario(**changes)), LIMITS).vetoes}
    assert vetoes[code].missing == missing


def test_limits_may_let_a_missing_input_pass_but_not_a_bad_one() -> None:
    lenient = limits(news_window={"when_missing": "pass"})
    assert codes(case(scenario(candidate__time_to_news_minutes=None)), lenient) == set()
    assert "NEWS_WINDOW" in codes(case(scenario(candidate__time_to_news_minutes=5)), lenient)


def test_every_refusal_is_kept() -> None:
    refused = case(
        scenario(candidate__spread_bps=50, candidate__btc_trend="down"), state=TradingState.HALTED
    )
    assert codes(refused) == {"STATE_HALTED", "BTC_TREND_CONFLICT", "SPREAD"}


def test_evidence_is_the_observed_value_and_the_limit() -> None:
    (veto,) = review(case(scenario(candidate__spread_bps=12.5)), LIMITS).vetoes
    assert (veto.observed, veto.limit) == (12.5, 10.0)


def test_a_far_stop_is_clamped_towards_entry_and_size_is_not_raised() -> None:
    verdict = review(case(scenario(plan__stop=1900.0, plan__targets=[2200.0])), LIMITS)
    assert verdict.vetoes == ()
    assert verdict.stop == pytest.approx(2000 - 3 * 20)
    assert verdict.quantity == 0.25
    assert [cap.limit for cap in verdict.caps] == ["stop_distance"]


def test_size_is_capped_at_the_allowed_risk() -> None:
    verdict = review(
        case(scenario(plan__quantity=2.0)), limits(risk_per_trade={"max_equity_fraction": 0.003})
    )
    assert verdict.vetoes == ()
    assert verdict.quantity == pytest.approx(0.003 * 10_000 / 30)


def test_an_action_takes_its_share_of_the_risk_at_its_own_stop() -> None:
    half_at_two_and_a_half = BY_LABEL["G"]
    order = order_for(half_at_two_and_a_half, scenario())
    assert order.stop == 2000 - 2.5 * 20
    assert order.quantity == pytest.approx(0.5 * 0.25 * 30 / 50)


def test_a_tight_stop_does_not_buy_more_than_the_agent() -> None:
    full_at_one = BY_LABEL["H"]
    assert order_for(full_at_one, scenario()).quantity == 0.25


def test_a_rule_that_raises_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case, limits: Limits) -> None:
        raise ZeroDivisionError("a defect")

    rule = Rule(VetoCode.SPREAD, "spread", ("max_bps",), broken, of_order=True)
    monkeypatch.setattr("app.domain.rules.review.OF_ORDER", ((0, rule),))
    (veto,) = review(case(), LIMITS).vetoes
    assert veto.code is VetoCode.RULE_FAILED
    assert veto.observed == "SPREAD: ZeroDivisionError: a defect"


def test_every_code_is_declared_by_one_rule_but_that_of_a_rule_that_failed() -> None:
    declared = [rule.code for rule in (*RULES, *AFTER_CAPS)]
    assert sorted(declared) == sorted(set(VetoCode) - {VetoCode.RULE_FAILED})


def test_what_a_rule_reads_is_in_the_limits() -> None:
    whole = limits(direction={}, cost={}, foretold_range={})
    for rule in (*RULES, *AFTER_CAPS):
        table = getattr(whole, rule.section) if rule.section else None
        assert [field for field in rule.fields if not hasattr(table, field)] == []


def test_what_the_caps_leave_may_be_too_little_to_trade() -> None:
    verdict = review(case(), limits(exposure={"max_notional": 9.5}))
    assert [(veto.code, veto.observed, veto.limit) for veto in verdict.vetoes] == [
        (VetoCode.MIN_NOTIONAL, pytest.approx(9.5), 10.0)
    ]
    assert codes(case(), limits(exposure={"max_notional": 10.0})) == set()


@given(scenarios() | sane_scenarios(), st.sampled_from(LABELS), st.sampled_from(TradingState))
def test_no_path_approves_what_a_rule_refuses(s: Scenario, label: str, state: TradingState) -> None:
    advice = conclude(s, reading(label), VERSION, LIMITS, state=state, now=AS_OF)
    if advice.approve:
        assert state is TradingState.ACTIVE
        assert advice.review is not None
        assert advice.review.vetoes == ()
        order = order_for(BY_LABEL[label], s)
        assert review(Case(s, order, state, AS_OF, 0.99), LIMITS).vetoes == ()
    elif label != "A":
        assert advice.status is AdviceStatus.VETOED
        assert advice.review is not None
        assert advice.review.vetoes


@given(sane_scenarios(), st.sampled_from(LABELS[1:]))
def test_advice_never_exceeds_the_agents_risk_nor_its_notional(s: Scenario, label: str) -> None:
    advice = conclude(s, reading(label), VERSION, LIMITS, state=TradingState.ACTIVE, now=AS_OF)
    assume(advice.approve)
    assert advice.quantity is not None
    assert advice.stop is not None
    assert advice.quantity <= s.plan.quantity
    assert advice.quantity * s.plan.entry <= s.plan.notional
    assert advice.quantity * (s.plan.entry - advice.stop) <= s.plan.risk * (1 + 1e-9)


LOOSER: list[tuple[str, str, int]] = [
    ("stale_snapshot", "max_age_s", 1),
    ("stale_snapshot", "max_bar_age_bars", 1),
    ("input_sanity", "max_atr_fraction", 1),
    ("input_sanity", "max_entry_gap_fraction", 1),
    ("stop_distance", "min_atr", -1),
    ("stop_distance", "max_atr", 1),
    ("stop_distance", "min_fraction", -1),
    ("stop_distance", "max_fraction", 1),
    ("news_window", "min_minutes", -1),
    ("news_window", "systemic_minutes", -1),
    ("volatility_spike", "max_percentile", 1),
    ("reward_risk", "min_ratio", -1),
    ("reward_risk", "high_volatility_percentile", 1),
    ("reward_risk", "min_ratio_high_volatility", -1),
    ("spread", "max_bps", 1),
    ("liquidity", "max_volume_fraction", 1),
    ("liquidity", "min_volume_24h", -1),
    ("risk_per_trade", "max_equity_fraction", 1),
    ("foretold_range", "max_equity_fraction", 1),
    ("exposure", "max_symbol_fraction", 1),
    ("exposure", "max_total_fraction", 1),
    ("exposure", "max_notional", 1),
    ("exposure", "min_notional", -1),
    ("daily_loss", "max_fraction", 1),
    ("drawdown", "max_fraction", 1),
    ("consecutive_losses", "cool_down_s", -1),
    ("model_confidence", "min_approve_probability", -1),
]


@settings(max_examples=300)
@given(
    scenarios() | sane_scenarios(),
    st.sampled_from(LOOSER),
    st.floats(0, 1),
    st.sampled_from(LABELS),
    st.booleans(),
)
def test_loosening_a_limit_never_adds_a_veto(
    s: Scenario, which: tuple[str, str, int], by: float, label: str, refuse: bool
) -> None:
    section, field, sign = which
    excess = {"on_excess": "refuse"} if refuse else {}
    sections = ("exposure", "risk_per_trade", "foretold_range", "liquidity", "stop_distance")
    strict = limits(**dict.fromkeys(sections, excess))
    value = getattr(getattr(strict, section), field)
    top = 1.0 if value <= 1 and field not in ("min_ratio", "max_total_fraction") else 10 * value
    changed = value + by * (top - value) if sign > 0 else max(value * (1 - by), 1e-9)
    table = getattr(strict, section).model_copy(update={field: changed})
    loose = strict.model_copy(update={section: table})
    action = BY_LABEL[label]
    order = order_for(action, s) if action.approve else agents_order(s)
    judged = Case(s, order, TradingState.ACTIVE, AS_OF, 0.6, Outlook(range_atr=2.5))
    assert codes(judged, loose) <= codes(judged, strict)


@given(
    scenarios(),
    st.builds(Order, *[st.floats(allow_nan=True, allow_infinity=True)] * 4),
    st.floats(allow_nan=True) | st.none(),
)
def test_rules_are_total_on_any_input(s: Scenario, order: Order, probability: float | None) -> None:
    verdict = review(Case(s, order, TradingState.ACTIVE, AS_OF, probability), LIMITS)
    if not all(math.isfinite(value) for value in order) or (
        probability is not None and math.isnan(probability)
    ):
        assert verdict.vetoes


def test_the_shipped_limits_are_the_defaults() -> None:
    shipped = read_limits(Path(__file__).parents[3] / "limits.toml")
    assert shipped == Limits(
        version=shipped.version, tolerance=1e-6, direction=DirectionLimits(), cost=Cost()
    )


def test_the_replay_limits_differ_only_in_what_bars_cannot_know() -> None:
    root = Path(__file__).parents[3]
    shipped = read_limits(root / "limits.toml")
    replay = read_limits(root / "deploy" / "limits.replay.toml")
    passing = shipped.news_window.model_copy(update={"when_missing": "pass"})
    assert replay == shipped.model_copy(update={"version": replay.version, "news_window": passing})


def test_a_bad_limits_file_names_every_violation() -> None:
    text = (
        'version = "x"\n[spread]\nmax_bps = -1\n[drawdown]\nmax_fraction ='
        " 2\n[no_such_rule]\nenabled = false\n"
    )
    with pytest.raises(LimitsError) as caught:
        parse_limits(text, "limits.toml")
    for part in ("limits.toml", "spread.max_bps", "drawdown.max_fraction", "no_such_rule"):
        assert part in str(caught.value)


def test_no_rule_can_be_switched_off() -> None:
    with pytest.raises(LimitsError, match=r"spread\.enabled"):
        parse_limits('version = "x"\n[spread]\nenabled = false\n', "limits.toml")


def test_the_first_action_rejects_and_each_other_is_one_way_to_approve() -> None:
    assert [(a.label, a.risk_fraction, a.stop_atr) for a in ACTIONS] == [
        ("A", 0.0, 0.0),
        *(("B", 0.25, 1.0), ("C", 0.25, 1.5), ("D", 0.25, 2.5)),
        *(("E", 0.5, 1.0), ("F", 0.5, 1.5), ("G", 0.5, 2.5)),
        *(("H", 1.0, 1.0), ("I", 1.0, 1.5), ("J", 1.0, 2.5)),
    ]
    assert [action.label for action in ACTIONS if not action.approve] == ["A"]


def test_a_rule_says_its_row_of_the_documentation() -> None:
    rows = {rule.code: rule.row for rule in (*RULES, *AFTER_CAPS)}
    assert rows[VetoCode.STATE_HALTED] == (
        "| `STATE_HALTED` | The trading state (`PUT /state`) is HALTED, or not known. | - |"
    )
    assert rows[VetoCode.SPREAD].endswith(" | `spread.max_bps` |")


ROUNDED = limits(tolerance=1e-6)


def test_a_reward_that_equals_the_risk_but_for_rounding_passes_a_stated_tolerance() -> None:
    """(2.9857 - 2.9599) / (2.9599 - 2.9341) is 1, and 0.9999999999999826 in floats."""
    even = {
        "market__last_close": 2.9599,
        "candidate__atr": 0.02,
        "plan__entry": 2.9599,
        "plan__stop": 2.9341,
        "plan__targets": [2.9857],
        "plan__quantity": 100.0,
    }
    assert "REWARD_RISK" in codes(case(scenario(**even)), LIMITS)
    assert codes(case(scenario(**even)), ROUNDED) == set()
    assert "REWARD_RISK" in codes(case(scenario(**even | {"plan__targets": [2.9856]})), ROUNDED)


def test_what_equals_a_limit_within_the_tolerance_is_held_to_be_equal() -> None:
    near = 0.9 - 1e-9
    assert "VOLATILITY_SPIKE" not in codes(case(scenario(candidate__volatility_pct=near)), LIMITS)
    assert "VOLATILITY_SPIKE" in codes(case(scenario(candidate__volatility_pct=near)), ROUNDED)
    above = scenario(candidate__spread_bps=10.0 + 1e-9)
    assert "SPREAD" in codes(case(above), LIMITS)
    assert "SPREAD" not in codes(case(above), ROUNDED)


def test_a_calendar_that_is_clear_is_no_calendar_that_is_unknown() -> None:
    clear = scenario(candidate__time_to_news_minutes="clear", candidate__news_severity=3)
    assert codes(case(clear)) == set()
    unknown = review(case(scenario(candidate__time_to_news_minutes=None)), LIMITS).vetoes
    assert [v.missing for v in unknown] == ["time_to_news_minutes"]


SHORT: dict[str, Any] = {
    "candidate__direction": "short",
    "plan__stop": 2030.0,
    "plan__targets": [1920.0, 1940.0],
}
BOTH_WAYS = limits(direction={"allowed": ["long", "short"]})


def test_a_short_is_judged_as_a_long_seen_in_a_mirror_where_limits_allow_it() -> None:
    s = scenario(**SHORT)
    order = order_for(BY_LABEL["J"], s, side_of(s, BOTH_WAYS))
    # J: all of the risk, 0.25 x 30 = 7.5; 2.5 ATR of 20 above entry.
    assert order == Order(2000.0, 2050.0, 1940.0, 7.5 / 50, -1)
    assert (order.reward, order.risk) == (60.0, 7.5)
    mine = case(s, order=agents_order(s, side_of(s, BOTH_WAYS)))
    assert codes(mine, BOTH_WAYS) == set()
    only_long = limits(direction={})
    assert codes(mine, only_long) == {"DIRECTION"}
    above = scenario(**SHORT | {"plan__stop": 1990.0})
    assert "PRICE_SANITY" in codes(case(above, order=agents_order(above, -1)), BOTH_WAYS)
    narrow = limits(direction={"allowed": ["short"]}, stop_distance={"max_atr": 1.0})
    assert review(mine, narrow).stop == pytest.approx(2020.0)


def test_limits_from_before_directions_were_spoken_of_judge_a_short_as_they_did() -> None:
    s = scenario(**SHORT)
    assert side_of(s, LIMITS) == 1
    assert codes(case(s)) == {"DIRECTION", "PRICE_SANITY", "REWARD_RISK"}


def test_odd_positions_harm_no_other_request() -> None:
    odd = [
        {"symbol": "\u5e01\u5b89\u4eba\u751f/USDC:USDC", "quantity": -3.0, "entry": 2.0},
        {"symbol": "XBT/EUR", "quantity": 0.0, "entry": 50_000.0},
    ]
    assert codes(case(scenario(account__positions=odd))) == set()


def test_a_pair_is_the_same_however_it_is_spelt() -> None:
    held = [{"symbol": "ETH/USDT:USDT", "quantity": -2.0, "entry": 2000.0}]
    s = scenario(account__positions=held)
    assert codes(case(s)) == {"DUPLICATE_SYMBOL", "SYMBOL_EXPOSURE", "MIN_NOTIONAL"}
    listed = limits(restricted_symbols={"symbols": ["eth-usdt"]})
    assert codes(case(), listed) == {"RESTRICTED_SYMBOL"}


def test_a_position_told_in_part_counts_and_its_size_is_missed() -> None:
    part = scenario(account__positions=[{"symbol": "SOLUSDC"}])
    vetoes = {v.code: v.missing for v in review(case(part), LIMITS).vetoes}
    assert vetoes == {VetoCode.TOTAL_EXPOSURE: "account.positions[].notional"}
    nameless = scenario(account__positions=[{"quantity": 1.0, "entry": 1.0}])
    vetoes = {v.code: v.missing for v in review(case(nameless), LIMITS).vetoes}
    assert vetoes == {VetoCode.DUPLICATE_SYMBOL: "account.positions[].symbol"}


def passing(*tables: str, how: str = "pass") -> Limits:
    return limits(**{table: {"when_missing": how} for table in tables})


def test_a_minimal_request_is_refused_for_what_is_missing_and_passes_where_limits_say_so() -> None:
    least = Scenario.from_json(MINIMAL)
    order = order_for(BY_LABEL["F"], least)
    assert order == Order(2000.0, 1970.0, 2060.0, 0.5 * 0.25), "its own stop: no ATR is known"
    assert {v.missing for v in review(case(least, order=order), LIMITS).vetoes} == {
        "market.bar_closed_at",
        "market.last_close",
        "atr",
        "btc_trend",
        "time_to_news_minutes",
        "macro_news_safe",
        "volatility_pct",
        "spread_bps",
        "market.volume_24h",
        "account.equity",
        "account.positions",
        "account.day_pnl_fraction",
        "account.drawdown_fraction",
        "account.consecutive_losses",
    }
    everything = [
        name
        for name, f in Limits.model_fields.items()
        if name not in ("version", "tolerance", "exits")
    ]
    for how in ("pass", "calm"):
        assert codes(case(least, order=order), passing(*everything, how=how)) == set()


def test_without_an_atr_that_may_be_missing_the_rest_is_judged() -> None:
    by = passing("input_sanity", "stop_distance")
    assert "INPUT_SANITY" not in codes(case(scenario(candidate__atr=None)), by)
    far = scenario(candidate__atr=None, market__last_close=2200.0)
    assert "INPUT_SANITY" in codes(case(far), by)
    assert "INPUT_SANITY" in codes(case(scenario(candidate__atr=600.0)), by)


def test_calm_is_no_severity_and_no_volatility_and_overrules_nothing_that_is_known() -> None:
    mild = limits(news_window={"when_missing": "calm", "systemic_severity": 1})
    unrated = scenario(candidate__news_severity=None, candidate__time_to_news_minutes=60)
    assert codes(case(unrated), mild) == set()
    by = passing("reward_risk", "volatility_spike", how="calm")
    even = {"plan__targets": [2030.0]}
    assert codes(case(scenario(candidate__volatility_pct=None, **even)), by) == set()
    assert codes(case(scenario(candidate__volatility_pct=0.8, **even)), by) == {"REWARD_RISK"}


def test_calm_judges_by_what_is_known() -> None:
    near = scenario(candidate__news_severity=None, candidate__time_to_news_minutes=5)
    assert codes(case(near), passing("news_window")) == set()
    assert codes(case(near), passing("news_window", how="calm")) == {"NEWS_WINDOW"}
    poor = scenario(candidate__volatility_pct=None, plan__targets=[2029.0])
    by = passing("reward_risk", "volatility_spike", how="calm")
    assert codes(case(poor), by) == {"REWARD_RISK"}
    assert codes(
        case(scenario(candidate__atr=None, plan__stop=1999.0)),
        limits(input_sanity={"when_missing": "pass"}, stop_distance={"when_missing": "pass"}),
    ) == {"STOP_DISTANCE"}, "a tenth of a per cent of entry is known without an ATR"


def test_what_was_sent_and_left_out_passes_nowhere() -> None:
    gone = [{"field": "candidate.spread_bps", "value": "'n/a'", "why": "none", "fault": "type"}]
    s = Scenario.from_json(scenario_json(candidate__spread_bps=None) | {"left_out": gone})
    assert codes(case(s), passing("spread")) == {"SPREAD"}
    whole = [{"field": "account", "value": "[]", "why": "no object", "fault": "type"}]
    s = Scenario.from_json(scenario_json(account__positions=None) | {"left_out": whole})
    by = passing("exposure", "open_positions")
    assert codes(case(s), by) == {
        "SYMBOL_EXPOSURE",
        "TOTAL_EXPOSURE",
        "OPEN_POSITIONS",
        "DUPLICATE_SYMBOL",
    }
