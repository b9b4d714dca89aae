"""What every record shares: exact numbers, clean text, times in UTC, faults named by place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from app.domain.errors import AbstainReason, InvalidRecord, Overloaded, PolicyAbstained
from app.domain.fields import FIRST, LAST, describe, exact, location, moved, shown, utc
from app.domain.record.outcome import Outcome
from app.domain.scenario import Scenario
from tests.domain.scenarios import scenario, scenario_json


def nested(depth: int) -> Any:
    """Lists in lists, so deep."""
    return [nested(depth - 1)] if depth else "innermost"


def test_free_form_json_is_stored_without_loss() -> None:
    given = {"whole": 3.0, "part": 0.1, "flag": True, "none": None, "t\x00": ("a\x01", 2**53 - 1)}
    stored = exact(given)
    assert stored == {
        "whole": 3,
        "part": 0.1,
        "flag": True,
        "none": None,
        "t ": ["a ", 9_007_199_254_740_991],
    }
    assert isinstance(stored["whole"], int)
    assert exact(nested(6)) == nested(6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(7), "nested deeper than 6 levels"),
        (float("nan"), "NaN and infinities are not JSON"),
        ([float("-inf")], "NaN and infinities are not JSON"),
        (2**53, "is beyond 2^53"),
        ({"a": -(2.0**60)}, "is beyond 2^53"),
        (b"bytes", "bytes is not JSON"),
        ({"a": {1, 2}}, "set is not JSON"),
    ],
)
def test_what_json_cannot_hold_exactly_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("^", r"\^")):
        exact(value)


def test_a_time_is_the_same_instant_in_utc_if_utc_has_it() -> None:
    karachi = timezone(timedelta(hours=5))
    assert utc(datetime(2026, 11, 23, 14, tzinfo=karachi)) == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert utc(datetime(2026, 11, 23, 14, tzinfo=karachi)).tzinfo is UTC
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        utc(datetime(1, 1, 1, tzinfo=karachi))
    with pytest.raises(InvalidRecord, match=r"candidate\.ts.*outside the years"):
        scenario(candidate__ts="0001-01-01T00:00:00+05:00")


@pytest.mark.parametrize(
    ("loc", "path"),
    [
        ((), "(whole document)"),
        (("candidate", "rsi"), "candidate.rsi"),
        (("positions", 0, "stop"), "positions[0].stop"),
        ((2, "plan"), "[2].plan"),
    ],
)
def test_a_fault_is_named_by_its_place(loc: tuple[int | str, ...], path: str) -> None:
    assert location(loc) == path


@pytest.mark.parametrize("value", [True, "3", "three"])
def test_a_whole_number_is_no_flag_and_no_text(value: object) -> None:
    with pytest.raises(InvalidRecord, match=r"open_positions: .*whole number, not a flag"):
        scenario(candidate__open_positions=value)
    assert scenario(candidate__open_positions=3.0).candidate.open_positions == 3


@pytest.mark.parametrize("value", [2**63, -(2**63), 1e300])
def test_a_whole_number_has_64_bits(value: float) -> None:
    with pytest.raises(InvalidRecord, match=r"open_positions: .*a whole number of 64 bits"):
        scenario(candidate__open_positions=value)


def test_keys_of_a_candidate_that_are_not_known_join_those_sent_as_extra() -> None:
    kept = scenario(candidate__extra={"a": 1}, candidate__b=2).candidate
    assert kept.extra == {"a": 1, "b": 2}
    with pytest.raises(InvalidRecord, match=r"candidate\.extra"):
        scenario(candidate__extra="no table", candidate__b=2)
    with pytest.raises(InvalidRecord, match="candidate: Input should be a valid dictionary"):
        Scenario.from_json(scenario_json() | {"candidate": "no table"})


def test_an_outcome_of_advice_names_its_version() -> None:
    told = {"arm": "advice", "outcome": "sl", "net_pnl": -3.0}
    with pytest.raises(InvalidRecord, match="model_version is required when arm is 'advice'"):
        Outcome.from_json(told)
    assert Outcome.from_json(told | {"model_version": "m-1"}).model_version == "m-1"
    assert Outcome.from_json(told | {"arm": "agent"}).model_version is None


def test_an_abstention_says_its_reason_and_its_detail() -> None:
    bare, detailed = (PolicyAbstained(AbstainReason.DEADLINE, detail) for detail in ("", "2.0 s"))
    assert (str(bare), bare.detail) == ("deadline", "")
    assert (str(detailed), detailed.reason) == ("deadline: 2.0 s", AbstainReason.DEADLINE)


def test_an_overload_says_when_to_come_again() -> None:
    refused = Overloaded("300 requests wait", retry_after_s=7)
    assert (str(refused), refused.retry_after_s) == ("300 requests wait", 7)


def test_what_is_shown_of_a_value_ends_at_some_depth_and_length() -> None:
    deep = shown({"a": {"b": {"c": {"d": 1}}}})
    assert "{...}" in deep
    assert "'d'" not in deep
    assert shown({n: n for n in range(9)}).endswith("7: 7, ...}")


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    max_notional: float = 1.0


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    exposure: _Inner | None = None
    rows: tuple[_Inner, ...] = ()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"exposure": {"max_notionl": 1}}, "; did you mean exposure.max_notional?"),
        ({"max_notional": 1}, "; did you mean rows.max_notional?"),
        ({"expsure": {}}, "; did you mean exposure?"),
        ({"rows": [{"max_notionl": 1}]}, "; did you mean rows.max_notional?"),
        ({"qqqq": 1}, "not permitted"),
        ({f"exposure{n}": 1 for n in range(17)}, "not permitted"),
    ],
)
def test_a_key_that_is_not_there_comes_with_the_nearest_that_is(
    document: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        _Outer.model_validate(document)
    assert describe(refused.value.errors(), _Outer).endswith(said)


def test_a_moment_is_moved_within_the_calendar_and_stops_at_its_ends() -> None:
    day = timedelta(days=1)
    assert moved(FIRST, day) == FIRST + day
    assert moved(LAST - day, -day) == LAST - 2 * day
    assert moved(FIRST + day, -2 * day) == FIRST
    assert moved(LAST - day, 2 * day) == LAST
    assert moved(FIRST, timedelta.max) == LAST
