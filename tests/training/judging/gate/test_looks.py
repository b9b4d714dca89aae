"""Looks at a held-out period: every version that was judged on days of it counts once, and nothing
is forgotten."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.data import HeldOutConfig, MarketConfig, SyntheticConfig
from training.judging.gate.looks import FILE, Look

BARS = MarketConfig()
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHOLE = HeldOutConfig()
FIRST, SECOND = (
    HeldOutConfig(since=date(year, 1, 1), until=date(year + 1, 1, 1)) for year in (2023, 2024)
)


def test_versions_count_once_each_however_often_they_are_judged(tmp_path: Path) -> None:
    assert Look(tmp_path, "one", BARS, WHOLE, NOW).count() == 1
    assert Look(tmp_path, "two", BARS, WHOLE, NOW).count() == 2
    assert Look(tmp_path, "one", BARS, WHOLE, NOW).count() == 2
    assert Look(tmp_path, "two", BARS, WHOLE, NOW).count() == 2


def test_periods_that_share_a_day_count_together_and_others_apart(tmp_path: Path) -> None:
    assert Look(tmp_path, "one", BARS, FIRST, NOW).count() == 1
    assert Look(tmp_path, "two", BARS, SECOND, NOW).count() == 1, (
        "one period ends where the other begins"
    )
    assert Look(tmp_path, "three", BARS, WHOLE, NOW).count() == 3
    assert Look(tmp_path, "four", BARS, FIRST, NOW).count() == 3, (
        "the second was only judged on the other year"
    )
    last_day = HeldOutConfig(since=date(2023, 12, 31), until=date(2024, 1, 2))
    assert Look(tmp_path, "five", BARS, last_day, NOW).count() == 5
    assert (
        Look(tmp_path, "two", BARS, HeldOutConfig(since=date(2030, 1, 1), until=None), NOW).count()
        == 1
    )


def test_a_period_without_an_end_goes_on(tmp_path: Path) -> None:
    endless = HeldOutConfig(since=date(2023, 1, 1), until=None)
    later = HeldOutConfig(since=date(2031, 5, 1), until=date(2031, 6, 1))
    assert Look(tmp_path, "one", BARS, endless, NOW).count() == 1
    assert Look(tmp_path, "two", BARS, later, NOW).count() == 2


def test_real_days_are_the_same_days_wherever_their_bars_lie(tmp_path: Path) -> None:
    """Another spelling of a folder, a copy of it, an exchange: nobody looks for the first time."""
    markets = [
        MarketConfig(source="directory", directory=Path("bars")),
        MarketConfig(source="directory", directory=Path("./bars/../copy")),
        MarketConfig(source="exchange", exchange="binance", symbols=("BTCUSDT",)),
        BARS,
    ]
    for number, market in enumerate(markets, 1):
        assert Look(tmp_path, f"version {number}", market, WHOLE, NOW).count() == number
    before = {
        "version": "older",
        "since": "2023-01-01",
        "until": "2025-01-01",
        "market": "sha256:1",
    }
    with (tmp_path / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(before) + "\n")
    assert Look(tmp_path, "version 1", BARS, WHOLE, NOW).count() == 5


def test_the_same_days_of_a_synthetic_market_are_another_period(tmp_path: Path) -> None:
    made_up = MarketConfig(source="synthetic")
    other = made_up.model_copy(update={"synthetic": SyntheticConfig(seed=1)})
    assert Look(tmp_path, "one", BARS, WHOLE, NOW).count() == 1
    assert Look(tmp_path, "two", made_up, WHOLE, NOW).count() == 1
    assert Look(tmp_path, "three", other, WHOLE, NOW).count() == 1
    assert Look(tmp_path, "four", made_up, WHOLE, NOW).count() == 2
    some = BARS.model_copy(update={"symbols": ("BTCUSDT",), "finer": ("30m",)})
    assert Look(tmp_path, "five", some, WHOLE, NOW).count() == 2, "a part is no other market"


def test_the_file_keeps_every_look_beside_the_versions(tmp_path: Path) -> None:
    models = tmp_path / "not" / "there" / "yet"
    Look(models, "one", BARS, FIRST, NOW).count()
    before = (models / FILE).read_bytes()
    Look(models, "one", BARS, WHOLE, NOW).count()
    assert (models / FILE).read_bytes().startswith(before)
    first, second = (json.loads(line) for line in (models / FILE).read_text().splitlines())
    expected = {
        "version": "one",
        "at": "2026-11-24T12:00:00+00:00",
        "since": "2023-01-01",
        "until": "2024-01-01",
    }
    assert {name: first[name] for name in expected} == expected
    assert second == first | {"until": "2025-01-01"}


Days = list[tuple[int, int, int]]


@given(
    looks=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 15)), min_size=1, max_size=8
    )
)
def test_the_count_is_that_of_versions_whose_days_meet(
    looks: Days, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """(version, first day of January 2023, number of days), written one after the other."""
    models = tmp_path_factory.mktemp("models")
    days = [set(range(first, first + length)) for _, first, length in looks]
    for number, (version, first, length) in enumerate(looks):
        begin = date(2023, 1, 1).toordinal() + first
        period = HeldOutConfig(
            since=date.fromordinal(begin), until=date.fromordinal(begin + length)
        )
        met = {looks[other][0] for other in range(number + 1) if days[other] & days[number]}
        assert Look(models, f"version-{version}", BARS, period, NOW).count() == len(met)


def test_what_other_versions_tried_on_these_days_is_remembered(tmp_path: Path) -> None:
    """The newest ratios of a version count; one that never said any counts as one unknown."""
    Look(tmp_path, "one", BARS, WHOLE, NOW).count()
    Look(tmp_path, "one", BARS, WHOLE, NOW).note({"policy": 0.1, "policy dpo": 0.2})
    Look(tmp_path, "one", BARS, WHOLE, NOW).note({"policy": 0.3})
    Look(tmp_path, "two", BARS, FIRST, NOW).count()
    Look(tmp_path, "one", BARS, WHOLE, NOW).count()
    assert Look(tmp_path, "three", BARS, WHOLE, NOW).count() == 3
    expected = {"one: policy": 0.3, "one: policy dpo": 0.2, "two": None}
    assert Look(tmp_path, "three", BARS, WHOLE, NOW).tried_before() == expected
    assert Look(tmp_path, "one", BARS, WHOLE, NOW).tried_before() == {"two": None, "three": None}
    assert Look(tmp_path, "three", BARS, SECOND, NOW).tried_before() == {
        name: ratio for name, ratio in expected.items() if name != "two"
    }
    made_up = MarketConfig(source="synthetic")
    assert Look(tmp_path, "three", made_up, WHOLE, NOW).tried_before() == {}
    assert Look(tmp_path / "nothing", "three", BARS, WHOLE, NOW).tried_before() == {}


@pytest.mark.parametrize("lost", ['{"version": "two", "si', "[]", '{"version": 2}', "\xff"])
def test_a_look_whose_line_was_cut_counts_and_loses_no_other(tmp_path: Path, lost: str) -> None:
    assert Look(tmp_path, "one", BARS, FIRST, NOW).count() == 1
    with (tmp_path / FILE).open("a", encoding="latin-1") as stream:
        stream.write(lost)
    assert Look(tmp_path, "three", BARS, FIRST, NOW).count() == 3
    Look(tmp_path, "three", BARS, FIRST, NOW).note({"policy": 0.1})
    assert Look(tmp_path, "one", BARS, FIRST, NOW).tried_before() == {
        f"{FILE}, line 2": None,
        "three: policy": 0.1,
    }
