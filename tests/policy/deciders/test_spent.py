"""A day's budget: counted before it is spent, kept across restarts, given once a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.policy.deciders.spent import Budget

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def taken(budget: Budget, now: datetime, tries: int = 5) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_a_clock_that_goes_back_over_midnight_gives_no_day_twice(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "m.json", 2, None)
    midnight = NOON.replace(hour=0) + DAY
    before, behind = midnight - timedelta(seconds=1), midnight + timedelta(seconds=1)
    assert [taken(budget, at) for at in (NOON, before, behind, before, behind)] == [2, 0, 2, 0, 0]
    assert taken(Budget(tmp_path / "m.json", 2, None), before) == 0, "nor a restart"
    assert taken(budget, behind + DAY) == 2


def test_a_day_far_ahead_is_a_wrong_clocks_and_ends_nothing_for_years(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "m.json", 2, None)
    assert taken(budget, NOON + 1000 * DAY) == 2
    assert taken(budget, NOON) == 2


def test_processes_that_share_the_file_share_the_budget(tmp_path: Path) -> None:
    one, other = (Budget(tmp_path / "m.json", 5, 1.0) for _ in range(2))
    assert [each.take(NOON) for each in (one, other, one, other)] == [True] * 4
    assert taken(one, NOON) + taken(other, NOON) == 1
    one.add(0.75)
    other.add(0.25)
    assert not any(each.take(NOON + DAY) is False for each in (one, other))
    assert [each.take(NOON) for each in (one, other)] == [True, True], "a clock that goes back"
