"""What is left out of a document, what is read as it was meant, and what is refused."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import InvalidRecord
from app.domain.fields import describe
from app.domain.intake.reception import Doubt, Needs, receive
from app.domain.intake.units import doubts
from app.domain.record.outcome import Outcome, OutcomeCode
from app.domain.scenario import Fault, Scenario
from tests.domain.scenarios import scenario_json

SCENARIO: TypeAdapter[Scenario] = TypeAdapter(Scenario)
NEEDS = Needs(
    frozenset(
        {("candidate", "symbol"), ("candidate", "ts"), ("plan", "targets"), ("plan", "stop")}
    ),
    counted=frozenset({("account", "positions")}),
)


def told(document: Any, needs: Needs = NEEDS) -> dict[str, Fault]:
    return {gone.field: gone.fault for gone in receive(SCENARIO, document, needs).left_out}


def test_a_sound_document_is_read_as_it_is() -> None:
    document = scenario_json()
    received = receive(SCENARIO, document, NEEDS)
    assert received == (Scenario.from_json(document), (), ())


def test_a_part_that_lacks_what_it_needs_goes_as_a_whole() -> None:
    memory = {"posterior_mean": 0.5, "variance": "?", "trades": 3, "alpha": 1, "beta": 1}
    assert told(scenario_json(candidate__pattern_memory=memory)) == {
        "candidate.pattern_memory.variance": Fault.TYPE,
        "candidate.pattern_memory": Fault.INCOMPLETE,
    }


def test_elements_go_from_the_end_and_the_others_stay() -> None:
    document = scenario_json(plan__targets=[None, 2060.0, "x", 2080.0, -1])
    received = receive(SCENARIO, document, NEEDS)
    assert received.record.plan.targets == (2060.0, 2080.0)
    assert [g.field for g in received.left_out] == [f"plan.targets[{n}]" for n in (4, 2, 0)]


def test_a_position_that_says_nothing_still_counts() -> None:
    received = receive(SCENARIO, scenario_json(account__positions=[5, {"quantity": "2"}]), NEEDS)
    first, second = received.record.account.positions or ()
    assert (first.symbol, first.quantity, second.quantity) == (None, None, 2.0)
    assert [gone.field for gone in received.left_out] == ["account.positions[0]"]


def test_more_positions_than_can_be_read_are_not_known_rather_than_fewer() -> None:
    document = scenario_json(account__positions=[{"symbol": "A"}] * 257)
    received = receive(SCENARIO, document, NEEDS)
    assert received.record.account.positions is None
    assert [gone.field for gone in received.left_out] == ["account.positions"]


def test_what_is_needed_is_refused_with_everything_else_that_is_wrong() -> None:
    with pytest.raises(ValidationError) as refused:
        receive(SCENARIO, scenario_json(plan__targets=[-1], candidate__rsi=200), NEEDS)
    assert [(fault["loc"][-1], fault["type"]) for fault in refused.value.errors()] == [
        (0, "greater_than"),
        ("targets", "too_short"),
        ("rsi", "left_out"),
    ]
    with pytest.raises(ValidationError):
        receive(SCENARIO, scenario_json(plan__stop="far"), NEEDS)
    nothings: tuple[Any, ...] = (None, [], "text", 7)
    for nothing in nothings:
        with pytest.raises(ValidationError):
            receive(SCENARIO, nothing, NEEDS)


def test_a_document_that_is_mostly_faults_is_refused() -> None:
    ages = {"ages": {f"no_field_{number}": 1 for number in range(300)}}
    with pytest.raises((ValidationError, InvalidRecord)):
        receive(SCENARIO, scenario_json() | ages, NEEDS)


def test_a_doubtful_value_goes_and_one_that_is_needed_is_refused_with_the_likely_unit() -> None:
    def of_rsi(s: Scenario) -> list[Doubt]:
        return [Doubt(("candidate", "rsi"), "likely a share")] if s.candidate.rsi else []

    [gone] = receive(SCENARIO, scenario_json(), NEEDS, of_rsi).left_out
    assert (gone.field, gone.value, gone.why, gone.fault) == (
        "candidate.rsi",
        "56.2",
        "likely a share",
        Fault.UNIT,
    )
    with pytest.raises(ValidationError, match="likely money"):
        receive(
            SCENARIO, scenario_json(), NEEDS, lambda s: [Doubt(("plan", "stop"), "likely money")]
        )


def test_what_was_made_of_something_else_is_not_doubted() -> None:
    """A quantity that nobody sent, for a notional was; and a place within what is a text."""
    document = scenario_json()
    document["candidate"].pop("rsi", None)

    def of_places_not_sent(s: Scenario) -> list[Doubt]:
        return [Doubt(("candidate", "rsi"), "made"), Doubt(("candidate", "symbol", "x"), "within")]

    received = receive(SCENARIO, document, NEEDS, of_places_not_sent)
    assert received == (Scenario.from_json(document), (), ())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
places = st.sampled_from(
    [(section, name) for section, fields in scenario_json().items() for name in fields]
    + [("candidate", "volume_profile"), ("candidate", "extra"), ("account", "positions")]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(places, anything), max_size=4))
def test_whatever_a_field_holds_the_rest_is_read_or_what_is_needed_is_named(
    changes: list[tuple[tuple[str, str], Any]],
) -> None:
    document = scenario_json()
    for (section, name), value in changes:
        document[section][name] = value
    before = copy.deepcopy(document)
    try:
        received = receive(SCENARIO, document, NEEDS)
    except (ValidationError, InvalidRecord):
        return
    finally:
        assert str(document) == str(before), "what was sent is not changed"
    assert Scenario.from_json(received.record.as_json()) == received.record


def test_a_list_is_short_of_elements_only_when_none_of_them_can_be_read() -> None:
    received = receive(SCENARIO, scenario_json(plan__targets=["2060", "2080.5"]), NEEDS)
    assert received.record.plan.targets == (2060.0, 2080.5)
    alone = receive(SCENARIO, scenario_json(plan__targets=2060.0), NEEDS)
    assert alone.record.plan.targets == (2060.0,)


def test_what_stands_for_a_text_is_written_whatever_its_numbers() -> None:
    sent = scenario_json(candidate__btc_trend="up")
    sent["candidate"]["pattern"] = [-9_223_372_036_854_775_809, "\u5e01", "\ud800"]
    received = receive(SCENARIO, sent, NEEDS)
    assert Scenario.from_json(received.record.as_json()) == received.record
    sent["candidate"]["pattern"] = [-9_223_372_036_854_775_809, "\u5e01"]
    pattern = receive(SCENARIO, sent, NEEDS).record.candidate.pattern
    assert pattern == '[-9223372036854775809,"\u5e01"]'


def test_a_size_in_money_may_be_a_text_too() -> None:
    document = scenario_json(plan__quantity=..., plan__notional="500", plan__entry="2000")
    received = receive(SCENARIO, document, NEEDS)
    assert received.record.plan.quantity == 0.25
    assert {each.field for each in received.coerced} == {"plan.notional", "plan.entry"}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("candidate__volatility_pct", 55.0, "in per cent it would be 0.55"),
        ("account__drawdown_fraction", 12.5, "in per cent it would be 0.125"),
        ("account__day_pnl_fraction", -2.1, "in per cent it would be -0.021"),
        ("candidate__confidence", 71.0, "it would be 7.1"),
        ("market__bar_seconds", 3_600_000.0, "in milliseconds it would be 3600"),
    ],
)
def test_a_number_beyond_its_range_is_told_in_the_unit_that_it_fits(
    path: str, value: float, says: str
) -> None:
    [gone] = receive(SCENARIO, scenario_json(**{path: value}), NEEDS).left_out
    assert says in gone.why


def test_what_is_mended_is_what_was_sent_and_never_what_a_validator_made_of_it() -> None:
    adapter: TypeAdapter[Outcome] = TypeAdapter(Outcome)
    document = {"arm": "agent", "outcome": "w" * 300, "exit_reason": "r" * 300}
    received = receive(adapter, document, Needs(frozenset({("arm",)})))
    assert received.record.outcome_word == "w" * 200
    assert [each.field for each in received.coerced] == ["exit_reason"]
    shouted = receive(adapter, {"arm": "agent", "outcome": "SL"}, Needs(frozenset({("arm",)})))
    assert (shouted.record.outcome, shouted.record.outcome_word) == (OutcomeCode.SL, None)


def test_doubts_that_never_end_end_the_reading() -> None:
    names = ("score", "score_threshold", "confidence", "rsi", "atr", "volatility_pct", "btc_trend")
    more = ("news_severity", "time_to_news_minutes", "macro_news_safe", "spread_bps", "adx")
    further = ("di_plus", "di_minus", "hurst", "near_support", "near_resistance", "ml_probability")

    def of_the_first(record: Scenario) -> list[Doubt]:
        told = [n for n in (*names, *more, *further) if getattr(record.candidate, n) is not None]
        return [Doubt(("candidate", told[0]), "in another unit, as it seems")] if told else []

    numbers = dict.fromkeys((f"candidate__{name}" for name in ("adx", *further)), 0.5)
    numbers |= {"candidate__near_support": True, "candidate__near_resistance": True}
    with pytest.raises(InvalidRecord, match="too much of it cannot be used"):
        receive(SCENARIO, scenario_json(**numbers), NEEDS, of_the_first)


def test_what_goes_with_the_place_that_holds_it_is_told_once() -> None:
    adapter = TypeAdapter(dict[str, int | list[int]])
    received = receive(adapter, {"a": ["x"], "b": 1}, Needs(frozenset()))
    assert received.record == {"b": 1}
    assert [gone.field for gone in received.left_out] == ["a"]


def test_of_free_keys_those_that_readers_of_json_do_not_keep_go() -> None:
    received = receive(SCENARIO, scenario_json(candidate__extra={"a": 2**60, "b": 1}), NEEDS)
    assert received.record.candidate.extra == {"b": 1}
    assert [gone.field for gone in received.left_out] == ["candidate.extra.a"]


def test_keys_of_no_field_stay_beside_where_there_is_a_place_for_them() -> None:
    needs = Needs(frozenset({("arm",), ("outcome",)}), extras=frozenset({()}))
    document = {"arm": "agent", "outcome": "sl", "extra": "none", "venue": "x", "fill": 7}
    received = receive(TypeAdapter(Outcome), document, needs)
    assert received.record.extra == {"venue": "x", "fill": 7}
    assert {each.field for each in received.coerced} == {"venue", "fill"}


def test_a_key_of_no_field_where_there_is_no_place_for_it_is_unknown() -> None:
    document = scenario_json()
    document["plan"] |= {"leverage": 3}
    assert told(document) == {"plan.leverage": Fault.UNKNOWN}


def test_a_list_that_is_of_no_use_without_an_element_goes_as_a_whole() -> None:
    needs = Needs(NEEDS.fields, whole=frozenset({("account", "positions")}))
    received = receive(SCENARIO, scenario_json(account__positions=[5]), needs)
    assert received.record.account.positions is None
    assert [gone.field for gone in received.left_out] == ["account.positions"]


def test_a_time_without_an_offset_is_utc_also_where_the_session_is_not_told() -> None:
    document = scenario_json(candidate__ts="2026-11-23T09:00:00", candidate__session=...)
    document["market"].pop("bar_closed_at", None)
    received = receive(SCENARIO, document, NEEDS)
    assert received.record.as_of == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert [each.field for each in received.coerced] == ["candidate.ts"]
    document["candidate"]["ts"] = "yesterday"
    with pytest.raises(ValidationError) as refused:
        receive(SCENARIO, document, NEEDS)
    assert describe(refused.value.errors()).startswith("candidate.ts: ")
    assert "session" not in describe(refused.value.errors())


@pytest.mark.parametrize("notional", [-500, 0, 10**400, True, float("inf"), "400 USDT", "inf"])
def test_a_size_that_is_none_is_named_as_it_was_sent(notional: object) -> None:
    document = scenario_json(plan__quantity=..., plan__notional=notional)
    with pytest.raises(ValidationError) as refused:
        receive(SCENARIO, document, NEEDS)
    assert "notional: a positive number" in describe(refused.value.errors())
    beside = receive(SCENARIO, scenario_json(plan__notional=notional), NEEDS)
    assert [gone.field for gone in beside.left_out] == ["plan.notional"]


WHOLE = Needs(NEEDS.fields, NEEDS.counted, whole=frozenset({("plan", "exits")}))


@pytest.mark.parametrize(
    ("exits", "meant", "fields"),
    [
        ({"kind": "Fixed", "hours": 9.0}, {"kind": "fixed"}, ["plan.exits"]),
        ({"kind": "time", "hours": "24"}, {"kind": "time", "hours": 24.0}, ["plan.exits.hours"]),
    ],
)
def test_what_goes_as_a_whole_is_first_read_as_it_is_meant(
    exits: dict[str, Any], meant: dict[str, Any], fields: list[str]
) -> None:
    received = receive(SCENARIO, scenario_json(plan__exits=exits), WHOLE)
    told = received.record.plan.exits
    assert told is not None
    assert meant.items() <= told.as_json().items()
    assert [each.field for each in received.coerced] == fields
    assert received.left_out == ()


@pytest.mark.parametrize(
    ("exits", "why"),
    [
        (
            {"kind": "freqtrade", "use_exit_signal": True},
            "hours: Field required; use_exit_signal: Extra inputs are not permitted",
        ),
        ({"kind": "time", "hours": 1000}, "hours: Input should be less than or equal to 720"),
        (
            {"kind": "time", "hours": "24", "stops": 1},
            "hours: Input should be a valid number; stops",
        ),
        ({"kind": "moon"}, "Input tag 'moon' found"),
        ({"minimal_roi": {}}, "Unable to extract tag"),
        (7, "Input should be a valid dictionary"),
        (None, None),
    ],
)
def test_of_what_goes_as_a_whole_the_part_at_fault_is_named(exits: Any, why: str | None) -> None:
    received = receive(SCENARIO, scenario_json(plan__exits=exits), WHOLE)
    assert received.record.plan.exits is None
    assert [gone.field for gone in received.left_out] == (["plan.exits"] if why else [])
    for gone in received.left_out:
        assert gone.why.startswith(str(why))
        assert "per cent" not in gone.why


def test_a_bar_that_closes_after_the_candidate_is_left_out_alone() -> None:
    document = scenario_json(market__bar_closed_at="2026-11-23T09:00:01Z")
    [gone] = receive(SCENARIO, document, NEEDS).left_out
    assert (gone.field, gone.fault) == ("market.bar_closed_at", Fault.TIME)
    assert "the last *complete* bar" in gone.why


def test_elements_that_say_that_there_is_nothing_go_and_are_told_as_read() -> None:
    flat = {"symbol": "BTCUSDT", "quantity": 0}
    held = {"symbol": "ETHUSDT", "quantity": 0.5, "entry": 2000.0}
    document = scenario_json(account__positions=[flat, held, flat | {"quantity": "0"}])
    received = receive(SCENARIO, document, NEEDS, doubts)
    assert [p.symbol for p in received.record.account.positions or ()] == ["ETHUSDT"]
    assert received.left_out == ()
    assert {each.field: each.taken for each in received.coerced if each.taken is None} == {
        "account.positions[2]": None,
        "account.positions[0]": None,
    }
    none = receive(SCENARIO, scenario_json(account__positions=[flat]), NEEDS, doubts)
    assert none.record.account.positions == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [("candidate__score", 1e9), ("candidate__volatility_pct", 1.0000001), ("candidate__rsi", 560)],
)
def test_no_unit_is_named_where_none_is_likely(path: str, value: float) -> None:
    for gone in receive(SCENARIO, scenario_json(**{path: value}), NEEDS).left_out:
        assert "it would be" not in gone.why


def test_a_quantity_without_end_is_refused_whatever_it_was_made_of() -> None:
    document = scenario_json(plan__quantity=..., plan__notional="1e308")
    with pytest.raises(ValidationError, match=r"notional: a positive number .* 1e18 at most"):
        receive(SCENARIO, document, NEEDS, doubts)


def test_a_number_without_end_is_left_out_where_a_decision_can_do_without() -> None:
    received = receive(SCENARIO, scenario_json(candidate__atr=1e160), NEEDS, doubts)
    assert received.record.candidate.atr is None
    assert [left.field for left in received.left_out] == ["candidate.atr"]
