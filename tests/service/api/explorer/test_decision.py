"""One decision's page: candles from a folder, how near each limit was, a second reading."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.shadow_log.bar_files import candles
from tests.service.api.explorer.site import Site, ids, traded
from tests.service.running import request

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)


def bars(folder: Path, name: str, begin: datetime, count: int, seconds: int) -> None:
    """Bars that rise by one each, the first at 100."""
    folder.mkdir(exist_ok=True)
    opened = [begin + timedelta(seconds=seconds * i) for i in range(count)]
    close = [100.0 + i for i in range(count)]
    prices = {"open": close, "high": [c + 1 for c in close], "low": [c - 1 for c in close]}
    table = pl.DataFrame({"ts": opened, **prices, "close": close, "volume": close})
    if name.endswith(".csv"):
        table.write_csv(folder / name)
    else:
        table.write_parquet(folder / name)


@pytest.mark.parametrize("name", ["BTCUSDT_1h.parquet", "BTCUSDT_1h.csv"])
def test_candles_reach_from_before_the_decision_to_after_its_end(tmp_path: Path, name: str) -> None:
    bars(tmp_path, name, AT - timedelta(hours=200), 400, 3600)
    shown = candles(tmp_path, "BTCUSDT", AT, AT + timedelta(hours=5))
    assert shown.where == name
    assert shown.bars[0].opened_at == AT - timedelta(hours=60)
    assert shown.bars[0].close == 240.0, "the 141st bar"
    assert shown.bars[-1].opened_at == AT + timedelta(hours=44)


@pytest.mark.parametrize("unit", [1, 1000, 10**6, 10**9])
def test_times_may_be_numbers_of_any_unit(tmp_path: Path, unit: int) -> None:
    begin = int(AT.timestamp()) - 100 * 3600
    opened = [unit * (begin + 3600 * i) for i in range(200)]
    prices = dict.fromkeys(("open", "high", "low", "close"), [100.0] * 200)
    pl.DataFrame({"open_time": opened, **prices}).write_csv(tmp_path / "BTC-EUR-1h.csv")
    shown = candles(tmp_path, "BTC/EUR", AT, AT + timedelta(hours=5))
    assert shown.where == "BTC-EUR-1h.csv"
    assert shown.bars[0].opened_at == AT - timedelta(hours=60)


def test_the_finest_bars_are_drawn_that_are_few_enough(tmp_path: Path) -> None:
    bars(tmp_path, "BTCUSDT_1m.parquet", AT - timedelta(hours=2), 600, 60)
    bars(tmp_path, "BTCUSDT_1h.parquet", AT - timedelta(hours=200), 400, 3600)
    assert candles(tmp_path, "BTCUSDT", AT, AT + timedelta(minutes=9)).seconds == 60
    assert candles(tmp_path, "BTCUSDT", AT, AT + timedelta(hours=9)).seconds == 3600
    far = candles(tmp_path, "BTCUSDT", AT, AT + timedelta(days=90))
    assert len(far.bars) <= 400


def test_bars_by_their_close_in_another_zone_begin_where_they_opened(tmp_path: Path) -> None:
    closed = pl.Series([AT, AT + timedelta(hours=1)]).dt.convert_time_zone("Asia/Tokyo")
    prices = {name: [1.0, 2.0] for name in ("open", "high", "low", "close")}
    pl.DataFrame({"closed_at": closed, **prices}).write_parquet(tmp_path / "X_1h.parquet")
    shown = candles(tmp_path, "X", AT, AT)
    assert [bar.opened_at for bar in shown.bars] == [AT - timedelta(hours=1), AT]


def test_why_there_are_none_is_said(tmp_path: Path) -> None:
    assert "ADVISOR_BARS" in candles(None, "BTCUSDT", AT, AT).where
    assert "no file of bars of BTCUSDT" in candles(tmp_path / "no", "BTCUSDT", AT, AT).where
    (tmp_path / "BTCUSDT_1h.parquet").write_bytes(b"nonsense")
    assert "cannot be read" in candles(tmp_path, "BTCUSDT", AT, AT).where
    (tmp_path / "ETHUSDT_1h.csv").write_text("when,price\n1,2\n")
    assert "no column of times" in candles(tmp_path, "ETHUSDT", AT, AT).where
    bars(tmp_path, "XRPUSDT_1h.parquet", AT + timedelta(days=90), 4, 3600)
    assert "has no bars at that time" in candles(tmp_path, "XRPUSDT", AT, AT).where


def test_a_pair_has_its_candles_however_it_is_spelt(tmp_path: Path) -> None:
    bars(tmp_path, "BTCUSDT_1h.csv", AT - timedelta(hours=2), 3, 3600)
    for symbol in ("BTC/USDT", "BTC/USDT:USDT", "btc-usdt"):
        assert len(candles(tmp_path, symbol, AT, AT).bars) == 3


def test_a_file_is_read_whatever_its_first_rows_are_like(tmp_path: Path) -> None:
    """Whole numbers for a hundred rows and fractions after them, milliseconds, a cell without a
    number, a bar that is there twice."""
    begin = int((AT - timedelta(hours=149)).timestamp())
    rows = [
        f"{(begin + 3600 * i) * 1000},{i},{i},{i},{i}{'.5' if i > 120 else ''}" for i in range(150)
    ]
    rows[140] = rows[140].replace(",140,140,", ",nan,140,")
    lines = ["timestamp,open,high,low,close", *rows, rows[-1]]
    (tmp_path / "BTCUSDT_1h.csv").write_text("\n".join(lines))
    shown = candles(tmp_path, "BTCUSDT", AT, AT)
    assert shown.where == "BTCUSDT_1h.csv"
    assert (shown.bars[-1].opened_at, shown.bars[-1].close) == (AT, 149.5)
    assert len(shown.bars) == 60, "61, but for the one that has no open"
    (tmp_path / "ETHUSDT_1h.csv").write_text("ts,open,high,low,close\nyesterday,1,1,1,1\n")
    assert "column ts holds no times" in candles(tmp_path, "ETHUSDT", AT, AT).where


async def test_a_page_draws_both_arms_on_the_bars_of_the_configured_folder(
    site: Site, tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    bars(tmp_path / "bars", "BTCUSDT_1h.parquet", now - timedelta(hours=99), 120, 3600)
    decision = await site.decide("drawn")
    end = datetime.now(UTC)
    told: dict[str, Any] = {"arm": "agent", "outcome": "sl", "source": "reported", "net_pnl": -1.0}
    await site.report(decision, "agent-action", {"decision": True})
    await site.report(
        decision, "outcome", told | {"exit_time": end.isoformat(), "exit_price": 123.0}
    )
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{decision}")).text
    assert "Bars from <code>BTCUSDT_1h.parquet</code>" in shown
    written = re.search(r'id="candles-options">(.*?)</script>', shown)
    assert written is not None
    [series] = json.loads(written[1])["series"]
    plan = request("x")["plan"]
    levels = {mark.get("name"): mark.get("yAxis") for mark in series["markLine"]["data"]}
    assert levels["agent: entry"] == plan["entry"]
    assert levels["agent: stop"] == plan["stop"]
    [pin] = series["markPoint"]["data"]
    assert pin["name"] == "agent: sl"
    assert pin["coord"] == [f"{end:%Y-%m-%d %H:00}", 123.0]


async def test_a_page_without_bars_says_why_and_has_the_numbers(site: Site) -> None:
    decision = await traded(site, "bare", -1.0)
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{decision}")).text
    assert "has no file of bars of BTCUSDT" in shown
    assert "candles-options" not in shown
    assert "exits, <code>trail</code>, 6 hours after entry" in shown


async def test_a_number_that_nobody_can_square_spoils_no_page_of_its_symbol(site: Site) -> None:
    """Postgres raises where a square is smaller than what it holds, too."""
    await site.decide("r-1", candidate__atr=1e-170, candidate__macd=5e-324)
    await site.decide("r-2", candidate__atr=12.0, candidate__macd=-1e-200)
    later = await site.decide("r-3", candidate__atr=11.0, candidate__macd=0.5)
    odd = await site.decide("r-4", candidate__atr=1e-180, candidate__macd=0.5)
    await site.stored()
    for decision, earlier in ((later, 2), (odd, 3)):
        answer = await site.get(f"/ui/decisions/{decision}")
        assert answer.status_code == 200
        alike = answer.text.split('id="alike"')[1]
        assert len(ids(alike)) == earlier


async def test_a_page_says_by_which_exits_arms_end(site: Site) -> None:
    fixed = await site.decide("fixed", plan__exits={"kind": "fixed", "hours": 1.5})
    unknown = await site.decide("unknown", plan__exits={"kind": "reported"})
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{fixed}")).text
    assert "exits, <code>fixed</code>, 1.5 hours after entry" in shown
    shown = (await site.get(f"/ui/decisions/{unknown}")).text
    assert "exits are not known: only its own reports tell" in shown


async def test_how_near_each_limit_was_is_told_of_the_agents_order(site: Site) -> None:
    decision = await site.decide("near", candidate__spread_bps=4.0)
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{decision}")).text
    row = re.search(r"<tr><td>spread.max_bps</td><td>agent</td>(.*?)</tr>", shown)
    assert row is not None
    assert re.findall(r">([\d.]+)<", row[1]) == ["4", "10", "6"]


async def test_an_operator_has_the_model_read_again_and_nobody_else(site: Site) -> None:
    decision = await site.decide("again")
    await site.stored()
    path = f"/ui/decisions/{decision}/replay"
    assert (await site.post(path, {}, "reader")).status_code == 403
    without = await site.api.client.post(
        path, data={}, headers={"Authorization": f"Bearer {site.tokens['operator']}"}
    )
    assert without.status_code == 403, "another page cannot"
    before = await site.api.service.shadow_log.counts()
    read = await site.post(path, {}, "operator")
    assert read.status_code == 200
    assert "the same reading, largest difference 0.000000 nats" in read.text
    await site.stored()
    assert await site.api.service.shadow_log.counts() == before
    answers = [(await site.post(path, {}, "operator")).status_code for _ in range(4)]
    assert 429 in answers


async def test_another_reading_is_told(site: Site) -> None:
    """The script answers J where it answered A."""
    decision = await site.decide("changed")
    await site.stored()
    site.labels[0] = "J"
    read = await site.post(f"/ui/decisions/{decision}/replay", {}, "operator")
    assert "another reading" in read.text
    assert "now:" in read.text
