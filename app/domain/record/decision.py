"""The decision record and the two pure halves around the model call: `prepare()` and
`conclude()`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import Field

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.fields import Hash, Instant, Record, ShortText, absent, clean_text, empty
from app.domain.model.actions import ACTIONS, BY_LABEL, LABELS, REJECT, Action
from app.domain.model.choice import chosen
from app.domain.model.inquiry import Exchange
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Outlook, outlook_of
from app.domain.model.prompt import PROMPT_VERSION, Prompt, render
from app.domain.model.questions import QuestionName
from app.domain.record.control import AgentAction
from app.domain.rules.case import Case, TradingState, agents_order, order_for, side_of
from app.domain.rules.limits import Limits
from app.domain.rules.review import Review, review
from app.domain.scenario import Scenario

DECISION_SCHEMA = "2026-11-1"
LEAST = 1e-9
"""A model elsewhere may say 0, of which there is no logarithm."""


class AdviceStatus(StrEnum):
    ADVISED = "advised"
    VETOED = "vetoed"
    ABSTAINED = "abstained"


class Role(StrEnum):
    """Which alias a version answered under: the primary's advice is the reply, others are only
    recorded."""

    PRIMARY = "primary"
    SHADOW = "shadow"


class Engine(StrEnum):
    """What multiplied the matrices of a model in this process."""

    TORCH = "torch"
    """float32, as torch comes."""
    ONEDNN = "onednn"
    """float32, weights laid out for oneDNN: the same numbers but for the order of sums."""
    BFLOAT16 = "bfloat16"
    """As `onednn`, but the user's text, up to where versions begin to differ, in bfloat16."""


class TextEffect(StrEnum):
    """What the prompt's text part did to the proposal, and so what the rule of both readings was
    for."""

    NONE = "none"
    """Both readings propose the same action."""
    REFUSED = "refused"
    """The text turned an approval away."""
    HELD_BACK = "held_back"
    """The text alone would have approved; it was not followed."""
    RESIZED = "resized"
    """Both approve, differently; what risks less counts."""


class Reading(Record):
    """What the model said: log-probability (nats) of each label among all tokens, in the order of
    `LABELS`."""

    log_probabilities: tuple[float, ...] = Field(min_length=len(LABELS), max_length=len(LABELS))
    without_text: tuple[float, ...] | None = Field(
        None,
        min_length=len(LABELS),
        max_length=len(LABELS),
        exclude_if=lambda value: value is None,
        description="the same of the prompt without its text part; none where it has none",
    )
    questions: dict[QuestionName, tuple[float, ...]] = Field(
        default_factory=dict,
        exclude_if=empty,
        description="the same of the labels of each question that the version answers",
    )
    questions_without_text: dict[QuestionName, tuple[float, ...]] = Field(
        default_factory=dict, exclude_if=empty, description="as `without_text`"
    )
    engine: Engine | None = Field(
        None,
        exclude_if=absent,
        description="that read; none before engines were named (`torch`), or by another process",
    )
    within: float | None = Field(
        None,
        gt=0,
        exclude_if=absent,
        description="how far any label may be from an exact reading, by the version's certificate"
        " (nats); none of an exact one",
    )
    exchange: Exchange | None = Field(
        None, exclude_if=absent, description="how a model elsewhere was asked; none of our own"
    )

    @classmethod
    def told(cls, probabilities: Mapping[str, float], exchange: Exchange | None = None) -> Reading:
        """The reading of probabilities by label, which sum to 1 over the labels that there are; the
        others, and what is less than `LEAST`, count as `LEAST`."""
        mass = 1.0 if exchange is None or exchange.label_mass is None else exchange.label_mass
        return cls(
            log_probabilities=tuple(
                math.log(max(mass * probabilities.get(label, LEAST), LEAST)) for label in LABELS
            ),
            exchange=exchange,
        )

    @property
    def label_mass(self) -> float:
        """Probability that fell on labels, 0-1."""
        return math.fsum(map(math.exp, self.log_probabilities))

    @property
    def bare(self) -> Reading:
        """The reading without the prompt's text part; itself where the prompt has none."""
        if self.without_text is None:
            return self
        return Reading(
            log_probabilities=self.without_text,
            questions=self.questions_without_text,
            engine=self.engine,
            within=self.within,
        )


class Proposal(Record):
    """The policy's distribution over actions and the action that it takes, before rules."""

    label: str
    probabilities: tuple[float, ...]
    label_mass: float

    @property
    def action(self) -> Action:
        """What `app.domain.model.choice` chose: the action of the highest expected utility."""
        return BY_LABEL[self.label]

    @property
    def approve_probability(self) -> float:
        """Probability of all approving actions together."""
        return math.fsum(p for p, a in zip(self.probabilities, ACTIONS, strict=True) if a.approve)


class Advice(Record):
    """One model version's answer after the rules."""

    model_version: ShortText
    manifest_hash: Hash
    role: Role
    status: AdviceStatus
    abstain_reason: AbstainReason | None = None
    abstain_detail: str | None = Field(None, max_length=500)
    calibration: Calibration
    reading: Reading | None = None
    proposal: Proposal | None = None
    outlook: Outlook | None = Field(
        None,
        exclude_if=absent,
        description="what the version foretells of the plan; none where it answers no question",
    )
    review: Review | None = None
    approve: bool | None = Field(None, description="final; null when the policy abstained")
    action: str | None = Field(
        None, description="name of the final action; null when the policy abstained"
    )
    quantity: float | None = Field(None, ge=0, description="base units; 0 when rejected")
    stop: float | None = Field(None, description="price; null unless approved")
    text_effect: TextEffect | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="what the prompt's text part did; none where the prompt has no such part",
    )

    @property
    def version(self) -> Version:
        """Who gave it."""
        return Version(self.model_version, self.manifest_hash, self.calibration, self.role)


class Version(NamedTuple):
    """Which model version is answering, and how its reading becomes a proposal."""

    model_version: str
    manifest_hash: str
    calibration: Calibration
    role: Role


class Abstention(NamedTuple):
    """The policy gave no reading."""

    reason: AbstainReason
    detail: str | None = None

    @classmethod
    def of(cls, abstained: PolicyAbstained) -> Abstention:
        """Why, with what may be kept of the detail, which may be whatever a server sent."""
        return cls(abstained.reason, clean_text(abstained.detail[:500]) or None)


class Decision(Record):
    """The full, self-sufficient record of one scenario: replaying it needs nothing else but this
    code."""

    schema_version: str = DECISION_SCHEMA
    decision_id: UUID
    request_id: str = Field(min_length=1, max_length=128)
    principal: ShortText | None = Field(
        None, exclude_if=absent, description="who asked; absent before there were principals"
    )
    request_hash: Hash
    received_at: Instant
    evaluated_at: Instant = Field(description="the time that the rules judged at")
    traceparent: ShortText | None = None
    state: TradingState
    scenario: Scenario
    prompt: Prompt
    prompt_hash: Hash
    limits: Limits
    limits_hash: Hash
    control: AgentAction | None = None
    control_review: Review
    advices: tuple[Advice, ...]
    stage_seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def primary(self) -> Advice:
        """The advice that is the reply."""
        return next(advice for advice in self.advices if advice.role is Role.PRIMARY)

    def replayed(self) -> Decision:
        """The same decision, derived again from its inputs: scenario, readings, limits, state and
        time."""
        prompt = self.prompt
        if prompt.version == PROMPT_VERSION:  # bytes of an older one are only held against the hash
            prompt = prepare(self.scenario)
        return self.model_copy(
            update={
                "prompt": prompt,
                "prompt_hash": prompt.hash,
                "limits_hash": self.limits.hash(),
                "control_review": review_control(
                    self.scenario, self.limits, self.state, self.evaluated_at
                ),
                "advices": tuple(self.replayed_advice(advice) for advice in self.advices),
            }
        )

    def replayed_advice(self, advice: Advice) -> Advice:
        """An advice on this decision, derived again from its reading."""
        reading: Reading | Abstention
        if advice.reading is not None:
            reading = advice.reading
        else:
            reading = Abstention(
                advice.abstain_reason or AbstainReason.BACKEND_PROTOCOL, advice.abstain_detail
            )
        return conclude(
            self.scenario,
            reading,
            advice.version,
            self.limits,
            state=self.state,
            now=self.evaluated_at,
        )


def prepare(scenario: Scenario) -> Prompt:
    """The pure half before the model call."""
    return render(scenario)


def scores_of(reading: Reading, calibration: Calibration) -> list[float]:
    """(log p - bias) / temperature of each label.

    Contextual calibration (Zhao et al. 2021) in log space: the bias is what the model says without
    a scenario.
    """
    return [
        (value - bias) / calibration.temperature
        for value, bias in zip(reading.log_probabilities, calibration.bias, strict=True)
    ]


def propose(reading: Reading, calibration: Calibration) -> Proposal:
    """softmax of the scores over the labels, and the action that the decision rule takes."""
    scores = scores_of(reading, calibration)
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return Proposal(
        label=LABELS[chosen(scores)],
        probabilities=tuple(weight / total for weight in weights),
        label_mass=reading.label_mass,
    )


def cautious(reading: Reading, calibration: Calibration) -> Proposal:
    """The proposal that counts, of a reading with and without text: that which risks less, and at
    equal risk the one without. Rejecting risks nothing, so text never turns a rejection away."""
    proposals = (propose(reading.bare, calibration), propose(reading, calibration))
    return min(proposals, key=lambda proposal: proposal.action.risk_fraction)


def foretold(reading: Reading, calibration: Calibration, scenario: Scenario) -> Outlook | None:
    """The outlook of a reading; None of a version that answers no question."""
    if calibration.outlook is None:
        return None
    return outlook_of(reading.questions, reading.bare.questions, calibration.outlook, scenario)


def graded(advice: Advice, name: QuestionName) -> tuple[float, ...] | None:
    """Chances of a question's levels, read without text as its middle is; None where the version
    does not answer it."""
    asked = advice.calibration.outlook
    answered = {} if advice.reading is None else advice.reading.bare.questions
    if asked is None or name not in asked.questions or name not in answered:
        return None
    return asked.questions[name].chances(answered[name])


def conclude(
    scenario: Scenario,
    reading: Reading | Abstention,
    version: Version,
    limits: Limits,
    *,
    state: TradingState,
    now: datetime,
) -> Advice:
    """The pure half after the model call: reading -> proposal -> rules -> advice. Rules have the
    last word.

    News may inform, never decide: a prompt with a text part is judged with and without it, rules
    included, and the advice that risks less counts, at equal risk the one without. So whatever a
    text says, nothing is approved with it that is not approved without it, nor at a higher risk.
    Both are judged by one outlook, the more careful of the two.
    """
    base: dict[str, Any] = version._asdict()
    if isinstance(reading, Abstention):
        return Advice(
            **base,
            status=AdviceStatus.ABSTAINED,
            abstain_reason=reading.reason,
            abstain_detail=reading.detail,
        )
    outlook = foretold(reading, version.calibration, scenario)

    def judged(each: Reading) -> _Judged:
        proposal = propose(each, version.calibration)
        return _judged(proposal, outlook, version.calibration, scenario, limits, state, now)

    counting, effect = judged(reading.bare), None
    if reading.without_text is not None:
        bare, whole = counting, judged(reading)
        effect = _effect(whole.proposal, bare.proposal)
        counting = min((bare, whole), key=lambda each: each.risk(scenario))
    told = counting._asdict()
    return Advice(**base, **told, reading=reading, outlook=outlook, text_effect=effect)


class _Judged(NamedTuple):
    """What of an advice follows from one reading, by itself."""

    status: AdviceStatus
    proposal: Proposal
    abstain_reason: AbstainReason | None = None
    review: Review | None = None
    approve: bool | None = None
    action: str | None = None
    quantity: float | None = None
    stop: float | None = None

    def risk(self, scenario: Scenario) -> float:
        """What it risks, quote currency; whoever does not approve buys and risks nothing."""
        if self.quantity is None or self.stop is None:
            return 0.0
        return self.quantity * abs(scenario.plan.entry - self.stop)

    @classmethod
    def rejecting(
        cls, status: AdviceStatus, proposal: Proposal, verdict: Review | None = None
    ) -> _Judged:
        """That nothing is bought."""
        return cls(status, proposal, None, verdict, False, REJECT.name, 0.0)


def _judged(
    proposal: Proposal,
    outlook: Outlook | None,
    calibration: Calibration,
    scenario: Scenario,
    limits: Limits,
    state: TradingState,
    now: datetime,
) -> _Judged:
    if proposal.label_mass < calibration.min_label_mass:
        return _Judged(AdviceStatus.ABSTAINED, proposal, AbstainReason.LABEL_MASS)
    action = proposal.action
    if not action.approve:
        return _Judged.rejecting(AdviceStatus.ADVISED, proposal)
    order = order_for(action, scenario, side_of(scenario, limits))
    case = Case(scenario, order, state, now, proposal.approve_probability, outlook)
    verdict = review(case, limits)
    if verdict.vetoes:
        return _Judged.rejecting(AdviceStatus.VETOED, proposal, verdict)
    return _Judged(
        AdviceStatus.ADVISED,
        proposal,
        review=verdict,
        approve=True,
        action=action.name,
        quantity=verdict.quantity,
        stop=verdict.stop,
    )


def _effect(whole: Proposal, bare: Proposal) -> TextEffect:
    if whole.label == bare.label:
        return TextEffect.NONE
    if whole.action.approve and bare.action.approve:
        return TextEffect.RESIZED
    return TextEffect.HELD_BACK if whole.action.approve else TextEffect.REFUSED


def review_control(
    scenario: Scenario, limits: Limits, state: TradingState, now: datetime
) -> Review:
    """The agent's own order through the same rules."""
    return review(control_case(scenario, limits, state, now), limits)


def control_case(scenario: Scenario, limits: Limits, state: TradingState, now: datetime) -> Case:
    """The agent's own order, as the rules see it."""
    order = agents_order(scenario, side_of(scenario, limits))
    return Case(scenario, order, state, now, approve_probability=None)
