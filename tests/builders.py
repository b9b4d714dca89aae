"""Builders of records and events for tests: name only what the test is about, the rest is plain and
valid.

`scenario(candidate__rsi=31.0)`, `reading("H")`, `decision("r-1", label="A", control=True)`,
`agent_action(False)`, `outcome(r=-1.0)`, `manifest("m-1")`, and their events. Labels: `A` rejects;
`H` approves the agent's whole risk. The default decision is approved: no rule of `LIMITS` refuses
the plain scenario.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.domain.canonical import decision_id
from app.domain.model.actions import LABELS
from app.domain.model.inquiry import Exchange
from app.domain.model.manifest import Calibration, ModelManifest
from app.domain.model.outlook import OutlookCalibration, Payoffs, QuestionCalibration
from app.domain.model.questions import QUESTIONS, QuestionName
from app.domain.record.control import AgentAction
from app.domain.record.decision import (
    Abstention,
    Decision,
    Reading,
    Role,
    Version,
    conclude,
    prepare,
    review_control,
)
from app.domain.record.event import (
    AgentActionReport,
    Event,
    EventKind,
    LateAdvice,
    OutcomeReport,
    Rationale,
    Repetition,
    RepetitionKind,
    StateChange,
)
from app.domain.record.outcome import Arm, Outcome
from app.domain.rules.case import TradingState
from app.domain.rules.limits import Limits
from app.domain.scenario import Scenario
from tests.domain.scenarios import AS_OF, LIMITS, scenario_json

MODEL = "test-1"
HASH = "sha256:" + "0" * 64
PLAN_RISK = 0.25 * (2000 - 1970)
"""Quote currency, of the plain scenario's plan: what one R is."""


def scenario(*, as_of: datetime = AS_OF, **overrides: Any) -> Scenario:
    """The plain scenario at `as_of`, with `section__field=value` changes; a value of `...` removes
    the field."""
    document = scenario_json(**{"candidate__ts": as_of, "market__bar_closed_at": as_of} | overrides)
    return Scenario.from_json(document)


def outlook_calibration() -> OutlookCalibration:
    """Every question with its chances as they are read; a win is 1.5 ATR, and nothing costs."""
    return OutlookCalibration(
        questions={
            question.name: QuestionCalibration(
                question=question.hash, values=question.values, bias=(0.0,) * len(question.labels)
            )
            for question in QUESTIONS
        },
        payoffs=Payoffs(won_atr=1.5, stopped_r=-1.0, other_atr=0.0, cost=0.0, spread_bps=2.0),
    )


def answering(to: Reading, **chances: Sequence[float]) -> Reading:
    """The reading with answers to questions: `win=(0.4, 0.6)`, in the order of its labels."""
    answers = {
        QuestionName(name): tuple(math.log(chance) for chance in them)
        for name, them in chances.items()
    }
    return to.model_copy(update={"questions": answers})


def reading(label: str = "H", probability: float = 0.91) -> Reading:
    """A model that gives `label` this probability, and shares the rest among the other labels."""
    rest = (1 - probability) / (len(LABELS) - 1)
    return Reading(
        log_probabilities=tuple(math.log(probability if each == label else rest) for each in LABELS)
    )


def version(
    model_version: str = MODEL, role: Role = Role.PRIMARY, calibration: Calibration | None = None
) -> Version:
    """Who answers."""
    return Version(model_version, HASH, calibration or Calibration(), role)


def decision(
    request_id: str = "r-1",
    *,
    label: str | Abstention = "H",
    control: AgentAction | bool | None = None,
    model_version: str = MODEL,
    shadows: Sequence[tuple[str, str | Abstention]] = (),
    at: datetime = AS_OF,
    about: Scenario | None = None,
    limits: Limits = LIMITS,
    state: TradingState = TradingState.ACTIVE,
    **overrides: Any,
) -> Decision:
    """A decision on `about`, or on `scenario(as_of=at, **overrides)`, judged at the scenario's own
    time.

    `label` is what the primary says, or its abstention; `shadows` are further versions with theirs.
    """
    subject = about or scenario(as_of=at, **overrides)
    now = subject.as_of
    answers = [(version(model_version), label)]
    answers += [(version(name, Role.SHADOW), each) for name, each in shadows]
    prompt = prepare(subject)
    return Decision(
        decision_id=decision_id(request_id),
        request_id=request_id,
        request_hash=subject.hash(),
        received_at=now,
        evaluated_at=now,
        state=state,
        scenario=subject,
        prompt=prompt,
        prompt_hash=prompt.hash,
        limits=limits,
        limits_hash=limits.hash(),
        control=agent_action(control) if isinstance(control, bool) else control,
        control_review=review_control(subject, limits, state, now),
        advices=tuple(
            conclude(
                subject,
                each if isinstance(each, Abstention) else reading(each),
                who,
                limits,
                state=state,
                now=now,
            )
            for who, each in answers
        ),
        stage_seconds={"prepare": 0.001, "policy": 0.25, "conclude": 0.0005},
    )


def agent_action(traded: bool = True, **fields: Any) -> AgentAction:
    """What the agent did."""
    return AgentAction.from_json({"decision": traded} | fields)


def outcome(arm: str = "agent", r: float | None = None, **fields: Any) -> Outcome:
    """An outcome of `r` R of the plain scenario's plan: a stop-out when it lost, a target when it
    won, not traded at 0. What the agent traded is its plan, so that `r` is its own risk's too."""
    code = "not_traded"
    if r:
        code = "sl" if r < 0 else "tp2"
    document: dict[str, Any] = {
        "arm": arm,
        "outcome": code,
        "net_pnl": None if r is None else PLAN_RISK * r,
    }
    if arm == Arm.ADVICE:
        document["model_version"] = MODEL
    else:
        document["r_multiple"] = r
    return Outcome.from_json(document | fields)


def manifest(model_version: str = MODEL, **fields: Any) -> ModelManifest:
    """The manifest of a version without files."""
    document = {
        "model_version": model_version,
        "base_model": "tests",
        "licence": "Apache-2.0",
        "created_at": AS_OF,
        "files": {},
    }
    return ModelManifest.from_json(document | fields)


def decision_event(*arguments: Any, **keywords: Any) -> Event:
    """The event of `decision(...)`."""
    return Event.of_decision(decision(*arguments, **keywords))


def action_event(
    of: UUID | str,
    action: AgentAction | bool = True,
    *,
    minutes: float = 1,
    arrival: int | None = None,
) -> Event:
    """A control reported `minutes` after `AS_OF`; `of` is a decision's id or a request's."""
    reported = agent_action(action) if isinstance(action, bool) else action
    report = AgentActionReport(
        decision_id=_id(of), recorded_at=_later(minutes), action=reported, arrival=arrival
    )
    return Event.of_report(EventKind.AGENT_ACTION, report)


def outcome_event(
    of: UUID | str, result: Outcome, *, minutes: float = 60, arrival: int | None = None
) -> Event:
    """An outcome reported `minutes` after `AS_OF`; `of` is a decision's id or a request's."""
    report = OutcomeReport(
        decision_id=_id(of), recorded_at=_later(minutes), outcome=result, arrival=arrival
    )
    return Event.of_report(EventKind.OUTCOME, report)


def rationale_event(
    of: UUID | str, text: str = "Trend and flow agree.", *, minutes: float = 0
) -> Event:
    """A rationale of the primary's version."""
    report = Rationale(
        decision_id=_id(of), recorded_at=_later(minutes), model_version=MODEL, text=text
    )
    return Event.of_report(EventKind.RATIONALE, report)


def exchange(**fields: Any) -> Exchange:
    """One question to a model elsewhere: half a second, a tenth of a cent."""
    document = {"question": HASH, "order": LABELS, "seconds": 0.5, "cost": 0.001} | fields
    return Exchange.from_json(document)


def late_advice_event(
    on: Decision, label: str = "H", model_version: str = "elsewhere-1", **fields: Any
) -> Event:
    """What a model elsewhere advises on a decision."""
    advice = conclude(
        on.scenario,
        reading(label).model_copy(update={"exchange": exchange(**fields)}),
        version(model_version, Role.SHADOW),
        on.limits,
        state=on.state,
        now=on.evaluated_at,
    )
    return Event.of_late_advice(
        LateAdvice(
            decision_id=on.decision_id,
            as_of=on.scenario.as_of,
            recorded_at=on.received_at,
            advice=advice,
        )
    )


def repetition_event(
    on: Decision, first: str = "H", again: str = "A", model_version: str = "elsewhere-1"
) -> Event:
    """A model elsewhere asked again in another order."""
    readings = [
        reading(label).model_copy(update={"exchange": exchange(order=order)})
        for label, order in ((first, LABELS), (again, LABELS[::-1]))
    ]
    return Event.of_report(
        EventKind.REPETITION,
        Repetition(
            decision_id=on.decision_id,
            recorded_at=on.received_at,
            model_version=model_version,
            manifest_hash=HASH,
            kind=RepetitionKind.ORDER,
            calibration=Calibration(),
            first=readings[0],
            again=readings[1],
        ),
    )


def state_event(
    state: TradingState = TradingState.HALTED, *, minutes: float = 0, reason: str = "test"
) -> Event:
    """A change of the trading state `minutes` after `AS_OF`."""
    return Event.of_state_change(
        StateChange(recorded_at=_later(minutes), state=state, reason=reason, changed_by="tests")
    )


def _id(of: UUID | str) -> UUID:
    return of if isinstance(of, UUID) else decision_id(of)


def _later(minutes: float) -> datetime:
    return AS_OF + timedelta(minutes=minutes)
