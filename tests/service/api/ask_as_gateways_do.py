"""Asks a service the same trade questions with clients that others wrote, and prints what they
understood. Run by `test_decision_models.py` in an environment of its own: it needs typesafe-sdk,
openai and litellm, and nothing of ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = [
    "reject",
    *(f"approve_r{risk}_s{stop}" for risk in ("0.25", "0.50", "1.00") for stop in (1.0, 1.5, 2.5)),
]
WORDS = "Will this position make money after costs?"


def typesafe(url: str, token: str, state: dict[str, Any]) -> dict[str, Any]:
    from typesafe_sdk import Choice, Noul, TypeSafeClient

    questions = {
        "action": Choice(instructions=WORDS, criteria=dict.fromkeys(NAMES)),
        "approve": Noul(instructions=WORDS),
    }
    with TypeSafeClient(api_key=token, base_url=url) as client:
        answers = client.system_one(state=state, model="shadow", questions=questions).answers
    return {"choice": answers["action"].choice, "noul": answers["approve"].noul}


def openai(url: str, token: str, state: dict[str, Any]) -> dict[str, Any]:
    from openai import OpenAI

    client = OpenAI(api_key=token, base_url=f"{url}/v1")
    questions = [
        {
            "type": "choice",
            "name": "action",
            "instructions": WORDS,
            "choices": [{"value": name} for name in NAMES],
        },
        {"type": "predicate", "name": "approve", "instructions": WORDS},
    ]
    told = client.decisions.create(model="shadow", input=json.dumps(state), questions=questions)
    choice, chance = told.answers
    return {"choice": choice.choice, "probability": chance.probability}


def litellm_systemone(url: str, token: str, state: dict[str, Any]) -> dict[str, Any]:
    import litellm

    questions = {
        "action": {"type": "choice", "instructions": WORDS, "criteria": dict.fromkeys(NAMES)},
        "approve": {"type": "noul", "instructions": WORDS},
    }
    told = litellm.systemone(
        model="hosted_vllm/shadow", state=state, questions=questions, api_base=url, api_key=token
    )
    return {"choice": told.answers["action"].choice, "noul": told.answers["approve"].noul}


def litellm_decisions(url: str, token: str, state: dict[str, Any]) -> dict[str, Any]:
    import litellm

    questions = [
        {
            "type": "choice",
            "name": "action",
            "instructions": WORDS,
            "choices": [{"value": name} for name in NAMES],
        },
        {"type": "predicate", "name": "approve", "instructions": WORDS},
    ]
    told = litellm.decisions(
        model="openai/shadow",
        input=json.dumps(state),
        questions=questions,
        api_base=url,
        api_key=token,
    )
    choice, chance = told.answers
    return {"choice": choice.choice, "probability": chance.probability}


def main(url: str, path: str, token: str) -> None:
    state = json.loads(Path(path).read_text())
    told = {
        "typesafe": typesafe(url, token, state),
        "openai": openai(url, token, state),
        "litellm systemone": litellm_systemone(url, token, state),
        "litellm decisions": litellm_decisions(url, token, state),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
