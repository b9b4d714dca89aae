"""Bars are checked, stamped at their close, and refused with a message that names the fault."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from tests.training.support.candles import FIRST, START, frame, table
from training.market.bars import (
    MarketDataError,
    bars_from_frame,
    length_seconds,
)

HOURS = 1500
TRADES = ["500", 10, "2", "200", "0"]


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


HOURLY = [START + 3600 * n for n in range(200)]


@pytest.mark.parametrize(
    ("unit", "stamps"),
    [
        ("text", [(FIRST + timedelta(hours=n)).strftime("%Y-%m-%d %H:%M:%S") for n in range(200)]),
        ("seconds", HOURLY),
        ("milliseconds", [1000 * time for time in HOURLY]),
        ("microseconds", [10**6 * time for time in HOURLY]),
        ("nanoseconds", [10**9 * time for time in HOURLY]),
        ("milliseconds of a table of floats", [1000.0 * time for time in HOURLY]),
        # As an exchange's own files are since 2025: joined, a series has both.
        ("both", [time * (1000 if n < 100 else 10**6) for n, time in enumerate(HOURLY)]),
    ],
)
def test_times_may_be_text_or_numbers_of_any_unit(unit: str, stamps: list[Any]) -> None:
    assert loaded(frame(ts=stamps)).closed_at.tolist() == [time + 3600 for time in HOURLY]
    named = frame(ts=None, open_time=stamps)
    assert loaded(named).closed_at[1] == START + 7200


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
        ({"ts": [float("nan")] * 200}, r"column ts holds no times"),
        (
            {"ts": [FIRST + timedelta(hours=4 * n) for n in range(200)]},
            r"are 14400 s long, not 3600",
        ),
        ({"Close": [101.0] * 200}, r"column close is there twice, but for capitals"),
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


@pytest.mark.parametrize("text", ["", "h", "0h", "1w", "1.5h", "-1h"])
def test_a_bar_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MarketDataError, match="write a number and m, h or d"):
        length_seconds(text)


def test_parts_of_bars_keep_symbol_and_length() -> None:
    bars = table((1, 2, 1, 2), (2, 3, 2, 3), (3, 4, 3, 4))
    later = bars.part(1, 3)
    assert list(later.close) == [3.0, 4.0]
    assert (later.symbol, later.seconds) == ("BTCUSDT", 3600)
