"""What days of the record mean for the one who reads them."""

from __future__ import annotations

from datetime import date
from typing import Any

from app.api.explorer import story


def day(number: int, version: str, role: str, judged: int, advice_r: float) -> dict[str, Any]:
    sums = dict.fromkeys(story.SUMMED, 0) | {
        "decisions": judged,
        "judged": judged,
        "advice_r": advice_r,
    }
    return {"day": date(2026, 11, number), "model_version": version, "role": role} | sums


DAYS = [
    day(1, "a", "primary", 10, 1.0),
    day(1, "b", "shadow", 10, 5.0),
    day(2, "a", "primary", 4, 1.0),
    day(2, "a", "shadow", 6, 2.0),
    day(2, "b", "primary", 6, 3.0),
    day(2, "b", "shadow", 4, 7.0),
    day(3, "b", "primary", 10, 2.0),
    day(3, "c", "shadow", 10, 0.5),
]
"""On the second day the alias moves from a to b."""


def test_a_version_is_summed_up_over_its_roles_and_the_newest_primary_comes_first() -> None:
    told = [(each.version, each.role, each.decisions, each.advice_r) for each in story.worths(DAYS)]
    assert told == [
        ("b", "primary", 30, 17.0),
        ("a", "primary", 20, 4.0),
        ("c", "shadow", 10, 0.5),
    ]


def test_the_primarys_days_are_whoevers_was_primary_each_decision_once() -> None:
    of_primary = story.by_day(row for row in DAYS if row["role"] == story.PRIMARY)
    assert [(row["day"].day, row["judged"], row["advice_r"]) for row in of_primary] == [
        (1, 10, 1.0),
        (2, 10, 4.0),
        (3, 10, 2.0),
    ]
