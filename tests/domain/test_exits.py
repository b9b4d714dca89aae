"""What an agent declares of its exits: read strictly, kept as written, never made up."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.domain.canonical import content_hash
from app.domain.exits import REPORTED, TRAIL, Barrier, Exits, Fixed, Freqtrade, Trail
from app.domain.rules.limits import Limits, changes, parse_limits
from app.domain.scenario import Fault, LeftOut, Scenario
from tests.builders import scenario

ANY: TypeAdapter[Exits] = TypeAdapter(Exits)
STRATEGY = {
    "kind": "freqtrade",
    "hours": 24.0,
    "minimal_roi": {"0": 0.04, "30": 0.02},
    "trailing_stop": True,
    "trailing_stop_positive": 0.01,
    "trailing_stop_positive_offset": 0.02,
    "trailing_only_offset_is_reached": True,
}


@pytest.mark.parametrize(
    ("document", "read"),
    [
        ({"kind": "trail"}, TRAIL),
        (
            {"kind": "trail", "hours": 12.0, "atr": [2.0], "keep": 0.5},
            Trail(hours=12, atr=(2.0,), keep=0.5),
        ),
        ({"kind": "fixed", "hours": 1.5, "target": 2}, Fixed(hours=1.5, target=2)),
        ({"kind": "time", "hours": 4.0}, Barrier(hours=4)),
        ({"kind": "reported"}, REPORTED),
    ],
)
def test_each_kind_is_read_by_its_name_and_written_as_it_was_read(
    document: dict[str, Any], read: Exits
) -> None:
    assert ANY.validate_python(document) == read
    written = read.as_json()
    assert ANY.validate_python(written) == read
    assert {name: written[name] for name in document} == document


def test_a_roi_table_is_kept_as_freqtrade_writes_it_and_is_one_whatever_its_order() -> None:
    read = ANY.validate_python(STRATEGY)
    assert isinstance(read, Freqtrade)
    assert read.minimal_roi == ((0, 0.04), (30, 0.02))
    assert read.as_json() == STRATEGY
    other = ANY.validate_python(STRATEGY | {"minimal_roi": {30: 0.02, "0": 0.04}})
    assert (other, other.hash()) == (read, content_hash(STRATEGY))


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"kind": "martingale"}, "kind"),
        ({"hours": 6.0}, "kind"),
        ({"kind": "fixed"}, "hours"),
        ({"kind": "fixed", "hours": 0.0}, "greater than 0"),
        ({"kind": "fixed", "hours": 721.0}, "720"),
        ({"kind": "fixed", "hours": 6.0, "target": 4}, "3"),
        ({"kind": "time", "hours": 6.0, "target": 1}, "Extra"),
        ({"kind": "trail", "atr": []}, "at least 1"),
        ({"kind": "trail", "atr": [1.0, 0.0]}, "greater than 0"),
        ({"kind": "trail", "keep": 1.1}, "less than or equal to 1"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": {"soon": 0.1}}, "minutes and ratios"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": {"-5": 0.1}}, "minutes and ratios"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": {"0": -1.5}}, "-1"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": 0.04}, "tuple"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": {"0": 0.1, "00": 0.2}}, "once"),
        ({"kind": "freqtrade", "hours": 6.0, "minimal_roi": [[30, 0.02], [0, 0.04]]}, "in order"),
        (
            {"kind": "freqtrade", "hours": 6.0, "trailing_stop_positive": 0.01},
            "trailing_stop is false",
        ),
        ({"kind": "freqtrade", "hours": 6.0, "use_exit_signal": True}, "use_exit_signal"),
        (
            {"kind": "freqtrade", "hours": 6.0, "trailing_only_offset_is_reached": True},
            "trailing_stop is false",
        ),
    ],
)
def test_what_could_not_be_followed_is_refused(document: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ANY.validate_python(document)


def test_hours_are_seconds_rounded_up() -> None:
    assert TRAIL.seconds == 21_600
    assert Barrier(hours=0.0001).seconds == 1
    assert Barrier(hours=1.5).seconds == 5_400


def test_the_trail_alone_reads_an_atr() -> None:
    assert TRAIL.reads_atr
    assert not any(exits.reads_atr for exits in (Fixed(hours=1), Barrier(hours=1)))


def test_a_record_without_a_declaration_has_the_hash_that_it_had_and_ends_by_the_trail() -> None:
    plain = scenario()
    assert "exits" not in plain.as_json()["plan"]
    assert plain.exits == TRAIL
    assert "exits" not in Limits(version="before").as_json()


def test_what_an_agent_sends_counts_before_its_profile_and_what_was_lost_is_not_known() -> None:
    fixed, barrier = Fixed(hours=24), Barrier(hours=8)
    plain = scenario()
    assert plain.declaring(None) is plain
    assert plain.declaring(fixed).exits == fixed
    assert plain.declaring(fixed).declaring(barrier).exits == fixed
    assert Scenario.from_json(plain.declaring(fixed).as_json()).exits == fixed
    gone = LeftOut(field="plan.exits", value="{}", why="no kind", fault=Fault.TYPE)
    lost = plain.model_copy(update={"left_out": (gone,)})
    assert lost.exits == lost.declaring(fixed).exits == REPORTED


def test_a_profile_declares_them_in_a_table() -> None:
    text = 'version = "mine"\n[exits]\nkind = "freqtrade"\nhours = 24\nminimal_roi = {"0" = 0.04}\n'
    limits = parse_limits(text, "mine.toml")
    assert limits.exits == Freqtrade(hours=24, minimal_roi=((0, 0.04),))
    assert Limits.from_json(limits.as_json()) == limits
    named = {change.name for change in changes(Limits(version="mine"), limits)}
    assert "exits.hours" in named
