"""Files of other programs, row by row."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.shadow_log.importing.bars import BarsFolder
from app.shadow_log.importing.coverage import Coverage
from app.shadow_log.importing.imports import exits_told, read_trades, source_named
from app.shadow_log.importing.mapped import Mapped
from app.shadow_log.importing.rows import ImportFault, rows_of
from app.shadow_log.importing.trade import ImportedTrade
from app.shadow_log.importing.values import moment

BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
TRADED = BEGIN + timedelta(hours=30)


def bars_folder(folder: Path) -> Path:
    """Hours that alternate: each ranges over 4 around 100, so that ATR comes to 4."""
    folder.mkdir()
    lines = ["ts,open,high,low,close,volume"]
    for hour in range(48):
        opened = (BEGIN + timedelta(hours=hour)).isoformat()
        close = 100 + (-1) ** hour
        lines.append(f"{opened},100,102,98,{close},10")
    (folder / "BTCUSDT_1h.csv").write_text("\n".join(lines))
    return folder


def read(
    source: str, path: Path, bars: Path | None = None, exits: tuple[float, float] | None = None
) -> tuple[list[ImportedTrade], Coverage]:
    named = source_named(source, exits_told(*exits) if exits else None)
    coverage = Coverage()
    folder = None if bars is None else BarsFolder(bars)
    return list(read_trades(named, path, folder, coverage)), coverage


def freqtrade_database(path: Path) -> Path:
    """The columns of freqtrade's tables that are read."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE trades (id, pair, is_open, is_short, open_date, close_date, open_rate,"
            " close_rate, amount, stake_amount, leverage, fee_open, fee_close, close_profit_abs,"
            " exit_reason, enter_tag, min_rate, max_rate, initial_stop_loss, funding_fees)"
        )
        connection.execute("CREATE TABLE orders (ft_trade_id, ft_order_side, filled)")
        at, end = "2024-03-02 06:00:00.000000", "2024-03-02 08:00:00.000000"
        common = (100.0, 104.0, 5.0, 500.0, 1.0, 0.001, 0.001, 18.98, "roi", "dip", 98.0, 104.0)
        rows = [
            (1, "BTC/USDT", 0, 0, at, end, *common, 95.0, 0.0),
            (2, "BTC/USDT", 1, 0, at, None, *common, 95.0, 0.0),
        ]
        places = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO trades VALUES ({places})", rows)
        connection.execute("INSERT INTO orders VALUES (1, 'buy', 5.0)")
        connection.commit()
    return path


def test_freqtrade_s_database(tmp_path: Path) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    trades, coverage = read("freqtrade", database, exits=(-0.05, 0.04))
    (trade,) = trades
    assert (trade.symbol, trade.direction, trade.as_of) == ("BTCUSDT", "long", TRADED)
    assert trade.outcome is not None
    assert trade.outcome.net_pnl == 18.98
    assert trade.outcome.exit_time == TRADED + timedelta(hours=2)
    # It fell by 2 of the 5 that it risked.
    assert trade.outcome.mae_r == pytest.approx(-0.4)
    assert trade.action.stop == 95.0
    assert (coverage.rows, coverage.passed_over, coverage.with_outcome) == (2, 1, 1)
    assert trade.missing == ("candidate.atr",)


def test_bars_complete_a_trade_with_what_was_known_when_it_was_made(tmp_path: Path) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    bars = bars_folder(tmp_path / "bars")
    (trade,), coverage = read("freqtrade", database, bars, (-0.05, 0.04))
    assert trade.scenario is not None, trade.missing
    market = trade.scenario.market
    assert market.bar_closed_at == TRADED
    assert trade.scenario.candidate.atr == pytest.approx(4.0)
    # 24 hours of 10 at 99 and 101 in turns.
    assert market.volume_24h == pytest.approx(24 * 10 * 100)
    assert (trade.scenario.plan.stop, trade.scenario.plan.targets) == (95.0, (104.0,))
    assert coverage.complete == 1


@pytest.mark.parametrize("fault", ["another price", "a hole"])
def test_bars_of_another_market_and_across_a_hole_complete_nothing(
    fault: str, tmp_path: Path
) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    file = bars_folder(tmp_path / "bars") / "BTCUSDT_1h.csv"
    lines = file.read_text().splitlines()
    if fault == "another price":
        lines = [line.replace(",100,102,98,", ",5.0,5.1,4.9,") for line in lines]
        lines = [line.replace(",99,10", ",5,10").replace(",101,10", ",5,10") for line in lines]
    else:
        del lines[20:27]
    file.write_text("\n".join(lines))
    (trade,), _ = read("freqtrade", database, file.parent, (-0.05, 0.04))
    assert trade.missing == ("candidate.atr",)


def test_the_same_bar_twice_is_one_and_two_of_one_time_are_refused(tmp_path: Path) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    file = bars_folder(tmp_path / "bars") / "BTCUSDT_1h.csv"
    whole = file.read_text()
    ((before,), _) = read("freqtrade", database, file.parent, (-0.05, 0.04))
    file.write_text("\n".join([whole, *whole.splitlines()[5:20]]))
    ((after,), _) = read("freqtrade", database, file.parent, (-0.05, 0.04))
    assert before == after
    file.write_text("\n".join([whole, whole.splitlines()[5].replace(",102,", ",103,")]))
    with pytest.raises(ImportFault, match="bars of one time that differ"):
        read("freqtrade", database, file.parent, (-0.05, 0.04))


def test_later_bars_change_nothing(tmp_path: Path) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    bars = bars_folder(tmp_path / "bars")
    ((before,), _) = read("freqtrade", database, bars, (-0.05, 0.04))
    file = bars / "BTCUSDT_1h.csv"
    lines = file.read_text().splitlines()
    later = [line.replace("100,102,98", "500,900,400") for line in lines[31:]]
    file.write_text("\n".join([*lines[:31], *later]))
    ((after,), _) = read("freqtrade", database, bars, (-0.05, 0.04))
    assert before == after


def test_a_back_test_tells_its_strategy_s_exits(tmp_path: Path) -> None:
    trade = {
        "pair": "BTC/USDT:USDT",
        "is_short": True,
        "open_timestamp": int(TRADED.timestamp() * 1000),
        "close_timestamp": int((TRADED + timedelta(hours=1)).timestamp() * 1000),
        "open_rate": 100.0,
        "close_rate": 97.0,
        "amount": 15.0,
        "stake_amount": 500.0,
        "leverage": 3.0,
        "profit_abs": 43.0,
        "exit_reason": "trailing_stop_loss",
        "orders": [{}, {}],
    }
    result = {"stoploss": -0.03, "minimal_roi": {"0": 0.06}, "trades": [trade]}
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"strategy": {"Mine": result}}))
    (told,), _ = read("freqtrade", path)
    # Of the stake 3 % is 1 % of the price at three times leverage; a short's stop is above.
    assert (told.direction, told.action.stop) == ("short", pytest.approx(101.0))
    assert told.action.targets == (pytest.approx(98.0),)
    assert told.outcome is not None
    assert (told.outcome.outcome, told.outcome.net_pnl) == ("trailing_sl", 43.0)


SPOT_TRADES = """trade_id,symbol,direction,entry_time,exit_time,entry,exit,size,notional,net_pnl,\
outcome,exit_reason,confidence,volatility,score,session,llm_approval,setup_type
a1,BTCUSDT,long,2024-03-02T06:10:00Z,2024-03-02T09:00:00Z,100,97,450,450,-14.2,sl,Stop hit,7.1,\
63,6.2,Asia,True,N/A
a2,BTCUSDT,long,2024-03-02T06:10:00Z,2024-03-02T05:00:00Z,100,97,450,450,-14.2,sl,Stop hit,7.1,\
63,6.2,Asia,True,N/A
"""
SPOT_AUDIT = """ts,symbol,selected_for_candidate_list,final_trade_taken,final_skip_reason,rsi_14
2024-03-02T07:00:30+00:00,BTCUSDT,True,False,ML prob 0.41 too low,55.5
2024-03-02T07:00:30+00:00,ETHUSDT,False,False,low score,51
"""
SPOT_REJECTED = """timestamp,symbol,reason
2024-03-02 08:00:00,BTCUSDT,"news, halt"
"""


def test_the_spot_agent_s_trades_get_stop_and_targets_from_bars_by_its_own_rules(
    tmp_path: Path,
) -> None:
    path = tmp_path / "historical_trades.csv"
    path.write_text(SPOT_TRADES)
    (trade,), coverage = read("spot-ai-agent", path, bars_folder(tmp_path / "bars"))
    assert coverage.passed_over == 1  # It ended before it began.
    assert trade.scenario is not None, trade.missing
    plan = trade.scenario.plan
    assert (plan.entry, plan.quantity) == (100.0, 4.5)
    # 1.5 and 3, 4, 5 times an ATR of 4.
    assert plan.stop == pytest.approx(94.0)
    assert plan.targets == pytest.approx((112.0, 116.0, 120.0))
    assert trade.scenario.candidate.volatility_pct == pytest.approx(0.63)
    assert trade.outcome is not None
    assert (trade.outcome.outcome, trade.outcome.net_pnl) == ("sl", -14.2)
    assert trade.action.llm_approval is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [(SPOT_AUDIT, "ML prob 0.41 too low"), (SPOT_REJECTED, "news, halt")],
    ids=["audit", "rejected"],
)
def test_what_the_spot_agent_did_not_trade_is_a_decision_too(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.csv"
    path.write_text(text)
    (trade,), coverage = read("spot-ai-agent", path, bars_folder(tmp_path / "bars"))
    assert (trade.action.decision, trade.action.final_skip_reason) == (False, reason)
    assert (trade.outcome, coverage.rejected) == (None, 1)
    assert trade.scenario is not None, trade.missing
    assert trade.scenario.plan.risk == pytest.approx(400 / trade.scenario.plan.entry * 6)


def test_what_the_spot_agent_s_files_share_with_its_requests_is_read_under_the_same_names(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.csv"
    path.write_text(
        "ts,symbol,selected_for_candidate_list,final_skip_reason,hurst,macro_score_adjustment,"
        "order_flow_flag,spoofing_alert,rsi_14\n"
        "2024-03-02 06:00:00,BTCUSDT,1,low,0.4,-0.5,-1,1,55\n"
    )
    (trade,), _ = read("spot-ai-agent", path, bars_folder(tmp_path / "bars"))
    assert trade.scenario is not None, trade.missing
    candidate = trade.scenario.candidate
    assert (candidate.hurst, candidate.macro_score_adjustment, candidate.rsi) == (0.4, -0.5, 55.0)
    assert (candidate.order_flow_flag, candidate.spoofing_alert) == (-1, True)


def test_a_file_of_neither_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ImportFault, match=r"other\.csv.*mapping file"):
        read("spot-ai-agent", path)


MAPPING = """
source = "my-bot"
time_zone = "Europe/Berlin"
[candidate]
symbol = "pair"
direction = "side"
ts = "opened"
atr = "range"
[plan]
entry = "price"
stop = "sl"
targets = ["tp1", "tp2"]
quantity = "size"
[outcome]
exit_time = "closed"
net_pnl = "profit"
outcome = "why"
[values.direction]
BUY = "long"
[values.outcome]
target = "tp1"
[constants.candidate]
setup_type = "trend"
"""


def test_any_table_with_a_mapping_file(tmp_path: Path) -> None:
    mapping, table = tmp_path / "map.toml", tmp_path / "mine.csv"
    mapping.write_text(MAPPING)
    table.write_text(
        "pair,side,opened,range,price,sl,tp1,tp2,size,closed,profit,why\n"
        "BTC-USDT,BUY,2024-03-02 07:00:00,4,100,95,110,,2,2024-03-02 09:00:00,19.5,target\n"
        "BTC-USDT,BUY,,4,100,95,110,,2,,,\n"
    )
    trades, coverage = read(str(mapping), table)
    (trade,) = trades
    assert trade.as_of == datetime(2024, 3, 2, 6, tzinfo=UTC)
    assert (trade.symbol, trade.direction, trade.action.decision) == ("BTCUSDT", "long", True)
    assert trade.outcome is not None
    assert (trade.outcome.outcome, trade.outcome.net_pnl) == ("tp1", 19.5)
    assert trade.scenario is not None, trade.missing
    assert trade.scenario.plan.targets == (110.0,)
    assert coverage.passed_over == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("atr =", "atrr ="), "candidate.atrr"),
        (('ts = "opened"', ""), "candidate.ts is not mapped"),
        (("Europe/Berlin", "Mars/Olympus"), "Mars/Olympus"),
        (("[outcome]", "[action]"), "neither an outcome nor action.decision is mapped"),
    ],
)
def test_a_mapping_file_that_cannot_work_names_why(
    change: tuple[str, str], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "map.toml"
    path.write_text(MAPPING.replace(*change))
    with pytest.raises(ImportFault, match=named):
        Mapped(path)


OPEN = "BTC-USDT,BUY,2024-03-02 07:00:00,4,100,95,110,,2,,,"
CLOSED = "BTC-USDT,BUY,2024-03-02 07:00:00,4,100,95,110,,2,2024-03-02 09:00:00,19.5,target"
HEADER = "pair,side,opened,range,price,sl,tp1,tp2,size,closed,profit,why"


def mine(tmp_path: Path, *lines: str, mapping: str = MAPPING) -> tuple[str, Path]:
    (tmp_path / "map.toml").write_text(mapping)
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "map.toml"), tmp_path / "mine.csv"


def test_a_trade_that_is_still_open_is_no_rejection_and_comes_with_its_end(tmp_path: Path) -> None:
    """So a second import of it, closed, is its only row; half a line is an open trade too."""
    trades, coverage = read(*mine(tmp_path, HEADER, OPEN, OPEN.partition(",4,")[0]))
    assert (trades, coverage.passed_over) == ([], 2)
    trades, _ = read(*mine(tmp_path, HEADER, CLOSED))
    assert [trade.action.decision for trade in trades] == [True]


def test_who_says_so_rejected_a_candidate(tmp_path: Path) -> None:
    mapping = MAPPING + '[action]\ndecision = "taken"\n'
    trades, coverage = read(
        *mine(tmp_path, f"{HEADER},taken", f"{OPEN},no", f"{OPEN},yes", mapping=mapping)
    )
    assert [trade.action.decision for trade in trades] == [False]
    assert coverage.passed_over == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("2024-03-02 07:00:00", "02.03.2024 07:00"), "ts: '02.03.2024 07:00' is no time"),
        (("2024-03-02 09:00:00", "03/02/2024 09:00"), "exit_time: '03/02/2024 09:00' is no time"),
        (("2024-03-02 07", "2099-03-02 07"), "is in the future"),
    ],
)
def test_a_time_that_is_not_understood_is_said_with_its_row(
    change: tuple[str, str], why: str, tmp_path: Path
) -> None:
    trades, coverage = read(*mine(tmp_path, HEADER, CLOSED, CLOSED.replace(*change)))
    assert len(trades) == 1
    [(reason, refused)] = coverage.unreadable.items()
    assert why in reason
    assert refused == (1, "mine.csv, row 2")
    assert any(value == "1, the first in mine.csv, row 2" for _, value in coverage.lines())


def test_a_stop_on_the_winning_side_makes_no_plan(tmp_path: Path) -> None:
    trades, _ = read(*mine(tmp_path, HEADER, CLOSED.replace(",95,", ",101,")))
    assert trades[0].scenario is None
    assert trades[0].missing == ("a stop on the losing side of a long's entry",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_columns_stand_apart_by_what_the_header_has_most(delimiter: str, tmp_path: Path) -> None:
    lines = [line.replace(",", delimiter) for line in (HEADER, CLOSED)]
    trades, _ = read(*mine(tmp_path, *lines))
    assert [trade.symbol for trade in trades] == ["BTCUSDT"]


TRADED_ONCE: dict[str, Any] = {
    "pair": "BTC/USDT",
    "open_timestamp": 1709359200000,
    "close_timestamp": 1709366400000,
    "open_rate": 100.0,
    "close_rate": 104.0,
    "amount": 5.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"pair": None},
        {"pair": "BTC\x00/USDT"},
        {"open_rate": None},
        {"open_rate": 0},
        {"amount": "many"},
        {"orders": 7},
        {"close_timestamp": TRADED_ONCE["open_timestamp"] - 1},  # Closed before it was opened.
    ],
)
def test_a_row_that_nobody_can_read_is_counted_and_the_next_one_is_read(
    change: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "trades.json"
    path.write_text(json.dumps([TRADED_ONCE | change, TRADED_ONCE]))
    trades, coverage = read("freqtrade", path)
    assert [trade.as_of for trade in trades] == [TRADED]
    refused = [each for each in coverage.unreadable.values() if each == (1, "trades.json, row 1")]
    assert (coverage.rows, coverage.passed_over + len(refused)) == (2, 1)


@pytest.mark.parametrize("far", [1e300, -1e300, 10**30])
def test_a_time_that_no_calendar_has_is_none(far: float) -> None:
    assert moment(far) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", b"{bad"),
        ("t.json", b"[" * 100_000),
        ("t.json", b'[1, "x", null]'),
        ("t.json", b'{"strategy": []}'),
        ("t.json", b'{"strategy": {"mine": {}}}'),
        ("t.csv", b"\xff\xfe\x00a,b"),
        ("t.csv", b"a,b\n" + b"x" * 200_000),
        ("t.zip", b"no archive"),
        ("t.parquet", b"PAR1"),
        ("t.sqlite", b"no database"),
    ],
)
@pytest.mark.parametrize("source", ["freqtrade", "spot-ai-agent"])
def test_a_file_that_no_library_can_read_is_refused_by_name(
    source: str, name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImportFault, match=name.replace(".", r"\.")):
        read(source, path)
    with pytest.raises(ImportFault, match=f"absent-{name}".replace(".", r"\.")):
        read(source, tmp_path / f"absent-{name}")


def test_values_that_say_nothing_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,d\n,N/A,nan,0\n")
    assert list(rows_of(path)) == [{"a": None, "b": None, "c": None, "d": "0"}]


@pytest.mark.parametrize(
    "told", ["2024-03-02T06:00:00Z", "2024-03-02 06:00:00", 1709359200, 1709359200000]
)
def test_times_of_every_kind(told: object) -> None:
    assert moment(told) == TRADED
