"""The service as a decision model: System One and Decisions, for trade questions, so that whatever
routes to decision models can route to it.

The state is a candidate as `/advise` takes it. A question is known by its id (its name, in the
Decisions form) and its options: our model answers questions that it was trained on, whatever words
they are put in, so instructions are not read. Every state is a decision like any other: recorded
before it is answered, under the same rules. What the rules refuse has no probability here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.advising.advise import Answer, Incoming
from app.advising.service import Service
from app.api.access import allowed
from app.api.admission import ticket_of
from app.api.routes import came_without_reading, incoming_of
from app.api.wire import Json, body_schema, parse, problems, read_headers, read_state
from app.domain.canonical import content_hash
from app.domain.errors import (
    AnswerGone,
    InvalidRecord,
    JournalUnavailable,
    NoAnswer,
    Overloaded,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.intake.reception import Coerced
from app.domain.model.actions import ACTIONS, REJECT
from app.domain.model.manifest import PRIMARY_ALIAS
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.principal import Principal, Role
from app.domain.record.decision import Advice, AdviceStatus, Decision, graded
from app.schemas import EXAMPLE, reread

MOST_QUESTIONS = 64
NAMES = tuple(action.name for action in ACTIONS)
YES = ("approve", "trade")
"""Names of approving, and ids of the question whether to."""
FORETOLD = {
    QuestionName.WIN.value: "win_probability",
    QuestionName.STOPPED.value: "stopped_probability",
}
"""Ids of the chances that a version may foretell of the plan, and where an outlook has them."""
LEVELS = tuple(f"{level} ATR" for level in BY_NAME[QuestionName.RANGE].levels)
"""Of the score that a version may foretell: how far price ranges."""
PROBLEMS = problems(
    InvalidRecord,
    RequestConflict,
    UnknownVersion,
    AnswerGone,
    JournalUnavailable,
    ShadowLogUnavailable,
    Overloaded,
)
router = APIRouter()


class Lenient(BaseModel):
    """Gateways add fields of their own: what is not known is not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SystemOneQuestion(Lenient):
    """`noul` is a chance, `choice` one of the options that `criteria` names, `score` a level of
    those that it lists."""

    type: Literal["noul", "choice", "score"]
    instructions: Any = Field(None, description="not read")
    criteria: Any = None


class SystemOneRequest(Lenient):
    """A state, and questions by id."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model": PRIMARY_ALIAS,
                    "state": {k: v for k, v in EXAMPLE.items() if k != "request_id"},
                    "questions": {"approve": {"type": "noul"}},
                }
            ]
        },
    )

    model: str = Field(max_length=100, description="`shadow`, or the version that it names")
    state: dict[str, Any] | str = Field(
        description="a candidate as `/advise` takes it, or its text"
    )
    questions: dict[str, SystemOneQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)


class Choice(Lenient):
    """One option of the Decisions form."""

    value: str | bool
    description: str | None = None


class Level(Lenient):
    """One level of a score in the Decisions form."""

    label: str
    description: str | None = None


class DecisionsQuestion(Lenient):
    """`predicate` is a chance, `choice` one of the choices, `score` one of the levels."""

    type: Literal["predicate", "choice", "score"]
    name: str | None = None
    instructions: Any = Field(None, description="not read")
    choices: list[Choice] | None = Field(None, max_length=255)
    levels: list[Level] | None = Field(None, max_length=10)


class DecisionsRequest(Lenient):
    """An input, and a list of questions."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model": PRIMARY_ALIAS,
                    "input": orjson.dumps(
                        {k: v for k, v in EXAMPLE.items() if k != "request_id"}
                    ).decode(),
                    "questions": [{"type": "predicate", "name": "approve", "instructions": ""}],
                }
            ]
        },
    )

    model: str = Field(max_length=100, description="`shadow`, or the version that it names")
    input: str | list[dict[str, Any]] = Field(
        description="the text of a candidate as `/advise` takes it, or messages with one such part"
    )
    questions: Annotated[list[DecisionsQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]


SYSTEMONE: TypeAdapter[SystemOneRequest] = TypeAdapter(SystemOneRequest)
DECISIONS: TypeAdapter[DecisionsRequest] = TypeAdapter(DecisionsRequest)


class Judged(NamedTuple):
    """What a version advises, and whether the rules leave no approval: they refuse its own, or
    where it rejects, so that nothing of its own was put before them, the agent's order."""

    advice: Advice
    is_refused: bool

    @classmethod
    def of(cls, decision: Decision) -> Judged:
        advice = decision.primary
        barred = not advice.approve and bool(decision.control_review.vetoes)
        return cls(advice, barred or advice.status is not AdviceStatus.ADVISED)

    def probabilities(self) -> tuple[float, ...]:
        """Of the ten actions after the rules: what they refuse is rejected for certain."""
        assert self.advice.proposal is not None
        if self.is_refused:
            return tuple(float(action is REJECT) for action in ACTIONS)
        return self.advice.proposal.probabilities

    def mass(self) -> float:
        """Probability that fell on labels; all of it where rules decide."""
        return 1.0 if self.is_refused else _label_mass(self.advice)

    def approval(self) -> float:
        """The chance of the best approval beside rejecting alone: actions are compared one by one,
        so that it is above one half where the advice approves, and nowhere else."""
        reject, *approvals = self.probabilities()
        best = max(approvals)
        return best / (best + reject)


class Question(NamedTuple):
    """What is asked, whichever form it came in. `options` is None where a chance is asked for, or a
    score on levels that are the model's own."""

    name: str
    options: tuple[str, ...] | None
    is_score: bool = False

    @property
    def is_foretold(self) -> bool:
        """Whether it asks what a version foretells of the plan, not what to do."""
        return self.is_score or (self.options is None and self.name in FORETOLD)

    def is_answered(self, advice: Advice) -> bool:
        """Whether the version says anything to it."""
        if self.is_score:
            return graded(advice, QuestionName.RANGE) is not None
        if self.is_foretold:
            return getattr(advice.outlook, FORETOLD[self.name], None) is not None
        return advice.proposal is not None

    def chances(self, judged: Judged) -> list[float]:
        """Of each option or level; of a chance, of yes and no."""
        advice = judged.advice
        if self.is_score:
            return list(graded(advice, QuestionName.RANGE) or ())
        if self.is_foretold:
            chance = float(getattr(advice.outlook, FORETOLD[self.name]))
            return [chance, 1 - chance]
        if self.options is not None and set(self.options) == set(NAMES):
            told = dict(zip(NAMES, judged.probabilities(), strict=True))
            return [told[option] for option in self.options]
        yes = judged.approval()
        options = self.options or (YES[0], REJECT.name)
        return [1 - yes if option == REJECT.name else yes for option in options]


@router.post(
    "/v1/systemone",
    openapi_extra=body_schema(SYSTEMONE),
    responses=PROBLEMS,
    summary="Answer trade questions on one state, as System One",
)
async def systemone(request: Request) -> Response:
    caller = allowed(request, Role.AGENT)
    body: SystemOneRequest = await parse(request, SYSTEMONE)
    asked = [_systemone_question(name, question) for name, question in body.questions.items()]
    answer, coerced = await _answer(request, caller, body.model, body.state)
    advice = answer.decision.primary
    answered = [question for question in asked if question.is_answered(advice)]
    if not answered:
        why = advice.abstain_reason or f"{advice.model_version} does not know it"
        raise NoAnswer(f"the model gave no answer: {why}")
    judged = Judged.of(answer.decision)
    answers = {question.name: _systemone_answer(question, judged) for question in answered}
    diagnosed = _diagnostics(answered, advice)
    return Json(_told(answer, coerced) | {"answers": answers, "diagnostics": diagnosed})


@router.post(
    "/v1/decisions",
    openapi_extra=body_schema(DECISIONS),
    responses=PROBLEMS,
    summary="Answer trade questions on one input, as Decisions",
)
async def decisions(request: Request) -> Response:
    caller = allowed(request, Role.AGENT)
    body: DecisionsRequest = await parse(request, DECISIONS)
    asked = [_decisions_question(question) for question in body.questions]
    answer, coerced = await _answer(request, caller, body.model, _state_of(body.input))
    judged = Judged.of(answer.decision)
    answers = [
        _decisions_answer(question, theirs, judged)
        for question, theirs in zip(asked, body.questions, strict=True)
    ]
    return Json(_told(answer, coerced) | {"answers": answers})


async def _answer(
    request: Request, caller: Principal, model: str, state: dict[str, Any] | str
) -> tuple[Answer, Sequence[Coerced]]:
    """The decision on a state, and what of it was read in another way than it was written. Without
    an id of its own, the id follows from its content: the same state, asked again, is the same
    decision."""
    service: Service = request.app.state.service
    body = read_state(request, state)
    headers = read_headers(request)
    if headers.idempotency_key is None and "request_id" not in body.model_fields_set:
        mark = content_hash(body.claim()).removeprefix("sha256:")[:32]
        body = body.model_copy(update={"request_id": f"state-{mark}"})
    incoming = incoming_of(request, caller, body, headers.idempotency_key, headers)
    await _require_model(service, model, incoming)
    ticket = ticket_of(request)
    service.door.widen(ticket, 1, incoming.deadline)
    answer = await service.advise(incoming)
    ticket.answered = not came_without_reading(answer)
    return answer, body.coerced


async def _require_model(service: Service, model: str, incoming: Incoming) -> None:
    """Raises `UnknownVersion` for a model that neither answers now nor gave the answer that the
    request has already."""
    served = service.serving.models.primary.manifest.model_version
    if model in (PRIMARY_ALIAS, served):
        return
    stored = None
    if await service.records.is_known(incoming.decision_id):
        stored = await service.records.answered(incoming.decision_id, incoming.claim)
    if stored is None or stored.primary.model_version != model:
        raise UnknownVersion(f"there is no model {model[:100]!r} here: ask {PRIMARY_ALIAS}")


def _state_of(value: str | list[dict[str, Any]]) -> dict[str, Any] | str:
    """The one part of an input that is a candidate. Raises `InvalidRecord`."""
    if isinstance(value, str):
        return value
    found: list[dict[str, Any] | str] = []
    for message in value:
        content = message.get("content") if message.get("role", "user") == "user" else None
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                found.append(part)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                found.append(part["text"])
            elif isinstance(part, dict) and isinstance(part.get("data"), dict):
                found.append(part["data"])
    if len(found) != 1:
        raise InvalidRecord(
            f"input: {len(found)} parts of users' messages are text or JSON; send one, which is the"
            " candidate"
        )
    return found[0]


def _systemone_question(name: str, question: SystemOneQuestion) -> Question:
    if question.type == "noul":
        return _chance(name)
    if question.type == "score":
        return _score(name, question.criteria)
    return _choice(name, list(question.criteria) if isinstance(question.criteria, dict) else [])


def _decisions_question(question: DecisionsQuestion) -> Question:
    name = question.name or ""
    if question.type == "predicate":
        return _chance(name)
    if question.type == "score":
        return _score(name, question.levels)
    return _choice(name, [str(choice.value) for choice in question.choices or ()])


def _chance(name: str) -> Question:
    if name not in (*YES, *FORETOLD):
        raise InvalidRecord(
            f"question {name[:100]!r}: this model knows the chances {' and '.join(YES)} (the same),"
            f" {' and '.join(FORETOLD)} by their ids; instructions are not read"
        )
    return Question(name, None)


def _score(name: str, levels: Any) -> Question:
    known = levels is None or (isinstance(levels, list) and len(levels) == len(LEVELS))
    if name != QuestionName.RANGE or not known:
        raise InvalidRecord(
            f"question {name[:100]!r}: this model scores {QuestionName.RANGE} alone, by its id, on"
            f" levels of its own: {', '.join(LEVELS)}; name as many, or none"
        )
    return Question(name, None, is_score=True)


def _choice(name: str, options: Sequence[str]) -> Question:
    pair = len(options) == 2 and REJECT.name in options and set(options) & set(YES)
    if not pair and sorted(options) != sorted(NAMES):
        raise InvalidRecord(
            f"question {name[:100]!r}: this model chooses between {REJECT.name} and"
            f" {' or '.join(YES)}, or among all ten actions: {', '.join(NAMES)}"
        )
    return Question(name, tuple(options))


def _chosen(question: Question, advice: Advice) -> str:
    """The option that the advice takes."""
    assert question.options is not None
    if not advice.approve:
        return REJECT.name
    if advice.action in question.options:
        return str(advice.action)
    return next(option for option in question.options if option != REJECT.name)


def _systemone_answer(question: Question, judged: Judged) -> dict[str, Any]:
    advice, chances = judged.advice, question.chances(judged)
    if question.is_score:
        legend = {str(number): level for number, level in enumerate(LEVELS)}
        told = dict(zip(legend, chances, strict=True))
        return _scored(chances) | {"legend": legend, "probabilities": told}
    if question.options is None:
        return {"type": "noul", "noul": chances[0]}
    choice = _chosen(question, advice)
    told = dict(zip(question.options, chances, strict=True))
    confidence = told[choice] * judged.mass()
    return {"type": "choice", "choice": choice, "confidence": confidence, "probabilities": told}


def _decisions_answer(
    question: Question, theirs: DecisionsQuestion, judged: Judged
) -> dict[str, Any]:
    advice = judged.advice
    if not question.is_answered(advice):
        return {"type": "refusal", "name": theirs.name}
    chances = question.chances(judged)
    if question.is_score:
        levels = [
            {"label": level, "value": number, "probability": chance}
            for number, (level, chance) in enumerate(zip(LEVELS, chances, strict=True))
        ]
        return _scored(chances) | {"name": theirs.name, "probabilities": levels}
    if question.options is None:
        return {"type": "predicate", "name": theirs.name, "probability": chances[0]}
    choice = _chosen(question, advice)
    pairs = zip(question.options, chances, strict=True)
    return {
        "type": "choice",
        "name": theirs.name,
        "choice": choice,
        "confidence": dict(zip(question.options, chances, strict=True))[choice] * judged.mass(),
        "probabilities": [{"value": name, "probability": chance} for name, chance in pairs],
    }


def _scored(chances: Sequence[float]) -> dict[str, Any]:
    """What both forms say of a score: the expected number of its level, from 0."""
    score = sum(number * chance for number, chance in enumerate(chances))
    return {"type": "score", "score": score, "confidence": max(chances)}


def _label_mass(advice: Advice) -> float:
    """Probability that fell on labels, at most 1."""
    assert advice.proposal is not None
    return min(advice.proposal.label_mass, 1.0)


def _diagnostics(asked: Sequence[Question], advice: Advice) -> dict[str, Any]:
    """As vLLM tells it, of each question."""
    if advice.proposal is None:
        return {}
    told = {"label_mass": _label_mass(advice)}
    return {question.name: told for question in asked if not question.is_foretold}


def _told(answer: Answer, coerced: Sequence[Coerced]) -> dict[str, Any]:
    """What both forms share: who answered, where it is on the record, and how the state was read.
    Tokens are not counted: nothing is billed."""
    decision = answer.decision
    advice = decision.primary
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "model": advice.model_version,
        "usage": usage,
        "advisor": {
            "decision_id": str(decision.decision_id),
            "status": advice.status.value,
            "action": advice.action,
            "vetoes": [veto.code.value for veto in advice.review.vetoes] if advice.review else [],
            "control_vetoes": [veto.code.value for veto in decision.control_review.vetoes],
            "left_out": [gone.as_json() for gone in decision.scenario.left_out],
            "coerced": reread(coerced),
            "binding": False,
            "recorded": answer.recorded,
            "repeated": answer.repeated,
        },
    }
