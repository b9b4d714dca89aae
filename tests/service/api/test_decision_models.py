"""The service as a decision model, over real HTTP: System One and Decisions for trade questions."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.advising.serving import Models
from app.api.decision_models import (
    DecisionsQuestion,
    Judged,
    Question,
    _decisions_answer,
    _systemone_answer,
)
from app.api.tokens import TokenFile
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Outlook
from app.domain.model.questions import QuestionName
from app.domain.principal import Role
from app.domain.record.decision import Advice, AdviceStatus, conclude, graded
from app.domain.rules.case import TradingState
from app.policy.scripted import ScriptedPolicy
from app.shadow_log.proof.verify import verify_log
from tests import builders as build
from tests.domain.scenarios import LIMITS
from tests.service.running import ROOT, Running, drained, request, running, settings_for

GATEWAYS = os.environ.get("GATEWAYS_PYTHON", "")
SYSTEMONE_URL = os.environ.get("REAL_SYSTEMONE_URL", "")
NAMES = [action.name for action in ACTIONS]
PAIR = {"approve": None, "reject": None}
CHANCE = {"type": "noul", "instructions": "Will this make money?"}


def candidate(**changes: Any) -> dict[str, Any]:
    document = request("-", **changes)
    del document["request_id"]
    return document


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """One that gives 0.9 to H and 0.01 to each other action."""
    async with running(settings_for(database_url, valkey_url, tmp_path)) as live:
        yield live


async def systemone(api: Running, state: Any, **questions: Any) -> httpx.Response:
    body = {"model": "shadow", "state": state, "questions": questions, "images": None}
    return await api.client.post("/v1/systemone", json=body)


async def decisions(api: Running, given: Any, *questions: Any) -> httpx.Response:
    body = {"model": "scripted-1", "input": given, "questions": list(questions)}
    return await api.client.post("/v1/decisions", json=body)


async def test_the_text_of_a_state_keeps_to_the_budget_of_a_body(api: Running) -> None:
    """In the body it is one value, however many it holds."""
    text = '{"candidate":{"x":[' + "{}," * 40_000 + "{}]}}"
    yes = {"type": "predicate", "name": "approve"}
    for reply in (await systemone(api, text, approve=CHANCE), await decisions(api, text, yes)):
        assert reply.status_code == 422
        assert "more than 32768 JSON values" in reply.json()["detail"]
    assert api.metric("advisor_refusals_total", budget="values") == 2
    assert await drained(api.settings) == 0


async def test_system_one_answers_chances_and_choices_of_one_recorded_decision(
    api: Running, database_url: str
) -> None:
    reply = await systemone(
        api,
        candidate(),
        approve=CHANCE,
        pair={"type": "choice", "criteria": PAIR},
        action={"type": "choice", "criteria": dict.fromkeys(reversed(NAMES), "words")},
    )
    assert reply.status_code == 200, reply.text
    document = reply.json()
    answers, advisor = document["answers"], document["advisor"]
    assert document["model"] == "scripted-1"
    assert answers["approve"] == {"type": "noul", "noul": pytest.approx(0.9 / 0.91)}
    assert answers["pair"]["choice"] == "approve"
    assert list(answers["pair"]["probabilities"]) == ["approve", "reject"]
    assert answers["pair"]["probabilities"]["reject"] == pytest.approx(0.01 / 0.91)
    assert answers["action"]["choice"] == "approve_r1.00_s1.0"
    assert list(answers["action"]["probabilities"]) == NAMES[::-1], "in the order that was asked"
    told = answers["action"]["probabilities"]
    assert told["approve_r1.00_s1.0"] == pytest.approx(0.9 / 0.99)
    assert sum(told.values()) == pytest.approx(1.0)
    assert answers["action"]["confidence"] == pytest.approx(0.9)
    assert document["diagnostics"]["action"]["label_mass"] == pytest.approx(0.99)
    assert (advisor["status"], advisor["binding"], advisor["repeated"]) == ("advised", False, False)
    assert await drained(api.settings) == 1
    stored = (await api.client.get(f"/decisions/{advisor['decision_id']}")).json()
    assert stored["decision"]["advices"][0]["action"] == "approve_r1.00_s1.0"
    assert (await verify_log(database_url)).findings == []


async def test_the_same_state_again_is_the_same_decision_as_object_and_as_text(
    api: Running,
) -> None:
    state = candidate()
    first = (await systemone(api, state, approve=CHANCE)).json()
    text = (await systemone(api, json.dumps(state), trade=CHANCE)).json()
    form = (await decisions(api, json.dumps(state), {"type": "predicate", "name": "trade"})).json()
    ids = {each["advisor"]["decision_id"] for each in (first, text, form)}
    assert len(ids) == 1
    assert [each["advisor"]["repeated"] for each in (first, text, form)] == [False, True, True]
    assert await drained(api.settings) == 1


async def test_who_asked_a_version_by_its_name_has_its_answer_when_another_serves(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    state, question = json.dumps(candidate()), {"type": "predicate", "name": "approve"}
    async with running(settings) as api:
        first = (await decisions(api, state, question)).json()
    manifest = ScriptedPolicy().manifest.model_copy(update={"model_version": "scripted-2"})
    async with running(settings, Models(ScriptedPolicy(["A"], manifest=manifest))) as api:
        again = (await decisions(api, state, question)).json()
        assert again["answers"] == first["answers"]
        assert (again["model"], again["advisor"]["repeated"]) == ("scripted-1", True)
        body = {"input": state, "questions": [question]}
        for unheard in ("scripted-0", "scripted-2.1"):
            reply = await api.client.post("/v1/decisions", json=body | {"model": unheard})
            assert reply.status_code == 404
        other = json.dumps(candidate(candidate__rsi=11))
        assert (await decisions(api, other, question)).status_code == 404
        by_name = await api.client.post("/v1/decisions", json=body | {"model": "scripted-2"})
        assert by_name.json()["model"] == "scripted-1", "one state is one decision"


async def test_decisions_answers_in_the_order_of_the_questions(api: Running) -> None:
    choices = [{"value": "reject", "description": "do not"}, {"value": "trade"}]
    reply = await decisions(
        api,
        [
            {"role": "developer", "content": "Be careful."},
            {"role": "user", "content": [{"type": "input_json", "data": candidate()}]},
        ],
        {"type": "choice", "name": "what", "instructions": "", "choices": choices},
        {"type": "predicate", "name": "approve", "instructions": "Trade?"},
    )
    assert reply.status_code == 200, reply.text
    choice, chance = reply.json()["answers"]
    assert (choice["type"], choice["name"]) == ("choice", "what")
    assert choice["choice"] == "trade"
    assert choice["probabilities"] == [
        {"value": "reject", "probability": pytest.approx(0.01 / 0.91)},
        {"value": "trade", "probability": pytest.approx(0.9 / 0.91)},
    ]
    assert chance == {
        "type": "predicate",
        "name": "approve",
        "probability": pytest.approx(0.9 / 0.91),
    }


async def test_what_the_rules_refuse_has_no_probability(api: Running) -> None:
    reply = await systemone(
        api,
        candidate(candidate__spread_bps=500.0),
        approve=CHANCE,
        action={"type": "choice", "criteria": dict.fromkeys(NAMES)},
    )
    document = reply.json()
    assert document["advisor"]["status"] == "vetoed"
    assert document["advisor"]["vetoes"]
    assert document["answers"]["approve"]["noul"] == 0
    assert document["answers"]["action"]["choice"] == "reject"
    assert document["answers"]["action"]["probabilities"]["reject"] == 1
    assert document["answers"]["action"]["confidence"] == 1


async def test_a_model_that_rejects_leaves_no_chance_of_what_the_rules_refuse_the_agent(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """0.49 of approving would be enough for a gateway with a bound of its own."""
    models = Models(ScriptedPolicy([build.reading("A", 0.52)]))
    async with running(settings_for(database_url, valkey_url, tmp_path), models) as api:
        free = (await systemone(api, candidate(), approve=CHANCE)).json()
        await api.client.put("/state", json={"state": "HALTED", "reason": "x", "changed_by": "me"})
        halted = (await systemone(api, candidate(candidate__rsi=60.0), approve=CHANCE)).json()
    assert (free["advisor"]["status"], free["answers"]["approve"]["noul"] > 0) == ("advised", True)
    assert (halted["advisor"]["status"], halted["advisor"]["vetoes"]) == ("advised", [])
    assert "STATE_HALTED" in halted["advisor"]["control_vetoes"]
    assert halted["answers"]["approve"]["noul"] == 0


@pytest.mark.parametrize("form", ["object", "text"])
async def test_a_state_is_read_as_advise_reads_a_candidate(api: Running, form: str) -> None:
    """What cannot be used is left out and told; what is meant otherwise is read as it is meant."""
    state = candidate(candidate__rsi="abc", candidate__direction="buy", candidate__adx=float("nan"))
    body = {"model": "shadow", "questions": {"approve": CHANCE}}
    sent = body | {"state": state if form == "object" else json.dumps(state)}
    reply = await api.client.post(
        "/v1/systemone", content=json.dumps(sent), headers={"Content-Type": "application/json"}
    )
    told = reply.json()["advisor"]
    assert [gone["field"] for gone in told["left_out"]] == ["candidate.adx", "candidate.rsi"]
    assert [(one["field"], one["taken"]) for one in told["coerced"]] == [
        ("candidate.direction", "'long'")
    ]
    same = await api.client.post(
        "/advise",
        content=json.dumps(state | {"request_id": "same"}),
        headers={"Content-Type": "application/json"},
    )
    for name in ("left_out", "coerced"):
        assert same.json()[name] == told[name]


async def test_what_a_version_does_not_foretell_has_no_answer(api: Running) -> None:
    some = await systemone(api, candidate(), approve=CHANCE, win=CHANCE)
    assert list(some.json()["answers"]) == ["approve"]
    none = await systemone(api, candidate(), stopped=CHANCE)
    assert (none.status_code, "scripted-1 does not know it" in none.text) == (503, True)
    form = await decisions(api, json.dumps(candidate()), {"type": "predicate", "name": "win"})
    assert form.json()["answers"] == [{"type": "refusal", "name": "win"}]


def test_what_it_foretells_is_told_whatever_the_rules_say() -> None:
    refused = build.decision(candidate__spread_bps=500.0).primary
    outlook = Outlook(win_probability=0.6, stopped_probability=0.3)
    advice = refused.model_copy(update={"outlook": outlook})
    assert advice.status is AdviceStatus.VETOED
    judged = Judged(advice, is_refused=True)
    assert Question("win", None).chances(judged) == [0.6, 0.4]
    assert Question("stopped", None).chances(judged) == [0.3, 0.7]
    assert Question("approve", None).chances(judged) == [0.0, 1.0]


def advised_of_the_range() -> Advice:
    """Its reading gives the levels 0.1, 0.2, 0.4, 0.2, 0.1."""
    read = build.answering(build.reading(), range=(0.1, 0.2, 0.4, 0.2, 0.1))
    calibration = Calibration(outlook=build.outlook_calibration())
    who, subject = build.version(calibration=calibration), build.scenario()
    return conclude(subject, read, who, LIMITS, state=TradingState.ACTIVE, now=subject.as_of)


def test_the_range_is_a_score_on_levels_that_are_the_models_own() -> None:
    advice = advised_of_the_range()
    assert graded(advice, QuestionName.RANGE) == pytest.approx((0.1, 0.2, 0.4, 0.2, 0.1))
    question = Question("range", None, is_score=True)
    told = _systemone_answer(question, Judged(advice, is_refused=False))
    assert told == {
        "type": "score",
        "score": pytest.approx(2.0),
        "confidence": pytest.approx(0.4),
        "legend": {
            "0": "below 1.7 ATR",
            "1": "1.7 to 2.2 ATR",
            "2": "2.2 to 2.7 ATR",
            "3": "2.7 to 3.7 ATR",
            "4": "3.7 or more ATR",
        },
        "probabilities": {
            name: pytest.approx(chance)
            for name, chance in zip("01234", (0.1, 0.2, 0.4, 0.2, 0.1), strict=True)
        },
    }
    asked = DecisionsQuestion(type="score", name="range")
    form = _decisions_answer(question, asked, Judged(advice, is_refused=False))
    assert (form["type"], form["name"], form["score"]) == ("score", "range", pytest.approx(2.0))
    assert form["probabilities"][4] == {
        "label": "3.7 or more ATR",
        "value": 4,
        "probability": pytest.approx(0.1),
    }


async def test_a_version_that_does_not_foretell_the_range_gives_no_score(api: Running) -> None:
    score = {"type": "score", "instructions": "How far?", "criteria": list("abcde")}
    some = await systemone(api, candidate(), approve=CHANCE, range=score)
    assert list(some.json()["answers"]) == ["approve"]
    levels = [{"label": level} for level in "abcde"]
    form = await decisions(
        api, json.dumps(candidate()), {"type": "score", "name": "range", "levels": levels}
    )
    assert form.json()["answers"] == [{"type": "refusal", "name": "range"}]


async def test_nine_approvals_that_share_their_votes_are_no_approval(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Rejecting has 0.2, each approval 0.089: together 0.8, and each less than rejecting."""
    models = Models(ScriptedPolicy([build.reading("A", 0.2)]))
    async with running(settings_for(database_url, valkey_url, tmp_path), models) as api:
        told = (await systemone(api, candidate(), approve=CHANCE)).json()
    assert told["answers"]["approve"]["noul"] == pytest.approx((0.8 / 9) / (0.8 / 9 + 0.2))
    assert told["advisor"]["action"] == "reject"


async def test_a_model_that_abstains_gives_no_answer_in_either_form(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    models = Models(ScriptedPolicy([PolicyAbstained(AbstainReason.DEADLINE)]))
    async with running(settings_for(database_url, valkey_url, tmp_path), models) as api:
        one = await systemone(api, candidate(), approve=CHANCE)
        other = await decisions(
            api, json.dumps(candidate()), {"type": "predicate", "name": "approve"}
        )
    assert (one.status_code, one.json()["title"]) == (503, "The model gave no answer")
    assert other.json()["answers"] == [{"type": "refusal", "name": "approve"}]


@pytest.mark.parametrize(
    ("questions", "why"),
    [
        ({"mood": CHANCE}, "knows the chances approve and trade (the same), win and stopped"),
        ({"a": {"type": "choice", "criteria": {"buy": None, "sell": None}}}, "chooses between"),
        ({"a": {"type": "choice", "criteria": dict.fromkeys(NAMES[:4])}}, "all ten actions"),
        ({"a": {"type": "choice", "criteria": ["approve", "reject"]}}, "chooses between"),
        ({"a": {"type": "score", "criteria": ["low", "high"]}}, "scores range alone"),
        ({"range": {"type": "score", "criteria": ["low", "high"]}}, "below 1.7 ATR"),
        ({}, "questions"),
    ],
)
async def test_what_was_never_learned_is_refused_by_name_and_nothing_is_recorded(
    api: Running, questions: dict[str, Any], why: str
) -> None:
    reply = await systemone(api, candidate(), **questions)
    assert reply.status_code == 422
    assert why in reply.text
    assert await drained(api.settings) == 0


async def test_odd_requests_are_refused(api: Running) -> None:
    unknown = await api.client.post(
        "/v1/systemone",
        json={"model": "jev-latest", "state": candidate(), "questions": {"approve": CHANCE}},
    )
    assert (unknown.status_code, "ask shadow" in unknown.text) == (404, True)
    broken = await systemone(api, {"candidate": {"symbol": "ETHUSDT"}}, approve=CHANCE)
    assert broken.status_code == 422
    assert "plan" in broken.text
    for given in ([], [{"role": "user", "content": [{"type": "input_image"}]}], "not JSON"):
        assert (
            await decisions(api, given, {"type": "predicate", "name": "approve"})
        ).status_code == 422


@pytest.mark.gateways
@pytest.mark.skipif(not GATEWAYS, reason="GATEWAYS_PYTHON is not set: make test-gateways")
async def test_clients_that_others_wrote_are_answered(api: Running, tmp_path: Path) -> None:
    """In an environment of their own, at GATEWAYS_PYTHON: `make test-gateways`."""
    script = Path(__file__).with_name("ask_as_gateways_do.py")
    state = tmp_path / "state.json"
    state.write_text(json.dumps(candidate()))
    token = TokenFile(api.settings.tokens_file).create("gateway", [Role.AGENT])
    command = [GATEWAYS, str(script), api.url.rstrip("/"), str(state), token]

    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    expected = pytest.approx(0.9 / 0.91)
    assert told == {
        "typesafe": {"choice": "approve_r1.00_s1.0", "noul": expected},
        "openai": {"choice": "approve_r1.00_s1.0", "probability": expected},
        "litellm systemone": {"choice": "approve_r1.00_s1.0", "noul": expected},
        "litellm decisions": {"choice": "approve_r1.00_s1.0", "probability": expected},
    }


@pytest.mark.vllm
@pytest.mark.skipif(not SYSTEMONE_URL, reason="REAL_SYSTEMONE_URL is not set: make test-vllm")
async def test_what_we_answer_is_of_the_form_that_a_real_vllm_answers(api: Running) -> None:
    """The same bodies to both: all that we say of a question, vLLM says in the same words."""
    questions = {
        "approve": CHANCE,
        "pair": {"type": "choice", "instructions": "Trade?", "criteria": PAIR},
        "range": {"type": "score", "instructions": "How far?", "criteria": list("abcde")},
    }
    ours = (await systemone(api, candidate(), **questions)).json()["answers"]
    ours["range"] = _systemone_answer(
        Question("range", None, is_score=True), Judged(advised_of_the_range(), is_refused=False)
    )
    body = {"model": "advisor", "state": candidate(), "questions": questions, "images": None}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        reply = await client.post(f"{SYSTEMONE_URL}/v1/systemone", json=body)
    assert reply.status_code == 200, reply.text
    theirs = reply.json()
    assert theirs["answers"].keys() == ours.keys()
    for name, answer in ours.items():
        told = theirs["answers"][name]
        assert answer.keys() <= told.keys()
        assert {key: type(answer[key]) for key in answer} == {
            key: type(told[key]) for key in answer
        }
    assert ours["pair"]["probabilities"].keys() == theirs["answers"]["pair"]["probabilities"].keys()
    assert (
        ours["range"]["probabilities"].keys() == theirs["answers"]["range"]["probabilities"].keys()
    )
    assert theirs["diagnostics"]["pair"]["label_mass"] > 0
