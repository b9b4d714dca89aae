"""From a reading to advice, and back from the record."""

from __future__ import annotations

import math
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.actions import LABELS
from app.domain.canonical import decision_id
from app.domain.case import TradingState
from app.domain.decision import (
    Abstention,
    Advice,
    AdviceStatus,
    Decision,
    Proposal,
    Reading,
    Role,
    Version,
    conclude,
    prepare,
    propose,
    review_control,
)
from app.domain.errors import AbstainReason, InvalidRecord, ManifestMismatch
from app.domain.event import AgentActionReport, Event, EventKind, StateChange
from app.domain.manifest import Calibration, ModelManifest
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
