"""Three ways to ask for a choice: System One, Decisions, chat completions with log-probabilities.

Each makes a body of an inquiry and a brief, and reads an answer that anybody may have written: what
is not exactly an answer to the question is refused with one sentence. Answers give a probability to
every option; what was asked in one order is told by label, so that orders compare.

System One: `{"model", "state", "questions": {id: {"type": "choice", "instructions", "criteria"}}}`,
answered by `{"answers": {id: {"choice", "probabilities", ...}}, "usage"}`; vLLM adds `diagnostics`.
Decisions: `{"model", "input", "questions": [{"type": "choice", "name", "choices"}]}`, answered by
`{"answers": [{"type": "choice", "choice", "probabilities": [{"value", "probability"}]}], "usage"}`,
or by a refusal. Chat: options are lettered, and the letters' share of the first token is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple, TypeGuard

from app.domain.canonical import canonical_json
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.inquiry import Inquiry, Option
from app.policy.deciders.table import Protocol

NAME = "decision"
TOP_LOG_PROBABILITIES = 20
SUM_TOLERANCE = 0.05
"""Servers round: ten options to two digits may be so far off together."""
_MOST_TOKENS = 2**53
_NAME_CHARACTERS = 100


class Told(NamedTuple):
    """An answer that can be used. `probabilities` by label, which sum to 1."""

    probabilities: dict[str, float]
    label_mass: float | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None


class SystemOne:
    """`POST /v1/systemone`."""

    path = "/v1/systemone"

    def body(self, model: str, inquiry: Inquiry, brief: Mapping[str, Any]) -> dict[str, Any]:
        """The request."""
        criteria = {option.name: option.description for option in inquiry.options}
        question = {"type": "choice", "instructions": inquiry.text, "criteria": criteria}
        return {"model": model, "state": brief, "questions": {NAME: question}}

    def read(self, document: Mapping[str, Any], inquiry: Inquiry) -> Told:
        """The answer. Raises `PolicyAbstained`."""
        answers = document.get("answers")
        answer = answers.get(NAME) if isinstance(answers, dict) else None
        if answer is None:
            raise declined()
        if not isinstance(answer, dict) or answer.get("type", "choice") != "choice":
            raise odd("the answer is no choice")
        told = answer.get("probabilities")
        pairs = list(told.items()) if isinstance(told, dict) else []
        probabilities = _by_label(pairs, answer.get("choice"), inquiry.options)
        return _with_usage(document, probabilities, "input_tokens", "output_tokens")._replace(
            label_mass=_diagnosed_mass(document)
        )


class Decisions:
    """`POST /v1/decisions`."""

    path = "/v1/decisions"

    def body(self, model: str, inquiry: Inquiry, brief: Mapping[str, Any]) -> dict[str, Any]:
        """The request. The brief is text: not every server takes JSON as a part."""
        choices = [
            {"value": option.name, "description": option.description} for option in inquiry.options
        ]
        question = {
            "type": "choice",
            "name": NAME,
            "instructions": inquiry.text,
            "choices": choices,
        }
        return {"model": model, "input": _as_text(brief), "questions": [question]}

    def read(self, document: Mapping[str, Any], inquiry: Inquiry) -> Told:
        """The answer. Raises `PolicyAbstained`."""
        answers = document.get("answers")
        if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
            raise odd("there is not one answer to one question")
        answer = answers[0]
        if answer.get("type") == "refusal":
            raise declined()
        told = answer.get("probabilities")
        if answer.get("type") != "choice" or not isinstance(told, list):
            raise odd("the answer is no choice")
        pairs = [(each.get("value"), each.get("probability")) for each in map(_mapping, told)]
        probabilities = _by_label(pairs, answer.get("choice"), inquiry.options)
        return _with_usage(document, probabilities, "input_tokens", "output_tokens")


class Chat:
    """`POST /v1/chat/completions`, one token, its alternatives with log-probabilities."""

    path = "/v1/chat/completions"

    def body(self, model: str, inquiry: Inquiry, brief: Mapping[str, Any]) -> dict[str, Any]:
        """The request. Letters follow the order of the options, not their labels."""
        options = zip(ascii_uppercase, inquiry.options, strict=False)
        lines = [f"{letter}: {option.name} - {option.description}" for letter, option in options]
        last = "Answer with the letter of one option only."
        system = "\n".join([inquiry.text, *lines, last])
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": _as_text(brief)},
            ],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOG_PROBABILITIES,
        }

    def read(self, document: Mapping[str, Any], inquiry: Inquiry) -> Told:
        """The answer. A letter that is not among the likeliest tokens has no probability. Raises
        `PolicyAbstained`."""
        letters = dict(zip(ascii_uppercase, inquiry.options, strict=False))
        found = dict.fromkeys((option.label for option in inquiry.options), 0.0)
        for entry in _first_token(document):
            option = letters.get(str(entry.get("token")).strip())
            if option is not None:
                found[option.label] += math.exp(_log_probability(entry.get("logprob")))
        mass = math.fsum(found.values())
        if not 0 < mass <= 1 + SUM_TOLERANCE:
            raise odd("none of the likeliest tokens is the letter of an option")
        probabilities = {label: value / mass for label, value in found.items()}
        told = _with_usage(document, probabilities, "prompt_tokens", "completion_tokens")
        return told._replace(label_mass=min(mass, 1.0))


SPOKEN: dict[Protocol, SystemOne | Decisions | Chat] = {
    Protocol.SYSTEMONE: SystemOne(),
    Protocol.DECISIONS: Decisions(),
    Protocol.CHAT: Chat(),
}


def odd(detail: str) -> PolicyAbstained:
    """The server's answer is none to what it was asked."""
    return PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, detail)


def declined() -> PolicyAbstained:
    """The model says that it does not answer this."""
    return PolicyAbstained(AbstainReason.DECLINED, "the model declined to answer")


def _as_text(brief: Mapping[str, Any]) -> str:
    return canonical_json(dict(brief)).decode()


def _by_label(
    pairs: Sequence[tuple[Any, Any]], choice: Any, options: Sequence[Option]
) -> dict[str, float]:
    """Probabilities by label, made to sum to 1. Exactly the options must be there, each once."""
    labels = {option.name: option.label for option in options}
    names = [name for name, _ in pairs]
    if len(names) != len(options) or set(map(str, names)) != labels.keys():
        raise odd("the probabilities are not of the options that were asked, each once")
    told = {labels[name]: _probability(value) for name, value in pairs}
    total = math.fsum(told.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise odd(f"the probabilities sum to {total:.4g}")
    chosen = labels.get(choice) if isinstance(choice, str) else None
    if chosen is None or told[chosen] < max(told.values()) - SUM_TOLERANCE:
        raise odd("its choice is not the option of the highest probability")
    return {label: value / total for label, value in told.items()}


def _probability(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise odd("a probability is no number between 0 and 1")
    return float(value)


def _log_probability(value: Any) -> float:
    if not _is_number(value) or value > 1e-6:
        raise odd("a log-probability is no number of at most 0")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_token(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The likeliest first tokens of the only choice."""
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise odd("there is not one choice")
    content = _mapping(_mapping(choices[0]).get("logprobs")).get("content")
    if not isinstance(content, list) or not content:
        raise odd("there are no log-probabilities: does this server give them?")
    told = _mapping(content[0]).get("top_logprobs")
    if not isinstance(told, list) or not 0 < len(told) <= 100:
        raise odd("there are no log-probabilities: does this server give them?")
    return [_mapping(entry) for entry in told]


def _diagnosed_mass(document: Mapping[str, Any]) -> float | None:
    """As vLLM tells it; others do not."""
    mass = _mapping(_mapping(document.get("diagnostics")).get(NAME)).get("label_mass")
    if mass is None:
        return None
    if not _is_number(mass) or not 0 <= mass <= 1 + SUM_TOLERANCE:
        raise odd("the label mass is no number between 0 and 1")
    return min(float(mass), 1.0)


def _with_usage(
    document: Mapping[str, Any], probabilities: dict[str, float], sent: str, made: str
) -> Told:
    """What it took, where that is told; a number that makes no sense is not told."""
    usage, model = _mapping(document.get("usage")), document.get("model")
    cost, name = usage.get("cost"), model if isinstance(model, str) else ""
    return Told(
        probabilities,
        model="".join(filter(str.isprintable, name))[:_NAME_CHARACTERS] or None,
        input_tokens=_count(usage.get(sent)),
        output_tokens=_count(usage.get(made)),
        cost=float(cost) if _is_number(cost) and 0 <= cost < 1e6 else None,
    )


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < _MOST_TOKENS else None
