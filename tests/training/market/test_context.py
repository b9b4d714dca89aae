"""News and fear & greed enter a scenario when they could be known, and not before."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.market.bars import MarketDataError
from training.market.context import KnownContext, load_context

NOON = datetime(2022, 3, 1, 12, tzinfo=UTC)


def news(
    folder: Path, *rows: tuple[datetime, str, list[str]], published: datetime | None = None
) -> Path:
    path = folder / "news.parquet"
    table = pl.DataFrame(
        rows,
        schema={
            "available_at": pl.Datetime("us", "UTC"),
            "title": pl.String,
            "symbols": pl.List(pl.String),
        },
        orient="row",
    )
    table.with_columns(ts=pl.lit(published or datetime(2000, 1, 1, tzinfo=UTC))).write_parquet(path)
    return path


def fear_greed(folder: Path, *rows: tuple[date, int]) -> Path:
    path = folder / "fear_greed.parquet"
    pl.DataFrame(rows, schema={"date": pl.Date, "value": pl.Int16}, orient="row").write_parquet(
        path
    )
    return path


def known(context: KnownContext, as_of: datetime, symbol: str = "ETHUSDT") -> dict[str, Any]:
    return dict(context(symbol, as_of))


def test_a_headline_is_known_from_the_moment_it_is_available_and_not_from_when_it_was_published(
    tmp_path: Path,
) -> None:
    """A headline of which only the day is known: published, by its stamp, at 00:00, available at
    the next midnight."""
    day = datetime(2022, 3, 1, tzinfo=UTC)
    context = load_context(
        news(tmp_path, (day + timedelta(days=1), "Exchange halts", []), published=day), None
    )
    assert known(context, NOON) == {}
    assert known(context, day + timedelta(days=1, microseconds=-1)) == {}
    assert known(context, day + timedelta(days=1)) == {"news_summary": "Exchange halts"}


def test_a_fraction_of_a_second_is_never_rounded_down(tmp_path: Path) -> None:
    context = load_context(news(tmp_path, (NOON + timedelta(microseconds=1), "Late", [])), None)
    assert known(context, NOON) == {}
    assert known(context, NOON + timedelta(seconds=1)) == {"news_summary": "Late"}


def test_the_newest_three_lead_and_a_symbols_own_headline_is_not_said_twice(tmp_path: Path) -> None:
    rows = [(NOON - timedelta(hours=5 - n), f"Market {n}", ["BTC"]) for n in range(5)]
    rows.append((NOON - timedelta(minutes=1), "Merge done", ["ETH", "BTC"]))
    context = load_context(news(tmp_path, *rows), None)
    assert known(context, NOON) == {
        "symbol_news_summary": "Merge done",
        "news_summary": "Market 4 / Market 3 / Market 2",
    }
    assert known(context, NOON, "SOLUSDT") == {"news_summary": "Merge done / Market 4 / Market 3"}


@pytest.mark.parametrize("symbol", ["ETHUSDT", "ETHEUR", "ETH/USDC:USDC", "eth-btc"])
def test_a_coins_own_headlines_are_known_whatever_it_is_quoted_in(
    tmp_path: Path, symbol: str
) -> None:
    context = load_context(news(tmp_path, (NOON, "Merge done", ["ETH"])), None)
    assert known(context, NOON, symbol) == {"symbol_news_summary": "Merge done"}


def test_old_news_is_no_news_and_none_is_null(tmp_path: Path) -> None:
    context = load_context(news(tmp_path, (NOON, "Once", ["ETH"])), None)
    assert known(context, NOON + timedelta(hours=12)) == {"symbol_news_summary": "Once"}
    assert known(context, NOON + timedelta(hours=12), "BTCUSDT") == {"news_summary": "Once"}
    assert known(context, NOON + timedelta(hours=12, seconds=1), "BTCUSDT") == {}
    assert known(context, NOON + timedelta(hours=24, seconds=1)) == {}


def test_a_days_fear_and_greed_is_known_three_hours_after_its_midnight(tmp_path: Path) -> None:
    context = load_context(
        None, fear_greed(tmp_path, (date(2022, 3, 1), 20), (date(2022, 3, 2), 51))
    )
    third = datetime(2022, 3, 2, 3, tzinfo=UTC)
    assert known(context, third - timedelta(seconds=1)) == {
        "fear_greed": 20,
        "fear_greed_age_s": 97_199.0,
    }
    assert known(context, third) == {"fear_greed": 51, "fear_greed_age_s": 10_800.0}
    assert known(context, datetime(2022, 3, 1, tzinfo=UTC)) == {}


def test_a_gap_in_the_index_is_a_gap_here(tmp_path: Path) -> None:
    context = load_context(None, fear_greed(tmp_path, (date(2022, 3, 1), 20)))
    assert known(context, datetime(2022, 3, 3, tzinfo=UTC))["fear_greed"] == 20
    assert known(context, datetime(2022, 3, 3, 0, 0, 1, tzinfo=UTC)) == {}


def test_a_sentiment_column_changes_nothing(tmp_path: Path) -> None:
    """It was computed after the fact."""
    path = news(tmp_path, (NOON, "Rally", ["ETH"]))
    plain = known(load_context(path, None), NOON)
    pl.read_parquet(path).with_columns(
        sentiment=0.9, sentiment_kind=pl.lit("model_score")
    ).write_parquet(path)
    assert known(load_context(path, None), NOON) == plain == {"symbol_news_summary": "Rally"}


@given(st.lists(st.tuples(st.integers(-3000, 3000), st.text(max_size=20)), max_size=12))
def test_nothing_from_after_the_decision_is_ever_told(
    tmp_path_factory: pytest.TempPathFactory, rows: Any
) -> None:
    folder = tmp_path_factory.mktemp("news")
    headlines = [
        (NOON + timedelta(seconds=s), f"{s}: {text}".replace("\x00", ""), ["ETH"])
        for s, text in rows
    ]
    whole = load_context(news(folder, *headlines), None)
    past = load_context(news(folder, *(one for one in headlines if one[0] <= NOON)), None)
    assert known(whole, NOON) == known(past, NOON)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"title": ["x"], "symbols": [["ETH"]], "ts": [NOON]}, "needs a column available_at"),
        (
            {"available_at": ["2022"], "title": ["x"], "symbols": [["ETH"]]},
            "needs a column available_at of type Datetime",
        ),
        (
            {"available_at": [None, NOON], "title": ["x", "y"], "symbols": [[], ["E"]]},
            "must be a UTC time in every row",
        ),
        (
            {
                "available_at": [NOON],
                "ts": [NOON + timedelta(1)],
                "title": ["x"],
                "symbols": [["E"]],
            },
            "available before it was published",
        ),
        (
            {"available_at": [NOON], "title": ["x"], "symbols": ["ETH"]},
            "needs a column symbols of type List",
        ),
    ],
)
def test_bad_news_is_one_line(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    path = tmp_path / "news.parquet"
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(MarketDataError, match=message):
        load_context(path, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(date(2022, 3, 1), 101)], "0-100"),
        ([(date(2022, 3, 1), 5), (date(2022, 3, 1), 6)], "missing or repeated"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(MarketDataError, match=message):
        load_context(None, fear_greed(tmp_path, *rows))


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "news.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(MarketDataError, match="cannot be read"):
        load_context(tmp_path / "news.parquet", None)
