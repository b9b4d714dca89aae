"""Events: what a report is about, when two of them say the same, and the row of a link."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.canonical import MOST_FRAGMENTS, canonical_json, content_hash, digest
from app.domain.errors import AbstainReason, InvalidRecord
from app.domain.record.decision import Abstention
from app.domain.record.event import (
    AgentActionReport,
    Event,
    EventKind,
    LateAdvice,
    OutcomeReport,
    Repetition,
    StateChange,
    content_of,
    reported,
)
from app.domain.record.link import Fate, Link, Linked
from app.domain.scenario import Scenario
from app.schemas import EXAMPLE, AdviseRequest
from tests import builders as build
from tests.domain.scenarios import AS_OF

DECISION = UUID("7e524122-ba84-83d7-ac00-81f877a43e48")


def test_what_is_said_of_a_decision_is_a_report_of_its_kind() -> None:
    told = outcome().outcome
    assert reported(told, DECISION, AS_OF, "desk") == (
        EventKind.OUTCOME,
        OutcomeReport(decision_id=DECISION, recorded_at=AS_OF, reported_by="desk", outcome=told),
    )
    did = build.agent_action()
    assert reported(did, DECISION, AS_OF, None) == (
        EventKind.AGENT_ACTION,
        AgentActionReport(decision_id=DECISION, recorded_at=AS_OF, action=did),
    )


def outcome(**fields: Any) -> OutcomeReport:
    said = {"arm": "agent", "outcome": "sl", "net_pnl": -3.0} | fields
    document = {"decision_id": DECISION, "recorded_at": AS_OF, "outcome": said}
    return OutcomeReport.from_json(document)


def action(**fields: Any) -> AgentActionReport:
    document = {"decision_id": DECISION, "recorded_at": AS_OF, "action": {"decision": True}}
    return AgentActionReport.from_json(document | fields)


def test_an_action_is_about_its_decision_and_an_outcome_about_one_arm_of_it() -> None:
    advice = {"arm": "advice", "model_version": "m-1"}
    assert action().subject == f"agent_action:{DECISION}"
    assert outcome().subject == f"outcome:{DECISION}:agent"
    assert outcome(model_version="m-1").subject == f"outcome:{DECISION}:agent"
    assert outcome(**advice).subject == f"outcome:{DECISION}:advice:m-1"


def test_a_decision_is_written_as_its_json_whatever_was_written_before() -> None:
    tighter = build.LIMITS.model_copy(update={"version": "tighter"})
    for limits in (build.LIMITS, tighter, build.LIMITS):
        for label in ("A", "H", Abstention(AbstainReason.DEADLINE)):
            decision = build.decision(label=label, limits=limits, shadows=[("m-2", "B")])
            assert Event.of_decision(decision).payload == canonical_json(decision.as_json())
    account = build.scenario().account.model_copy(update={"day_pnl_fraction": -0.0})
    flat = build.decision(about=build.scenario().model_copy(update={"account": account}))
    payload = Event.of_decision(flat).payload
    assert b'"day_pnl_fraction":0.0' in payload
    assert payload == canonical_json(flat.as_json())


def test_parts_are_remembered_by_the_part_and_not_for_ever() -> None:
    for number in range(2 * MOST_FRAGMENTS):
        limits = build.LIMITS.model_copy(update={"version": f"v-{number}"})
        payload = Event.of_decision(build.decision(limits=limits)).payload
        assert f'"version":"v-{number}"'.encode() in payload


def test_reports_say_the_same_whenever_and_in_which_place_they_came() -> None:
    first, again = action(), action(recorded_at=AS_OF + timedelta(hours=1), arrival=3)
    assert content_of(EventKind.AGENT_ACTION, first) == content_of(EventKind.AGENT_ACTION, again)
    corrected = action(action={"decision": False})
    assert content_of(EventKind.AGENT_ACTION, first) != content_of(
        EventKind.AGENT_ACTION, corrected
    )
    assert content_of(EventKind.AGENT_ACTION, first).startswith("sha256:")


def test_a_retry_is_the_same_event_and_the_same_content_after_a_correction_another_one() -> None:
    first, retry, third = action(arrival=1), action(arrival=1), action(arrival=3)
    later = retry.model_copy(update={"recorded_at": AS_OF + timedelta(seconds=1)})
    keys = [Event.of_report(EventKind.AGENT_ACTION, each).key for each in (first, later, third)]
    assert keys[0] == keys[1] != keys[2]


def test_the_same_state_may_be_set_twice() -> None:
    change = StateChange.from_json(
        {"recorded_at": AS_OF, "state": "HALTED", "reason": "drill", "changed_by": "alice"}
    )
    later = change.model_copy(update={"recorded_at": AS_OF + timedelta(seconds=1)})
    assert Event.of_state_change(change).key != Event.of_state_change(later).key
    assert Event.of_state_change(change).record() == change


@pytest.mark.parametrize("payload", [b"{", b"\xff", b""])
def test_a_payload_that_is_no_json_is_named_by_kind_and_key(payload: bytes) -> None:
    with pytest.raises(InvalidRecord, match=r"^outcome key-1: "):
        Event(EventKind.OUTCOME, "key-1", "claim", payload).record()
    with pytest.raises(InvalidRecord, match=r"^OutcomeReport: decision_id: "):
        Event(EventKind.OUTCOME, "key-1", "claim", b"{}").record()


def test_the_row_of_a_link_names_the_payload_by_its_hash() -> None:
    event = Event(EventKind.OUTCOME, "k", "c", b"{}", Link("p", 7, "sha256:aa"))
    row = Linked("p", 7, "sha256:aa", "outcome", "k", "c", digest(b"{}"), Fate.ASIDE)
    assert event.linked(Fate.ASIDE) == row
    assert event.linked() == row._replace(fate=Fate.EVENT)


def test_a_version_gives_one_advice_on_a_decision_whatever_it_says() -> None:
    decision = build.decision()
    first, other = (build.late_advice_event(decision, label) for label in ("H", "A"))
    assert (first.kind, first.key, first.claim) == (EventKind.LATE_ADVICE, other.key, other.key)
    assert first.payload != other.payload
    late = first.record()
    assert isinstance(late, LateAdvice)
    assert late.subject == first.key


def test_a_repetition_says_whether_another_action_is_proposed_and_how_far_it_is() -> None:
    repetition = build.repetition_event(build.decision(), first="H", again="A").record()
    assert isinstance(repetition, Repetition)
    assert repetition.flipped
    first, again = (proposal.probabilities for proposal in repetition.proposals)
    assert repetition.distance == pytest.approx(abs(first[0] - again[0]))
    same = build.repetition_event(build.decision(), first="H", again="H").record()
    assert isinstance(same, Repetition)
    assert (same.flipped, same.distance) == (False, 0.0)


@pytest.mark.parametrize(
    ("before", "becomes"),
    [
        ("2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"),
        ("2026-11-23T09:00:00Z", "2026-11-23T09:00:00.000001Z"),
        ("2026-11-25T10:00:00Z", "2026-11-25T10:00:00.000001Z"),
        ("9999-12-31T23:59:59.999999Z", "2026-11-23T09:00:00Z"),
    ],
)
def test_a_change_of_state_is_newer_than_the_one_it_follows(before: str, becomes: str) -> None:
    def change(at: str) -> StateChange:
        told = {"recorded_at": at, "state": "HALTED", "reason": "drill", "changed_by": "ops"}
        return StateChange.from_json(told)

    mine = change("2026-11-23T09:00:00Z")
    assert mine.after(None) == mine
    assert mine.after(change(before)) == change(becomes)


@given(rsi=st.floats(0, 100) | st.just(-0.0), news=st.none() | st.sampled_from(["[-0.0]", "up"]))
def test_a_claim_hashes_what_was_sent_as_it_always_did(rsi: float, news: str | None) -> None:
    """A candidate is written once, for the claim and for the event."""
    candidate = EXAMPLE["candidate"] | {"rsi": rsi, "news_summary": news, "macd": -0.0}
    request = AdviseRequest.model_validate(EXAMPLE | {"candidate": candidate})
    claimed = {*Scenario.model_fields, "agent_action", "bars"}
    assert request.claim() == content_hash(request.model_dump(mode="json", include=claimed))
    made = build.decision(about=request.scenario())
    assert Event.of_decision(made).payload == canonical_json(made.as_json())
