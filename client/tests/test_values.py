"""Values of the libraries that agents use, as JSON, or named."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pydantic import BaseModel

from shadow_advisor_client.values import MAX_TEXT, TooDeep, encode

AT = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)


class Colour(Enum):
    RED = "red"


class Level(int, Enum):
    HIGH = 3


@dataclass
class Plan:
    entry: Decimal
    side: Colour


class Model(BaseModel):
    at: datetime
    plan: dict[str, float]


class Price:
    """As nautilus' own: it has both methods, and is no number."""

    def as_double(self) -> float:
        return 40010.5

    def as_decimal(self) -> Decimal:
        return Decimal("40010.5")


class OnlyDecimal:
    def as_decimal(self) -> Decimal:
        return Decimal("0.01")


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (AT, "2026-11-23T09:30:00+00:00"),
        (date(2026, 11, 23), "2026-11-23"),
        (Decimal("0.1"), 0.1),
        (Decimal("NaN"), None),
        (Decimal("-Infinity"), None),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, True, "a"), [1, True, "a"]),
        ({3}, [3]),
        (Plan(Decimal("1.5"), Colour.RED), {"entry": 1.5, "side": "red"}),
        (Model(at=AT, plan={"stop": 1.0}), {"at": AT.isoformat(), "plan": {"stop": 1.0}}),
        (Price(), 40010.5),
        (OnlyDecimal(), 0.01),
        ({Colour.RED: 1, 2: 2}, {"red": 1, "2": 2}),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array(3), 3),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.datetime64("2026-11-23T09:30:00.000000000"), "2026-11-23T09:30:00.000000000Z"),
        (np.datetime64("2026-11-23"), "2026-11-23"),
        (np.datetime64("NaT"), None),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}"[:40],
)
def test_it_is_understood(value: Any, sent: Any) -> None:
    body, left_out = encode({"x": value})
    assert (json.loads(body), left_out) == ({"x": sent}, {})


def test_pandas_is_understood() -> None:
    pandas = pytest.importorskip("pandas")
    document = {
        "na": pandas.NA,
        "nat": pandas.NaT,
        "at": pandas.Timestamp(AT),
        "series": pandas.Series([1.0, None]),
        "nullable": pandas.array([1, None], dtype="Int64"),
    }
    body, left_out = encode(document)
    assert left_out == {}
    assert json.loads(body) == {
        "na": None,
        "nat": None,
        "at": AT.isoformat(),
        "series": [1.0, None],
        "nullable": [1, None],
    }


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "object is not JSON"),
        (b"bytes", "bytes is not JSON"),
        (Price, "type is not JSON"),
        (Plan, "type is not JSON"),
        (np.zeros(1001), "more than 1000 values"),
        (np.timedelta64(5, "m"), "needs a unit"),
        (np.array(["2026-11-23"], dtype="datetime64[ns]"), "an array of times"),
    ],
    ids=["object", "bytes", "class", "dataclass", "large", "duration", "times"],
)
def test_what_is_not_understood_is_left_out_and_named(value: Any, why: str) -> None:
    body, left_out = encode({"candidate": {"rsi": 50.0, "x": value, "list": [1, value]}})
    assert json.loads(body) == {"candidate": {"rsi": 50.0, "list": [1, None]}}
    assert list(left_out) == ["candidate.x", "candidate.list[1]"]
    assert why in left_out["candidate.x"]


def test_a_circle_is_refused_as_a_whole_and_in_time() -> None:
    circle: dict[str, Any] = {}
    circle["a"] = circle["b"] = [circle]
    with pytest.raises(TooDeep, match="circle: a"):
        encode(circle)


def test_no_library_is_imported_to_know_its_values() -> None:
    assert not {"numpy", "pandas", "pydantic"} & set(vars(sys.modules[encode.__module__]))


def test_half_a_character_costs_itself_alone() -> None:
    """A text that was cut in the middle, in a language that counts in sixteen bits."""
    body, left_out = encode({"news": "up \ud83d", "\ud800": 1, "whole": "\ud83d\ude80", "rsi": 5})
    assert left_out == {}
    sent = {"news": "up \ufffd", "\ufffd": 1, "whole": "\U0001f680", "rsi": 5}
    assert json.loads(body.decode()) == sent


def test_a_whole_number_that_nothing_can_write_is_left_out_alone() -> None:
    body, left_out = encode({"rsi": 10**5000, "posts": [1, 10**5000], "adx": -(10**300)})
    assert json.loads(body) == {"posts": [1, None], "adx": -(10**300)}
    assert set(left_out) == {"rsi", "posts[1]"}


def test_a_text_that_no_message_could_hold_is_cut_and_told() -> None:
    news = "x" * 10**6
    body, left_out = encode({"candidate": {"news": news, "posts": [news], "rsi": 5.0}})
    cut = "x" * MAX_TEXT
    assert json.loads(body) == {"candidate": {"news": cut, "posts": [cut], "rsi": 5.0}}
    why = "cut from 1000000 to 20000 characters"
    assert left_out == {"candidate.news": why, "candidate.posts[0]": why}
    assert encode({"news": cut}).left_out == {}
