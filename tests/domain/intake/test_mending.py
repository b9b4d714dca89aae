"""What a value meant that is written in another way than the schema, and what nobody can tell."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import TypeAdapter
from pydantic_core import ErrorDetails

from app.domain.intake.mending import mended
from app.domain.intake.reception import Needs, Received, receive
from app.domain.record.outcome import Outcome, OutcomeSource
from app.domain.scenario import Scenario
from tests.domain.scenarios import AS_OF, scenario_json

OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
SCENARIO: TypeAdapter[Scenario] = TypeAdapter(Scenario)
NEEDS = Needs(frozenset({("arm",), ("outcome",)}))


def received(**fields: Any) -> Received[Outcome]:
    return receive(OUTCOME, {"arm": "agent", "outcome": "sl", **fields}, NEEDS)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (False, None),
        (True, "true"),
        (7, "7"),
        (1.5, "1.5"),
        ({"a": [1]}, '{"a":[1]}'),
        (["x"], '["x"]'),
    ],
)
def test_a_text_is_written_from_what_was_meant(sent: Any, taken: str | None) -> None:
    got = received(exit_reason=sent)
    assert got.record.exit_reason == taken
    assert [(each.field, each.taken) for each in got.coerced] == [("exit_reason", taken)]
    assert got.left_out == ()


def test_what_can_be_no_text_is_left_out() -> None:
    got = received(exit_reason=AS_OF)
    assert got.record.exit_reason is None
    assert [gone.field for gone in got.left_out] == ["exit_reason"]


def test_a_flag_that_says_neither_yes_nor_no_is_left_out() -> None:
    assert received(exogenous_skip="yes").record.exogenous_skip is True
    got = received(exogenous_skip="maybe")
    assert got.record.exogenous_skip is False
    assert [gone.field for gone in got.left_out] == ["exogenous_skip"]


def test_of_free_keys_that_are_too_many_the_first_stay() -> None:
    got = received(extra={f"k{n}": n for n in range(70)})
    assert list(got.record.extra) == [f"k{n}" for n in range(64)]
    assert [each.why for each in got.coerced] == ["cut from 70 to 64 keys"]


def test_a_time_without_an_offset_is_read_as_utc() -> None:
    naive = AS_OF.replace(tzinfo=None)
    for sent in (naive.isoformat(), naive):
        assert received(exit_time=sent).record.exit_time == AS_OF


@pytest.mark.parametrize("sent", ["no time", 5])
def test_what_can_be_no_time_is_nobodys_guess(sent: Any) -> None:
    fault = {"type": "timezone_aware", "loc": ("exit_time",), "msg": "", "input": sent}
    assert mended(cast(ErrorDetails, fault)) is None


@pytest.mark.parametrize("sent", [{"a": 1}, True, None])
def test_what_is_no_single_value_is_no_list_of_one(sent: Any) -> None:
    fault = {"type": "tuple_type", "loc": ("targets",), "msg": "", "input": sent}
    assert mended(cast(ErrorDetails, fault)) is None


def test_a_whole_number_that_is_a_text_is_read_and_half_a_one_is_left_out() -> None:
    for sent, taken in (("3", 3), ("3.5", None), ("three", None)):
        got = receive(SCENARIO, scenario_json(candidate__open_positions=sent), Needs(frozenset()))
        assert got.record.candidate.open_positions == taken
        assert bool(got.left_out) == (taken is None)


def test_a_word_of_a_closed_set_is_read_however_it_is_written() -> None:
    assert received(source=" Simulated ").record.source is OutcomeSource.SIMULATED
    for sent in ("made up", 5, "x" * 65):
        got = received(source=sent)
        assert got.record.source is OutcomeSource.REPORTED
        assert [gone.field for gone in got.left_out] == ["source"]


def test_one_number_where_a_list_belongs_is_a_list_of_one() -> None:
    needs = Needs(frozenset({("candidate", "symbol"), ("candidate", "ts"), ("plan", "targets")}))
    got = receive(SCENARIO, scenario_json(plan__targets=2060.0), needs)
    assert got.record.plan.targets == (2060.0,)
    assert [each.field for each in got.coerced] == ["plan.targets"]
