"""Ways to ask for a decision about a scenario, each of them with one of ten actions."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, NamedTuple

import httpx

from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.choice import chosen
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import SYSTEM, render
from app.domain.record.decision import Reading, propose
from app.domain.scenario import Scenario
from app.policy.encoding import PromptEncoder
from app.policy.port import Policy
from bench.serving.service import Served

PATIENCE_S = 600.0
ANSWER = {
    "type": "object",
    "properties": {"action": {"enum": list(LABELS)}},
    "required": ["action"],
    "additionalProperties": False,
}
"""What a chat has to write."""
LETTER = f"root ::= [{LABELS[0]}-{LABELS[-1]}]"


class Answer(NamedTuple):
    """Labels: the likeliest one, and the one that is decided, which of scores is the likeliest once
    the model's bias is taken off. Who only writes one decides it."""

    likeliest: str
    decided: str


Ask = Callable[[Scenario], Awaitable[Answer]]
"""Raises `ValueError`, `PolicyAbstained` or `httpx.HTTPStatusError` of what is no answer."""


def of_reading(reading: Reading, calibration: Calibration) -> Answer:
    """What label scores say."""
    return Answer(LABELS[chosen(reading.log_probabilities)], propose(reading, calibration).label)


def reading(policy: Policy) -> Ask:
    """Asks for the labels' probabilities."""

    async def ask(scenario: Scenario) -> Answer:
        found = await policy.decide(render(scenario), monotonic() + PATIENCE_S, scenario)
        return of_reading(found, policy.manifest.calibration)

    return ask


def advised(client: httpx.AsyncClient, served: Served, calibration: Calibration) -> Ask:
    """Asks the service, which tells probabilities with the bias taken off."""
    headers = {"Authorization": f"Bearer {served.token}"}

    async def ask(scenario: Scenario) -> Answer:
        body = scenario.as_json() | {
            "request_id": f"peers-{scenario.hash()}",
            "deadline_ms": 60_000,
        }
        reply = await client.post(f"{served.url}/advise", json=body, headers=headers)
        answer = reply.raise_for_status().json()
        if answer["probabilities"] is None:
            raise ValueError(f"no reading: {answer.get('abstain_reason')}")
        scores = [
            calibration.temperature * (math.log(told) if told else -math.inf) + bias
            for told, bias in zip(answer["probabilities"], calibration.bias, strict=True)
        ]
        return Answer(LABELS[chosen(scores)], LABELS[chosen(answer["probabilities"])])

    return ask


def chatting(client: httpx.AsyncClient, url: str) -> Ask:
    """Asks for a JSON object. What vLLM keeps of its prompts is its own: the same server has read
    the same ones another way."""

    async def ask(scenario: Scenario) -> Answer:
        prompt = render(scenario)
        body = {
            "model": "advisor",
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": ANSWER, "strict": True},
            },
            "temperature": 0,
            "max_tokens": 32,
            "cache_salt": "chat",
        }
        reply = await client.post(f"{url}/v1/chat/completions", json=body)
        return written(action_of(reply.raise_for_status().json()))

    return ask


def action_of(answer: Any) -> str:
    """The label in a chat's answer. Raises `ValueError`."""
    told = json.loads(answer["choices"][0]["message"]["content"])
    if not isinstance(told, dict) or told.get("action") not in LABELS:
        raise ValueError(f"{told!r} is no decision")
    return str(told["action"])


def lettering(client: httpx.AsyncClient, url: str, encoder: PromptEncoder) -> Ask:
    """Asks llama.cpp's server for one letter after the very tokens that this process reads."""

    async def ask(scenario: Scenario) -> Answer:
        body = {
            "prompt": [*encoder.head, *encoder.encode(render(scenario))],
            "n_predict": 1,
            "temperature": 0,
            "grammar": LETTER,
        }
        reply = await client.post(f"{url}/completion", json=body)
        return written(reply.raise_for_status().json()["content"])

    return ask


def asking(client: httpx.AsyncClient, url: str) -> Ask:
    """Asks vLLM's `/v1/systemone`, which writes its own prompt: state first, then the options. What
    our prompts have in common stands first in the state, so that it is kept."""
    question = {"type": "choice", "criteria": {action.name: None for action in ACTIONS}}
    labels = {action.name: action.label for action in ACTIONS}

    async def ask(scenario: Scenario) -> Answer:
        body = {
            "model": "advisor",
            "state": f"{SYSTEM}\n\n{render(scenario).user}",
            "questions": {"action": question},
        }
        reply = await client.post(f"{url}/v1/systemone", json=body)
        told = reply.raise_for_status().json()["answers"]["action"]["choice"]
        return written(labels.get(told, told))

    return ask


def written(label: str) -> Answer:
    """Of one who says no more. Raises `ValueError` of what is no label."""
    if label not in LABELS:
        raise ValueError(f"{label!r} is no action")
    return Answer(label, label)
