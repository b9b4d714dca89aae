"""From a reading to advice, and back from the record."""

from __future__ import annotations

import math
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.canonical import decision_id
from app.domain.errors import AbstainReason, InvalidRecord, ManifestMismatch, PolicyAbstained
from app.domain.model.actions import LABELS
from app.domain.model.inquiry import Exchange
from app.domain.model.manifest import Calibration, ModelManifest
from app.domain.model.outlook import OutlookCalibration, QuestionCalibration
from app.domain.model.prompt import Prompt
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.decision import (
    Abstention,
    Advice,
    AdviceStatus,
    Decision,
    Proposal,
    Reading,
    Role,
    TextEffect,
    Version,
    cautious,
    conclude,
    graded,
    prepare,
    propose,
    review_control,
)
from app.domain.record.event import AgentActionReport, Event, EventKind, StateChange
from app.domain.rules.case import TradingState
from app.domain.rules.limits import ModelConfidence
from app.domain.rules.vetoes import VetoCode
from app.domain.scenario import Scenario
from tests.domain.scenarios import AS_OF, LIMITS, sane_scenarios, scenario, scenarios

HASH = "sha256:" + "0" * 64
FLAT = Reading(log_probabilities=(math.log(0.1),) * 10)
readings = st.lists(st.floats(-50, 0), min_size=10, max_size=10).map(
    lambda v: Reading(log_probabilities=tuple(v))
)


def version(calibration: Calibration | None = None, role: Role = Role.PRIMARY) -> Version:
    return Version("test-1", HASH, calibration or Calibration(), role)


def decide(
    s: Scenario, reading: Reading | Abstention, calibration: Calibration | None = None
) -> Decision:
    prompt = prepare(s)
    advice = conclude(
        s, reading, version(calibration), LIMITS, state=TradingState.ACTIVE, now=AS_OF
    )
    return Decision(
        decision_id=decision_id("r-1"),
        request_id="r-1",
        request_hash=s.hash(),
        received_at=AS_OF,
        evaluated_at=AS_OF,
        state=TradingState.ACTIVE,
        scenario=s,
        prompt=prompt,
        prompt_hash=prompt.hash,
        limits=LIMITS,
        limits_hash=LIMITS.hash(),
        control_review=review_control(s, LIMITS, TradingState.ACTIVE, AS_OF),
        advices=(advice,),
    )


@pytest.mark.parametrize("within", [0.0, -0.1])
def test_a_reading_is_within_more_than_nothing_of_an_exact_one(within: float) -> None:
    assert FLAT.from_json(FLAT.as_json() | {"within": 0.075}).within == 0.075
    with pytest.raises(InvalidRecord, match="within"):
        FLAT.from_json(FLAT.as_json() | {"within": within})


def test_a_proposal_is_the_softmax_over_labels_less_their_bias() -> None:
    reading = Reading(log_probabilities=(math.log(0.4), math.log(0.2), *[math.log(0.05)] * 8))
    plain = propose(reading, Calibration())
    assert plain.label == "A"
    assert plain.probabilities[:2] == pytest.approx((0.4, 0.2))
    assert plain.label_mass == pytest.approx(1.0)
    bias = (math.log(0.4), math.log(0.1), *[math.log(0.05)] * 8)
    corrected = propose(reading, Calibration(bias=bias))
    assert corrected.label == "B"
    assert corrected.probabilities[:2] == pytest.approx((1 / 11, 2 / 11))
    assert corrected.approve_probability == pytest.approx(10 / 11)
    colder = propose(reading, Calibration(bias=bias, temperature=0.5))
    assert colder.probabilities[1] == pytest.approx(4 / 13)


def said(label: str, chance: float = 0.8) -> tuple[float, ...]:
    """Log-probabilities with most on one label."""
    rest = math.log((1 - chance) / 9)
    return tuple(math.log(chance) if name == label else rest for name in LABELS)


@pytest.mark.parametrize(
    ("whole", "bare", "counts", "effect"),
    [
        ("A", "A", "reject", TextEffect.NONE),
        ("J", "A", "reject", TextEffect.HELD_BACK),
        ("A", "J", "reject", TextEffect.REFUSED),
        ("J", "J", "approve_r1.00_s2.5", TextEffect.NONE),
        ("C", "J", "approve_r0.25_s1.5", TextEffect.RESIZED),
        ("J", "C", "approve_r0.25_s1.5", TextEffect.RESIZED),
        ("I", "J", "approve_r1.00_s2.5", TextEffect.RESIZED),
        # E buys more than J, 0.5 / 20 against 1 / 50, and risks half of it.
        ("E", "J", "approve_r0.50_s1.0", TextEffect.RESIZED),
    ],
    ids="with {0}".format,
)
def test_text_may_refuse_or_lessen_and_nothing_else(
    whole: str, bare: str, counts: str, effect: TextEffect
) -> None:
    """A label each with and without text; at equal risk (I and J risk all) the one without."""
    reading = Reading(log_probabilities=said(whole), without_text=said(bare))
    advice = decide(scenario(), reading).primary
    assert (advice.action, advice.text_effect) == (counts, effect)
    assert advice.reading == reading, "both are recorded"
    assert cautious(reading, Calibration()).action.name == counts


def test_a_text_refuses_what_risks_less_than_a_unit_of_the_currency() -> None:
    small = scenario(plan__quantity=0.01)
    reading = Reading(log_probabilities=said("A"), without_text=said("J"))
    refused = decide(small, reading).primary
    assert (refused.approve, refused.text_effect) == (False, TextEffect.REFUSED)
    alone = decide(small, Reading(log_probabilities=said("J"))).primary
    assert at_risk(alone, small) == pytest.approx(0.3)


def between(approve: float, reject: float) -> tuple[float, ...]:
    """So much on H and on A; what is left on the others alike."""
    rest = math.log((1 - approve - reject) / 8)
    return tuple(
        math.log({"H": approve, "A": reject}[name]) if name in "AH" else rest for name in LABELS
    )


def test_text_lifts_no_veto() -> None:
    """One reading approves with 0.6 in all, the other with 0.99, and 0.7 is asked for."""
    unsure, sure = between(0.5, 0.4), between(0.95, 0.01)
    limits = LIMITS.model_copy(
        update={"model_confidence": ModelConfidence(min_approve_probability=0.7)}
    )
    for whole, bare, passes in ((sure, sure, True), (sure, unsure, False), (unsure, sure, False)):
        reading = Reading(log_probabilities=whole, without_text=bare)
        advice = conclude(
            scenario(), reading, version(), limits, state=TradingState.ACTIVE, now=AS_OF
        )
        assert advice.approve is passes
        assert advice.review is not None
        codes = [veto.code for veto in advice.review.vetoes]
        assert codes == ([] if passes else [VetoCode.MODEL_CONFIDENCE])


@given(sane_scenarios(), readings, readings, st.sampled_from([0.3, 1.0, 3.0]))
def test_no_text_makes_an_advice_riskier(
    s: Scenario, with_text: Reading, bare: Reading, temperature: float
) -> None:
    calibration = Calibration(temperature=temperature)
    alone = decide(s, bare, calibration).primary
    reading = Reading(
        log_probabilities=with_text.log_probabilities, without_text=bare.log_probabilities
    )
    both = decide(s, reading, calibration)
    assert at_risk(both.primary, s) <= at_risk(alone, s)
    if both.primary.approve:
        assert alone.approve
    if not alone.approve:
        assert both.primary.approve == alone.approve
        assert both.primary.review == alone.review
    assert Decision.from_json(both.as_json()).replayed() == both


def at_risk(advice: Advice, s: Scenario) -> float:
    if not advice.approve:
        return 0.0
    assert advice.quantity is not None
    assert advice.stop is not None
    return advice.quantity * (s.plan.entry - advice.stop)


def test_a_text_that_takes_the_mass_off_the_labels_gets_no_approval() -> None:
    silent = tuple(value - 5 for value in said("J"))
    asked = Calibration(min_label_mass=0.5)
    approving = Reading(log_probabilities=silent, without_text=said("J"))
    assert decide(scenario(), approving, asked).primary.status is AdviceStatus.ABSTAINED
    rejecting = Reading(log_probabilities=silent, without_text=said("A"))
    advice = decide(scenario(), rejecting, asked).primary
    assert (advice.status, advice.approve) == (AdviceStatus.ADVISED, False)


def test_records_written_before_texts_were_read_apart_keep_their_bytes() -> None:
    document = decide(scenario(), FLAT).as_json()
    [advice] = document["advices"]
    assert "text_effect" not in advice
    assert advice["reading"].keys() == {"log_probabilities"}


def test_a_prompt_of_an_older_version_is_held_against_its_hash_and_not_rendered_anew() -> None:
    decision = decide(scenario(), FLAT)
    prompt = Prompt("2025-1", "another system text", "another prompt")
    older = decision.model_copy(update={"prompt": prompt, "prompt_hash": prompt.hash})
    assert older.replayed() == older
    forged = older.model_copy(update={"prompt": prompt._replace(user="changed")})
    assert forged.replayed() != forged


def test_a_tie_goes_to_reject() -> None:
    assert propose(FLAT, Calibration()).label == "A"


def test_too_little_mass_on_labels_abstains() -> None:
    advice = conclude(
        scenario(),
        Reading(log_probabilities=(math.log(0.01),) * 10),
        version(Calibration(min_label_mass=0.2)),
        LIMITS,
        state=TradingState.ACTIVE,
        now=AS_OF,
    )
    assert (advice.status, advice.abstain_reason) == (
        AdviceStatus.ABSTAINED,
        AbstainReason.LABEL_MASS,
    )
    assert advice.approve is None
    assert advice.reading is not None, "what the model said is kept"


def test_exactly_the_asked_mass_on_labels_is_enough() -> None:
    read = Reading(log_probabilities=(math.log(0.05),) * 10)
    asked = Calibration(min_label_mass=read.label_mass)
    assert decide(scenario(), read, asked).primary.status is AdviceStatus.ADVISED


def test_a_proposal_of_tokens_that_hardly_occur_is_one_all_the_same() -> None:
    # exp(-1000) is 0 in floating point: differences count, not the probabilities themselves.
    reading = Reading(log_probabilities=(-1000.0, -1000.0 + math.log(3), *[-2000.0] * 8))
    proposal = propose(reading, Calibration())
    assert proposal.probabilities[:2] == pytest.approx((0.25, 0.75))
    assert (proposal.label, proposal.label_mass) == ("B", 0)


@pytest.mark.parametrize(("mass", "left"), [(None, 1.0), (0.5, 0.5)])
def test_what_a_model_elsewhere_told_counts_by_the_mass_that_fell_on_labels(
    mass: float | None, left: float
) -> None:
    exchange = Exchange(question=HASH, order=("A", "J"), seconds=0.1, label_mass=mass)
    reading = Reading.told({"A": 0.75, "J": 0.25 - 1e-12, "B": 1e-12}, exchange)
    said_of = dict(zip(LABELS, reading.log_probabilities, strict=True))
    assert math.exp(said_of["A"]) == pytest.approx(0.75 * left)
    assert math.exp(said_of["J"]) == pytest.approx(0.25 * left)
    assert said_of["B"] == said_of["C"] == math.log(1e-9), "not said, or hardly: as good as 0"
    assert reading.exchange == exchange


def test_probabilities_without_an_exchange_count_wholly() -> None:
    reading = Reading.told({"A": 0.75, "J": 0.25})
    assert reading.label_mass == pytest.approx(1.0)


def test_a_rejection_trades_nothing_and_names_itself() -> None:
    advice = decide(scenario(), FLAT).primary
    assert (advice.status, advice.approve) == (AdviceStatus.ADVISED, False)
    assert (advice.action, advice.quantity, advice.stop) == ("reject", 0, None)


def test_probabilities_of_another_action_space_are_refused() -> None:
    short = Proposal(label="A", probabilities=(0.5, 0.5), label_mass=1.0)
    with pytest.raises(ValueError, match="zip"):
        _ = short.approve_probability


@pytest.mark.parametrize(
    ("name", "allowed"), [("", False), ("x", True), ("x" * 128, True), ("x" * 129, False)]
)
def test_a_request_has_a_name_of_bounded_length(name: str, allowed: bool) -> None:
    document = decide(scenario(), FLAT).as_json() | {"request_id": name}
    if allowed:
        assert Decision.from_json(document).request_id == name
    else:
        with pytest.raises(InvalidRecord, match=r"Decision: request_id"):
            Decision.from_json(document)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"quantity": 0.0}, True),
        ({"quantity": -0.001}, False),
        ({"abstain_detail": "x" * 500}, True),
        ({"abstain_detail": "x" * 501}, False),
    ],
)
def test_advice_has_no_negative_quantity_and_no_endless_detail(
    changes: dict[str, object], allowed: bool
) -> None:
    document = decide(scenario(), FLAT).primary.as_json() | changes
    if allowed:
        assert Advice.from_json(document).as_json() == document
    else:
        with pytest.raises(InvalidRecord, match=f"Advice: {next(iter(changes))}"):
            Advice.from_json(document)


def test_an_abstention_is_no_opinion_not_a_rejection() -> None:
    advice = decide(scenario(), Abstention(AbstainReason.DEADLINE, "2.0 s")).primary
    assert (advice.approve, advice.action, advice.quantity) == (None, None, None)
    assert advice.abstain_detail == "2.0 s"
    decision = decide(scenario(), Abstention(AbstainReason.DEADLINE, "2.0 s"))
    assert decision.replayed() == decision


def test_what_a_server_sent_can_be_kept_in_postgres() -> None:
    abstained = PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, "not JSON: \x00\ud800" + "x" * 600)
    decision = decide(scenario(), Abstention.of(abstained))
    detail = decision.primary.abstain_detail
    assert detail == "not JSON:   " + "x" * 488
    assert b"u0000" not in Event.of_decision(decision).payload


@given(scenarios() | sane_scenarios(), readings | st.just(Abstention(AbstainReason.OVERLOADED)))
def test_a_record_replays_to_itself(s: Scenario, reading: Reading | Abstention) -> None:
    decision = decide(
        s, reading, Calibration(bias=tuple(0.1 * i for i in range(10)), temperature=0.7)
    )
    stored = Decision.from_json(decision.as_json())
    assert stored == decision
    assert stored.replayed() == decision
    assert stored.hash() == decision.hash()


def test_a_tampered_record_does_not_replay_to_itself() -> None:
    label = [math.log(0.02)] * 10
    label[LABELS.index("H")] = math.log(0.8)
    decision = decide(scenario(), Reading(log_probabilities=tuple(label)))
    assert decision.primary.approve
    bigger = decision.primary.model_copy(update={"quantity": 9.0})
    assert decision.model_copy(update={"advices": (bigger,)}).replayed() == decision


def test_a_report_retried_later_is_the_same_event() -> None:
    action = {"decision": True, "reason": "ok"}
    known = uuid4()
    first, second = (
        Event.of_report(
            EventKind.AGENT_ACTION,
            AgentActionReport(decision_id=known, recorded_at=at, action=action),
        )
        for at in (AS_OF, AS_OF.replace(hour=10))
    )
    assert first.key == second.key
    assert first.record().recorded_at == AS_OF  # type: ignore[union-attr]


def test_a_decision_comes_back_from_its_event() -> None:
    decision = decide(scenario(), FLAT)
    event = Event.of_decision(decision)
    assert (event.key, event.claim) == (str(decision.decision_id), decision.request_hash)
    assert event.record() == decision


def test_a_change_of_state_comes_back_from_its_event() -> None:
    change = StateChange(
        recorded_at=AS_OF, state=TradingState.HALTED, reason="test", changed_by="ops"
    )
    event = Event.of_state_change(change)
    assert (event.kind, event.claim) == (EventKind.STATE_CHANGE, change.hash())
    assert event.record() == change


@pytest.mark.parametrize("field", ["prompt_version", "action_space", "feature_schema"])
def test_a_model_made_for_something_else_is_refused(field: str) -> None:
    manifest = ModelManifest(
        model_version="m-1", base_model="b", licence="l", created_at=AS_OF, files={}
    )
    manifest.require_compatible()
    other = HASH if field == "action_space" else "1999-1"
    with pytest.raises(ManifestMismatch, match="m-1 was made for"):
        manifest.model_copy(update={field: other}).require_compatible()


def test_what_a_version_foretells_is_recorded_replayed_and_judged_by_rules() -> None:
    question = BY_NAME[QuestionName.WIN]
    asked = QuestionCalibration(question=question.hash, values=question.values, bias=(0.0, 0.0))
    calibration = Calibration(outlook=OutlookCalibration(questions={QuestionName.WIN: asked}))
    yes = {QuestionName.WIN: (math.log(0.3), math.log(0.6))}
    no = {QuestionName.WIN: (math.log(0.6), math.log(0.3))}
    reading = Reading(
        log_probabilities=said("J"),
        without_text=said("J"),
        questions=yes,
        questions_without_text=no,
    )
    decision = decide(scenario(), reading, calibration)
    outlook = decision.primary.outlook
    assert outlook is not None
    assert outlook.win_probability == pytest.approx(1 / 3), "the text may not make it likelier"
    assert outlook.expected_r is None, "nothing is said about a stop"
    read_back = Decision.from_json(decision.as_json())
    assert read_back == decision
    assert read_back.replayed() == decision
    altered = read_back.model_copy(
        update={
            "advices": (
                decision.primary.model_copy(
                    update={"outlook": outlook.model_copy(update={"win_probability": 0.6})}
                ),
            )
        }
    )
    assert altered.replayed() != altered

    def codes(**bounds: float) -> list[VetoCode]:
        limits = LIMITS.model_copy(update={"model_confidence": ModelConfidence(**bounds)})
        advice = conclude(
            scenario(),
            reading,
            version(calibration),
            limits,
            state=TradingState.ACTIVE,
            now=AS_OF,
        )
        return [veto.code for veto in advice.review.vetoes] if advice.review else []

    assert codes() == codes(min_win_probability=0.33) == []
    assert codes(min_win_probability=0.34) == [VetoCode.MODEL_CONFIDENCE]
    assert codes(min_expected_r=-9.0) == [VetoCode.MODEL_CONFIDENCE], "it is not known"


def test_records_of_versions_that_answer_no_question_are_written_as_before() -> None:
    advice = decide(scenario(), FLAT).primary.as_json()
    assert "outlook" not in advice
    assert advice["reading"].keys() == {"log_probabilities"}
    assert advice["calibration"].keys() == {"bias", "temperature", "min_label_mass"}
    limits = LIMITS.as_json()["model_confidence"]
    assert limits.keys() == {"when_missing", "min_approve_probability"}


def test_a_version_that_was_trained_with_another_question_is_not_served() -> None:
    question = BY_NAME[QuestionName.WIN]
    other = QuestionCalibration(question=HASH, values=question.values, bias=(0.0, 0.0))
    ours = other.model_copy(update={"question": question.hash})
    for asked, served in ((ours, True), (other, False)):
        calibration = Calibration(outlook=OutlookCalibration(questions={QuestionName.WIN: asked}))
        manifest = ModelManifest(
            model_version="v",
            base_model="b",
            licence="l",
            created_at=AS_OF,
            files={},
            calibration=calibration,
        )
        assert ModelManifest.from_json(manifest.as_json()) == manifest
        assert manifest.calibration.asked == (QuestionName.WIN,)
        if served:
            manifest.require_compatible()
        else:
            with pytest.raises(ManifestMismatch, match="another question win"):
                manifest.require_compatible()


def test_levels_of_a_graded_question_are_told_as_far_as_the_version_answers_it() -> None:
    asked = BY_NAME[QuestionName.RANGE]
    assert asked.levels == ("below 1.7", "1.7 to 2.2", "2.2 to 2.7", "2.7 to 3.7", "3.7 or more")
    assert BY_NAME[QuestionName.WIN].levels == ()
    told = QuestionCalibration(question=asked.hash, values=asked.values, bias=(0.0,) * 5)
    calibration = Calibration(
        outlook=OutlookCalibration(questions={QuestionName.RANGE: told}),
    )
    chances = (0.1, 0.2, 0.4, 0.2, 0.1)
    answers = {QuestionName.RANGE: tuple(map(math.log, chances))}
    read = FLAT.model_copy(update={"questions": answers})
    advice = decide(scenario(), read, calibration).primary
    assert graded(advice, QuestionName.RANGE) == pytest.approx(chances)
    assert graded(advice, QuestionName.WIN) is None
    assert graded(decide(scenario(), FLAT, calibration).primary, QuestionName.RANGE) is None
    assert graded(decide(scenario(), read).primary, QuestionName.RANGE) is None
    silent = decide(scenario(), Abstention(AbstainReason.DEADLINE), calibration).primary
    assert graded(silent, QuestionName.RANGE) is None
