"""An advice from a rough reading stands where every exact one within its reach says the same."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import AbstainReason
from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Abstention, Advice, Decision, Reading, conclude
from app.domain.record.settled import settled
from app.domain.rules.limits import ForetoldRange, Limits
from tests import builders as build
from tests.domain.scenarios import LIMITS


def decided(
    reading: Reading, limits: Limits = LIMITS, calibration: Calibration | None = None
) -> tuple[Decision, Advice]:
    """A decision on the plain scenario by one reading."""
    decision = build.decision(limits=limits)
    version = build.version(calibration=calibration)
    advice = conclude(
        decision.scenario, reading, version, limits, state=decision.state, now=decision.evaluated_at
    )
    return decision.model_copy(update={"advices": (advice,)}), advice


def rough(reading: Reading, within: float, **changes: object) -> Reading:
    return reading.model_copy(update={"within": within} | changes)


def confident(**least: float) -> Limits:
    """Limits that ask this of a model."""
    model = LIMITS.model_confidence.model_copy(update=least)
    return LIMITS.model_copy(update={"model_confidence": model})


def ahead(nats: float) -> tuple[float, ...]:
    """H before A by so much, the others far behind."""
    top = {"H": -0.5, "A": -0.5 - nats}
    return tuple(top.get(label, -9.0) for label in LABELS)


def test_exact_readings_and_abstentions_are_settled() -> None:
    assert settled(*decided(build.reading("H", 0.11)))
    silent = build.decision(label=Abstention(AbstainReason.DEADLINE))
    assert settled(silent, silent.primary)


def test_where_the_foretold_range_sets_a_size_only_an_exact_reading_will_do() -> None:
    by = LIMITS.model_copy(update={"foretold_range": ForetoldRange(when_missing="pass")})
    sure = Reading(log_probabilities=ahead(2.0))
    assert settled(*decided(sure, by))
    assert settled(*decided(rough(sure, 0.001)))
    assert not settled(*decided(rough(sure, 0.001), by))


@pytest.mark.parametrize(("within", "stands"), [(0.009, True), (0.011, False)])
def test_an_action_has_to_be_ahead_by_twice_of_what_a_label_may_be_off(
    within: float, stands: bool
) -> None:
    reading = rough(Reading(log_probabilities=ahead(0.02)), within)
    assert settled(*decided(reading)) is stands
    warm = Calibration(temperature=3.0)
    assert settled(*decided(reading, calibration=warm)) is stands, "scores shrink, and so does that"


@pytest.mark.parametrize(("far", "stands"), [(0.02, False), (2.0, True)])
def test_without_the_text_it_has_to_be_ahead_as_well(far: float, stands: bool) -> None:
    reading = Reading(log_probabilities=ahead(2.0), without_text=ahead(far))
    assert settled(*decided(rough(reading, 0.02))) is stands


# 0.91 on H and 0.01 on each other label is a mass of 1; a thousandth off moves it by 0.001.
@pytest.mark.parametrize(
    ("least", "stands"), [(0.9985, True), (0.9995, False), (1.0005, False), (1.0015, True)]
)
def test_the_mass_on_labels_stays_on_its_side(least: float, stands: bool) -> None:
    reading = rough(build.reading("H"), 0.001)
    asked = Calibration().model_copy(update={"min_label_mass": least})
    assert settled(*decided(reading, calibration=asked)) is stands


# Approving has 0.99, a logit of 4.595, which labels that are off by w move by 2 w. 0.98 is 3.892.
@pytest.mark.parametrize(("within", "stands"), [(0.34, True), (0.36, False)])
def test_the_rule_of_confidence_says_the_same_at_both_ends(within: float, stands: bool) -> None:
    reading = rough(build.reading("H"), within)
    assert settled(*decided(reading, confident(min_approve_probability=0.98))) is stands


# A win has 0.4, a logit of -0.405; 0.38 is -0.490: 0.0422 twice.
@pytest.mark.parametrize(("within", "stands"), [(0.042, True), (0.043, False)])
def test_so_does_the_rule_of_the_chance_to_win(within: float, stands: bool) -> None:
    asked = Calibration(outlook=build.outlook_calibration())
    reading = build.answering(build.reading("H"), win=(0.6, 0.4), stopped=(0.7, 0.3))
    limits = confident(min_win_probability=0.38)
    assert settled(*decided(rough(reading, within), limits, asked)) is stands


def test_where_chances_pass_one_together_nothing_is_settled() -> None:
    asked = Calibration(outlook=build.outlook_calibration())
    reading = build.answering(build.reading("H"), win=(0.5, 0.5), stopped=(0.5, 0.5))
    assert not settled(*decided(rough(reading, 0.01), calibration=asked))
    apart = build.answering(build.reading("H"), win=(0.6, 0.4), stopped=(0.5, 0.5))
    assert settled(*decided(rough(apart, 0.01), calibration=asked))
    alone = build.answering(build.reading("H"), win=(0.5, 0.5))
    assert settled(*decided(rough(alone, 0.01), calibration=asked)), "no stop, no sum"


errors = st.lists(st.floats(-1, 1), min_size=10, max_size=10)
labels = st.lists(st.floats(-3, -0.1), min_size=10, max_size=10).map(tuple)
chance = st.floats(0.05, 0.95)


@settings(max_examples=150)
@given(labels, labels, errors, errors, chance, chance, st.tuples(*[st.floats(-1, 1)] * 4))
def test_what_is_settled_no_exact_reading_within_reach_changes(
    whole: tuple[float, ...],
    bare: tuple[float, ...],
    moved: list[float],
    moved_bare: list[float],
    win: float,
    stopped: float,
    answers: tuple[float, float, float, float],
) -> None:
    within = 0.05
    asked = Calibration(outlook=build.outlook_calibration(), min_label_mass=0.3)
    limits = confident(min_approve_probability=0.6, min_win_probability=0.4, min_expected_r=0.05)
    told = build.answering(build.reading(), win=(1 - win, win), stopped=(1 - stopped, stopped))
    reading = rough(
        told,
        within,
        log_probabilities=whole,
        without_text=bare,
        questions_without_text=told.questions,
    )
    decision, advice = decided(reading, limits, asked)

    def off(values: tuple[float, ...], by: list[float]) -> tuple[float, ...]:
        return tuple(value + within * error for value, error in zip(values, by, strict=True))

    exact = {
        name: off(values, list(answers[2 * turn : 2 * turn + 2]))
        for turn, (name, values) in enumerate(told.questions.items())
    }
    other = reading.model_copy(
        update={
            "log_probabilities": off(whole, moved),
            "without_text": off(bare, moved_bare),
            "questions": exact,
            "questions_without_text": exact,
            "within": None,
        }
    )
    if settled(decision, advice):
        _, after = decided(other, limits, asked)
        assert (after.status, after.action, after.quantity, after.stop, after.text_effect) == (
            advice.status,
            advice.action,
            advice.quantity,
            advice.stop,
            advice.text_effect,
        )


def test_a_rough_reading_says_so_in_the_record_and_old_ones_read_as_before() -> None:
    reading = rough(build.reading(), 0.01)
    assert Reading.from_json(reading.as_json()) == reading
    assert reading.as_json()["within"] == 0.01
    assert math.isclose(reading.bare.within or 0.0, 0.01)
    assert "within" not in build.reading().as_json()
