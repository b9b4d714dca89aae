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
from training.judging.gate.looks import FILE, count_look, note_tried, tried_before

BARS = MarketConfig()
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHOLE = HeldOutConfig()
FIRST, SECOND = (
    HeldOutConfig(since=date(year, 1, 1), until=date(year + 1, 1, 1)) for year in (2023, 2024)
)


def test_versions_count_once_each_however_often_they_are_judged(tmp_path: Path) -> None:
    assert count_look(tmp_path, "one", BARS, WHOLE, NOW) == 1
    assert count_look(tmp_path, "two", BARS, WHOLE, NOW) == 2
    assert count_look(tmp_path, "one", BARS, WHOLE, NOW) == 2
    assert count_look(tmp_path, "two", BARS, WHOLE, NOW) == 2


def test_periods_that_share_a_day_count_together_and_others_apart(tmp_path: Path) -> None:
    assert count_look(tmp_path, "one", BARS, FIRST, NOW) == 1
    assert count_look(tmp_path, "two", BARS, SECOND, NOW) == 1, (
        "one period ends where the other begins"
    )
    assert count_look(tmp_path, "three", BARS, WHOLE, NOW) == 3
    assert count_look(tmp_path, "four", BARS, FIRST, NOW) == 3, (
        "the second was only judged on the other year"
    )
    last_day = HeldOutConfig(since=date(2023, 12, 31), until=date(2024, 1, 2))
    assert count_look(tmp_path, "five", BARS, last_day, NOW) == 5
    assert (
        count_look(tmp_path, "two", BARS, HeldOutConfig(since=date(2030, 1, 1), until=None), NOW)
        == 1
    )


def test_a_period_without_an_end_goes_on(tmp_path: Path) -> None:
    assert (
        count_look(tmp_path, "one", BARS, HeldOutConfig(since=date(2023, 1, 1), until=None), NOW)
        == 1
    )
    assert (
        count_look(
            tmp_path,
            "two",
            BARS,
            HeldOutConfig(since=date(2031, 5, 1), until=date(2031, 6, 1)),
            NOW,
        )
        == 2
    )


def test_the_same_days_of_another_market_are_another_period(tmp_path: Path) -> None:
    made_up = MarketConfig(source="synthetic")
    other = made_up.model_copy(update={"synthetic": SyntheticConfig(seed=1)})
    assert count_look(tmp_path, "one", BARS, WHOLE, NOW) == 1
    assert count_look(tmp_path, "two", made_up, WHOLE, NOW) == 1
    assert count_look(tmp_path, "three", other, WHOLE, NOW) == 1
    assert count_look(tmp_path, "four", made_up, WHOLE, NOW) == 2
    some = BARS.model_copy(update={"symbols": ("BTCUSDT",), "finer": ("30m",)})
    assert count_look(tmp_path, "five", some, WHOLE, NOW) == 2, "a part of a market is no other one"


def test_the_file_keeps_every_look_beside_the_versions(tmp_path: Path) -> None:
    models = tmp_path / "not" / "there" / "yet"
    count_look(models, "one", BARS, FIRST, NOW)
    before = (models / FILE).read_bytes()
    count_look(models, "one", BARS, WHOLE, NOW)
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


Looks = list[tuple[int, int, int]]


@given(
    looks=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 15)), min_size=1, max_size=8
    )
)
def test_the_count_is_that_of_versions_whose_days_meet(
    looks: Looks, tmp_path_factory: pytest.TempPathFactory
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
        assert count_look(models, f"version-{version}", BARS, period, NOW) == len(met)


def test_what_other_versions_tried_on_these_days_is_remembered(tmp_path: Path) -> None:
    """The newest ratios of a version count; one that never said any counts as one unknown."""
    count_look(tmp_path, "one", BARS, WHOLE, NOW)
    note_tried(tmp_path, "one", BARS, WHOLE, NOW, {"policy": 0.1, "policy dpo": 0.2})
    note_tried(tmp_path, "one", BARS, WHOLE, NOW, {"policy": 0.3})
    count_look(tmp_path, "two", BARS, FIRST, NOW)
    count_look(tmp_path, "one", BARS, WHOLE, NOW)
    assert count_look(tmp_path, "three", BARS, WHOLE, NOW) == 3
    expected = {"one: policy": 0.3, "one: policy dpo": 0.2, "two": None}
    assert tried_before(tmp_path, "three", BARS, WHOLE, NOW) == expected
    assert tried_before(tmp_path, "one", BARS, WHOLE, NOW) == {"two": None, "three": None}
    assert tried_before(tmp_path, "three", BARS, SECOND, NOW) == {
        name: ratio for name, ratio in expected.items() if name != "two"
    }
    assert tried_before(tmp_path, "three", MarketConfig(source="synthetic"), WHOLE, NOW) == {}
    assert tried_before(tmp_path / "nothing", "three", BARS, WHOLE, NOW) == {}
