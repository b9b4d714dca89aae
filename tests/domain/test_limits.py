"""A limits file: strict, all of its faults at once; maintenance windows by the clock."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path

import pytest

from app.domain.errors import LimitsError
from app.domain.limits import TradingHours, parse_limits, read_limits

DAY = (time(9), time(10, 30))
NIGHT = (time(23, 30), time(0, 15))
UPGRADE = (datetime(2026, 11, 23, 12, tzinfo=UTC), datetime(2026, 11, 24, 12, tzinfo=UTC))
CLOSED = TradingHours(daily_maintenance=(DAY, NIGHT), maintenance=(UPGRADE,))


@pytest.mark.parametrize(
    ("day", "clock", "window"),
    [
        (20, time(8, 59, 59), None),
        (20, time(9), "09:00:00-10:30:00"),
        (20, time(10, 29, 59), "09:00:00-10:30:00"),
        (20, time(10, 30), None),
        (20, time(23, 29, 59), None),
        (20, time(23, 30), "23:30:00-00:15:00"),
        (20, time(0, 14, 59), "23:30:00-00:15:00"),
        (20, time(0, 15), None),
        (23, time(11, 59, 59), None),
        (23, time(12), "2026-11-23T12:00:00+00:00/2026-11-24T12:00:00+00:00"),
        (24, time(11, 59, 59), "2026-11-23T12:00:00+00:00/2026-11-24T12:00:00+00:00"),
        (24, time(12), None),
    ],
)
def test_a_window_begins_with_its_first_moment_and_ends_before_its_last(
    day: int, clock: time, window: str | None
) -> None:
    assert CLOSED.closed_by(datetime.combine(datetime(2026, 11, day), clock, UTC)) == window


@pytest.mark.parametrize(
    "table", ["min_atr = 2.0\nmax_atr = 1.0", "min_fraction = 0.2\nmax_fraction = 0.1"]
)
def test_a_minimum_above_its_maximum_is_refused(table: str) -> None:
    with pytest.raises(LimitsError, match=r"stop_distance: .*a minimum is above its maximum"):
        parse_limits(f'version = "t"\n[stop_distance]\n{table}', "here")
    equal = "[stop_distance]\nmin_atr = 1.0\nmax_atr = 1.0\nmin_fraction = 0.1\nmax_fraction = 0.1"
    assert parse_limits(f'version = "t"\n{equal}', "here").stop_distance.max_atr == 1


def test_every_fault_of_a_file_is_told_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    with pytest.raises(LimitsError, match=r"limits\.toml: cannot be read: .*set ADVISOR_LIMITS"):
        read_limits(file)
    file.write_bytes(b"\xff")
    with pytest.raises(LimitsError, match=r"limits\.toml: cannot be read: .*utf-8"):
        read_limits(file)
    file.write_text("version = ")
    with pytest.raises(LimitsError, match=r"limits\.toml: not valid TOML"):
        read_limits(file)
    file.write_text("[spread]\nmax_bps = 0\n[drawdown]\nmax_fraction = 2\nswitch = false\n")
    with pytest.raises(LimitsError) as refused:
        read_limits(file)
    for field in ("version:", "spread.max_bps:", "drawdown.max_fraction:", "drawdown.switch:"):
        assert field in str(refused.value)


@pytest.mark.parametrize(
    "line", ["deep.deeper = {}", "windows = [[1, {}]]", "max_bps = {}", "max_bps = -{}"]
)
def test_an_integer_that_readers_of_json_do_not_keep_is_refused_wherever_it_stands(
    line: str,
) -> None:
    text = f'version = "t"\n[spread]\n{line}\n'
    with pytest.raises(LimitsError, match=r"here: an integer of 54 bits is beyond 2\^53"):
        parse_limits(text.format(2**53 + 1), "here")
