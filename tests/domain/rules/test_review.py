"""Caps by hand: each limit makes an order as small as it says, and never larger."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from app.domain.model.outlook import Outlook
from app.domain.rules.case import TradingState
from app.domain.rules.limits import ForetoldRange, Limits
from app.domain.rules.review import Cap, MissedInput, missed_inputs, review
from app.domain.rules.vetoes import RULES, Rule, VetoCode
from app.domain.scenario import Scenario
from tests.domain.scenarios import AS_OF, case, scenario

HELD = {"symbol": "ETHUSDT", "quantity": 0.1, "entry": 2000.0}
OTHER = {"symbol": "BTCUSDT", "quantity": 0.1, "entry": 40_000.0}


def only(section: str, **fields: float) -> Limits:
    """Limits so wide that nothing but the given ones caps the plain order: 0.25 at 2000, stop 30
    below, equity 10,000."""
    tables: dict[str, dict[str, Any]] = {
        "exposure": {"max_symbol_fraction": 100, "max_total_fraction": 100, "max_notional": 1e9},
        "risk_per_trade": {"max_equity_fraction": 1},
        "liquidity": {"max_volume_fraction": 1, "min_volume_24h": 0},
    }
    tables[section] |= fields
    return Limits.model_validate({"version": "test", **tables})


@pytest.mark.parametrize(
    ("name", "by", "changes"),
    [
        # Each leaves 400 quote, or 6 at risk: a fifth of a coin.
        ("exposure.max_notional", only("exposure", max_notional=400), {}),
        (
            "liquidity.max_volume_fraction",
            only("liquidity", max_volume_fraction=0.0002),
            {"market__volume_24h": 2e6},
        ),
        (
            "risk_per_trade.max_equity_fraction",
            only("risk_per_trade", max_equity_fraction=0.0006),
            {},
        ),
        ("exposure.max_symbol_fraction", only("exposure", max_symbol_fraction=0.04), {}),
        (
            "exposure.max_symbol_fraction",
            only("exposure", max_symbol_fraction=0.06),
            {"account__positions": [HELD, OTHER]},
        ),
        (
            "exposure.max_total_fraction",
            only("exposure", max_total_fraction=0.46),
            {"account__positions": [HELD, OTHER]},
        ),
    ],
)
def test_a_limit_leaves_what_it_allows(name: str, by: Limits, changes: dict[str, Any]) -> None:
    verdict = review(case(scenario(**changes)), by)
    (cap,) = verdict.caps
    assert (cap.limit, cap.before) == (name, 0.25)
    assert cap.after == verdict.quantity == pytest.approx(0.2)
    assert verdict.stop == 1970


def test_an_order_moves_the_account_by_no_more_than_the_foretold_range_may() -> None:
    """2.5 ATR of 20 are 50 of 2,000; 10 of the equity are what a notional of 400 moves by."""
    wide = only("exposure")
    by = wide.model_copy(update={"foretold_range": ForetoldRange(max_equity_fraction=0.001)})
    foretold = case()._replace(outlook=Outlook(range_atr=2.5))
    verdict = review(foretold, by)
    (cap,) = verdict.caps
    assert (cap.limit, cap.before) == ("foretold_range.max_equity_fraction", 0.25)
    assert cap.after == verdict.quantity == pytest.approx(0.2)
    assert verdict.vetoes == ()
    assert review(foretold, wide).caps == review(case(), by).caps == ()
    assert review(foretold._replace(approve_probability=None), by).caps == ()


def test_an_order_that_just_fits_is_not_capped() -> None:
    assert review(case(), only("exposure", max_notional=500)).caps == ()


def test_the_smallest_of_the_limits_holds_and_each_step_is_kept() -> None:
    by = only("exposure", max_notional=400, max_total_fraction=0.03)
    verdict = review(case(), by)
    assert verdict.caps == (
        Cap(limit="exposure.max_notional", before=0.25, after=0.2),
        Cap(limit="exposure.max_total_fraction", before=0.2, after=0.15),
    )
    assert verdict.quantity == 0.15


def test_where_no_room_is_left_nothing_is_bought() -> None:
    full = case(scenario(account__positions=[OTHER]))
    verdict = review(full, only("exposure", max_total_fraction=0.3))
    assert verdict.caps == (Cap(limit="exposure.max_total_fraction", before=0.25, after=0.0),)
    assert verdict.quantity == 0
    codes = [veto.code for veto in verdict.vetoes]
    assert codes == [VetoCode.TOTAL_EXPOSURE, VetoCode.MIN_NOTIONAL]


@pytest.mark.parametrize(
    ("missing", "by"),
    [
        ("market__volume_24h", only("liquidity", max_volume_fraction=0)),
        ("account__equity", only("risk_per_trade", max_equity_fraction=0)),
        ("account__equity", only("exposure", max_symbol_fraction=1e-9)),
        ("account__positions", only("exposure", max_symbol_fraction=1e-9)),
    ],
)
def test_what_is_not_known_caps_nothing_and_is_refused_for_that(missing: str, by: Limits) -> None:
    verdict = review(case(scenario(**{missing: None})), by)
    assert verdict.caps == ()
    assert verdict.quantity == 0.25
    assert missing.replace("__", ".") in {veto.missing for veto in verdict.vetoes}
    assert VetoCode.RULE_FAILED not in {veto.code for veto in verdict.vetoes}


def test_a_far_stop_comes_nearer_only_where_the_limit_caps() -> None:
    far: Scenario = scenario(plan__stop=1900.0, plan__targets=[2200.0])
    capped = review(case(far), Limits(version="test"))
    (cap,) = capped.caps
    assert (cap.limit, cap.before) == ("stop_distance", 1900)
    assert cap.after == capped.stop == pytest.approx(1940)
    refused = review(
        case(far), Limits.model_validate({"version": "t", "stop_distance": {"on_excess": "refuse"}})
    )
    assert (refused.caps, refused.stop) == ((), 1900)


def test_the_words_of_a_rule_that_failed_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: object, limits: object) -> None:
        raise ZeroDivisionError("x" * 1000)

    rule = Rule(VetoCode.SPREAD, "spread", ("max_bps",), broken, of_order=True)
    monkeypatch.setattr("app.domain.rules.review.OF_ORDER", ((0, rule),))
    (veto,) = review(case(), Limits(version="test")).vetoes
    words = "SPREAD: ZeroDivisionError: "
    assert veto.observed == words + "x" * (300 - len(words))


class NoOrder:
    """Whoever looks at it fails."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the order's {name} was looked at")


def test_rules_that_say_the_same_of_every_order_look_at_none() -> None:
    """Else what was found for one order would count for another."""
    unseen: Any = NoOrder()
    blind = case()._replace(order=unseen, approve_probability=unseen, outlook=unseen)
    for rule in RULES:
        if not rule.of_order:
            assert rule.check(blind, Limits(version="test")) is None


def test_what_was_found_for_one_order_counts_for_no_other_scene() -> None:
    calm, stormy = scenario(), scenario(candidate__volatility_pct=0.999)
    strict = Limits.model_validate({"version": "s", "spread": {"max_bps": 1e-6}})
    scenes = [
        (each, limits, state, now)
        for each in (calm, stormy)
        for limits in (Limits(version="test"), strict)
        for state in TradingState
        for now in (AS_OF, AS_OF + timedelta(days=1))
    ]
    codes = {}
    for each, limits, state, now in scenes * 2:
        verdict = review(case(each)._replace(state=state, now=now), limits)
        codes[id(each), id(limits), state, now] = [veto.code for veto in verdict.vetoes]
        order = list(VetoCode)
        assert verdict.vetoes == tuple(sorted(verdict.vetoes, key=lambda v: order.index(v.code)))
    for (of, by, state, now), found in codes.items():
        assert (VetoCode.VOLATILITY_SPIKE in found) == (of == id(stormy))
        assert (VetoCode.SPREAD in found) == (by == id(strict))
        assert (VetoCode.STATE_HALTED in found) == (state is TradingState.HALTED)
        assert (VetoCode.STALE_SNAPSHOT in found) == (now != AS_OF)


def test_a_missed_input_is_told_whether_it_refuses_or_passes() -> None:
    limits = Limits.model_validate({"version": "w", "spread": {"when_missing": "pass"}})
    bare = case(scenario(candidate__spread_bps=None, account__day_pnl_fraction=None))
    assert missed_inputs(bare, limits) == (
        MissedInput(code=VetoCode.SPREAD, missing="spread_bps", then="pass"),
        MissedInput(code=VetoCode.DAILY_LOSS, missing="account.day_pnl_fraction", then="refuse"),
    )
    assert missed_inputs(case(scenario()), limits) == ()


def test_a_rule_that_fails_lacks_no_input() -> None:
    unknown = case(scenario(candidate__spread_bps=None))
    timeless = unknown._replace(now=None)  # type: ignore[arg-type]
    codes = {missed.code for missed in missed_inputs(timeless, Limits(version="t"))}
    assert VetoCode.SPREAD in codes
    assert VetoCode.STALE_SNAPSHOT not in codes
    failed = [
        veto for veto in review(timeless, Limits(version="t")).vetoes if veto.code == "RULE_FAILED"
    ]
    assert len(failed) >= 1
