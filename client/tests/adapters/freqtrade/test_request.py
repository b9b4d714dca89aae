"""Documents made of what freqtrade knows, by numbers worked out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from app.schemas import AdviseRequest

from shadow_advisor_client import encode
from shadow_advisor_client.adapters.freqtrade.request import (
    Candle,
    Entry,
    Exits,
    advise_request,
    closed,
    entered,
    not_followed,
    session_of,
    symbol_of,
)

NOON = datetime(2024, 3, 1, 12, tzinfo=timezone.utc)
HOUR_S = 3600


def candles(count: int) -> list[Candle]:
    """Hours up to noon, each with a volume of 2 at 100."""
    return [
        Candle(NOON - timedelta(hours=back), 100.0, 101.0, 99.0, 100.0, 2.0)
        for back in range(count, 0, -1)
    ]


def trade(**changes: Any) -> Any:
    fields = {
        "id": 7,
        "is_short": False,
        "open_rate": 100.0,
        "amount": 5.0,
        "stake_amount": 500.0,
        "leverage": 1.0,
        "open_date_utc": NOON,
        "min_rate": 98.0,
        "max_rate": 106.0,
        "exit_reason": "roi",
        "fee_open": 0.001,
        "fee_close": 0.001,
        "funding_fees": 0.0,
        "nr_of_successful_entries": 1,
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("side", "leverage", "stop", "target"),
    [
        ("long", 1.0, 95.0, 104.0),
        ("short", 1.0, 105.0, 96.0),
        # A loss of 5 % of the stake is a move of 1 % at five times leverage.
        ("long", 5.0, 99.0, 100.8),
        ("short", 5.0, 101.0, 99.2),
    ],
)
def test_stop_and_target_are_those_of_a_strategy_s_stoploss_and_first_roi(
    side: str, leverage: float, stop: float, target: float
) -> None:
    exits = Exits(-0.05, {60: 0.02, 0: 0.04})
    assert exits.stop(100.0, side, leverage) == pytest.approx(stop)
    assert exits.target(100.0, side, leverage) == pytest.approx(target)


def test_a_strategy_without_stop_and_roi_has_prices_that_a_market_does_not_reach() -> None:
    exits = Exits(-1.0, {})
    assert exits.stop(100.0, "long", 1.0) == pytest.approx(0.1)
    assert exits.target(100.0, "long", 1.0) == pytest.approx(1100.0)
    assert exits.target(100.0, "short", 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("pair", ["BTC/USDT", "BTC/USDT:USDT", "BTCUSDT"])
def test_a_pair_is_a_symbol(pair: str) -> None:
    assert symbol_of(pair) == "BTCUSDT"


def test_sessions_are_hours_in_utc() -> None:
    hours = {2: "Asia", 3: "Europe", 10: "Europe", 11: "US", 18: "US", 19: "Asia"}
    assert {hour: session_of(NOON.replace(hour=hour)) for hour in hours} == hours


def test_the_request_of_an_entry_has_the_newest_closed_candle_and_the_strategy_s_own_columns() -> (
    None
):
    entry = Entry("BTC/USDT", "long", 100.0, 5.0, 1.0, NOON, "dip")
    row = {"rsi": 28.0, "macd": 1.0, "macdhist": 0.5, "plus_di": 11.0, "own_column": 3}
    request = advise_request(
        entry, Exits(-0.05, {0: 0.04}), candles(3), HOUR_S, row, {"equity": 1e4}
    )
    assert request["plan"] == {
        "entry": 100.0,
        "stop": 95.0,
        "targets": [104.0],
        "quantity": 5.0,
        "exits": {"kind": "freqtrade", "hours": 168.0, "minimal_roi": {"0": 0.04}},
    }
    assert request["market"] == {
        "last_close": 100.0,
        "bar_closed_at": NOON,
        "bar_seconds": 3600,
    }
    candidate = request["candidate"]
    assert (candidate["rsi"], candidate["macd"], candidate["di_plus"]) == (28.0, 0.5, 11.0)
    assert (candidate["symbol"], candidate["ts"], candidate["enter_tag"]) == (
        "BTCUSDT",
        NOON,
        "dip",
    )
    assert "own_column" not in candidate
    assert request["bars"][-1] == (NOON, 100.0, 101.0, 99.0, 100.0, 2.0)


def test_the_service_takes_it_whole_and_computes_what_its_candles_tell() -> None:
    entry = Entry("BTC/USDT", "long", 100.0, 5.0, 1.0, NOON, None)
    request = advise_request(entry, Exits(-0.05, {}), candles(350), HOUR_S, {"rsi": 28.0}, {})
    body, left_out = encode(request)
    assert left_out == {}
    scenario = AdviseRequest.model_validate_json(body).scenario()
    assert scenario.candidate.atr == pytest.approx(2.0)
    assert scenario.candidate.rsi == 28.0, "what a strategy computes itself counts"
    assert scenario.market.volume_24h == pytest.approx(24 * 2.0 * 100.0)
    assert "candidate.atr" in scenario.computed
    assert scenario.candidate.extra == {"enter_tag": None}


def test_the_action_of_a_filled_entry_is_at_its_own_price() -> None:
    action = entered(Exits(-0.05, {0: 0.04}), trade(open_rate=200.0))
    assert (action["entry"], action["stop"], action["targets"]) == (200.0, 190.0, [208.0])
    assert (action["decision"], action["quantity"], action["size_usd"]) == (True, 5.0, 500.0)


def test_the_outcome_of_a_long_trade() -> None:
    exits, end = Exits(-0.05, {0: 0.04}), NOON + timedelta(hours=2)
    outcome = closed(exits, trade(), 104.0, 18.98, end)
    assert outcome["outcome"] == "tp1"
    assert outcome["pnl_pct"] == pytest.approx(3.796)  # 18.98 of 500
    assert outcome["fees"] == pytest.approx(0.5 + 0.52)
    assert (outcome["mae_r"], outcome["mfe_r"]) == (pytest.approx(-0.4), pytest.approx(1.2))
    assert outcome["holding_seconds"] == 7200


def test_the_outcome_of_a_short_trade_mirrors_it() -> None:
    exits = Exits(-0.05, {0: 0.04})
    outcome = closed(exits, trade(is_short=True, exit_reason="stop_loss"), 105.0, -26.0, NOON)
    assert outcome["outcome"] == "sl"
    # It fell to 98, two fifths of its risk; and rose to 106, a sixth more than its risk.
    assert (outcome["mae_r"], outcome["mfe_r"]) == (pytest.approx(-1.2), pytest.approx(0.4))


def test_another_reason_to_exit_is_kept_in_freqtrade_s_words() -> None:
    outcome = closed(Exits(-0.05, {}), trade(exit_reason="my_signal"), 101.0, 4.0, NOON)
    assert (outcome["outcome"], outcome["exit_reason"]) == ("early_exit", "my_signal")


def strategy(**fields: Any) -> Any:
    return SimpleNamespace(**{"stoploss": -0.05, "minimal_roi": {"0": 0.04, "60": -1}, **fields})


TRAILING = {
    "trailing_stop": True,
    "trailing_stop_positive": 0.02,
    "trailing_stop_positive_offset": 0.04,
    "trailing_only_offset_is_reached": True,
}


def test_a_strategy_s_exits_are_declared_over_the_notional() -> None:
    declared = Exits.of(strategy(**TRAILING), 24.0, known=True).declared(2.0)
    assert declared == {
        "kind": "freqtrade",
        "hours": 24.0,
        "minimal_roi": {"0": 0.02, "60": -1},
        **TRAILING,
        "trailing_stop_positive": 0.01,
        "trailing_stop_positive_offset": 0.02,
    }
    read = AdviseRequest.model_validate(
        {
            "candidate": {"symbol": "BTCUSDT", "direction": "long", "ts": NOON},
            "plan": {
                "entry": 100.0,
                "stop": 95.0,
                "targets": [104.0],
                "quantity": 1.0,
                "exits": declared,
            },
        }
    )
    assert read.plan.exits is not None
    assert read.plan.exits.as_json() == {**declared, "minimal_roi": {"0": 0.02, "60": -1.0}}


def test_exits_that_nobody_can_follow_are_reported_only() -> None:
    assert Exits.of(strategy(), 24.0, known=False).declared(1.0) == {"kind": "reported"}


class IStrategy:
    """As freqtrade's."""

    def custom_exit(self, **arguments: Any) -> None: ...
    def custom_exit_price(self, **arguments: Any) -> None: ...
    def confirm_trade_exit(self, **arguments: Any) -> bool:
        return True


class OwnExit(IStrategy):
    def custom_exit(self, **arguments: Any) -> None: ...
    def confirm_trade_exit(self, **arguments: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("kind", "fields", "signals", "told"),
    [
        (IStrategy, {}, False, []),
        (IStrategy, {}, True, ["exit signals"]),
        (IStrategy, {"use_exit_signal": False}, True, []),
        (OwnExit, {}, False, ["custom_exit", "confirm_trade_exit"]),
        (OwnExit, {"use_exit_signal": False}, True, ["confirm_trade_exit"]),
        (
            IStrategy,
            {"use_custom_stoploss": True, "use_custom_roi": True},
            True,
            ["exit signals", "custom_stoploss", "custom_roi"],
        ),
        (
            IStrategy,
            {"position_adjustment_enable": True, "ignore_roi_if_entry_signal": True},
            False,
            ["adjust_trade_position", "ignore_roi_if_entry_signal"],
        ),
    ],
)
def test_what_else_ends_a_strategy_s_trades_is_named(
    kind: type[IStrategy], fields: dict[str, Any], signals: bool, told: list[str]
) -> None:
    own = kind()
    vars(own).update(fields)
    assert not_followed(own, signals) == told


def test_a_strategy_without_trailing_stop_and_roi_declares_neither() -> None:
    plain = Exits.of(strategy(minimal_roi=None), 168.0, known=True)
    assert plain.declared(1.0) == {"kind": "freqtrade", "hours": 168.0, "minimal_roi": {}}
