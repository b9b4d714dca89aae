"""The vLLM backend against what a real vLLM 0.32 answered (recordings/*.json), and against odd
servers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Reading
from app.policy.calibration import random_prompts
from app.policy.encoding import PromptEncoder
from app.policy.in_process.label_reader import LabelReader
from app.policy.options import BackendOptions
from app.policy.scripted import SCRIPTED_MANIFEST
from app.policy.vllm import VllmPolicy
from tests import builders as build
from tests.policy.model_server import Server
from tests.telemetry import Told

RECORDINGS = Path(__file__).with_name("recordings")
PROMPT = random_prompts(1, seed=11)[0]


def recording(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    return document


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
async def policy(server: Server, smollm2_encoder: PromptEncoder) -> Any:
    options = BackendOptions(max_queue=2)
    policy = VllmPolicy(server.url, "advisor", SCRIPTED_MANIFEST, smollm2_encoder, options)
    yield policy
    await policy.aclose()


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


async def abstained(policy: VllmPolicy, deadline: float) -> PolicyAbstained:
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(PROMPT, deadline)
    return caught.value


async def test_it_asks_as_recorded_and_reads_the_labels_in_order(
    server: Server, policy: VllmPolicy, smollm2_encoder: PromptEncoder
) -> None:
    recorded = recording("labels")
    server.answer(recorded["response"])
    reading = await policy.decide(PROMPT, soon())
    path, _, request = server.requests[0]
    assert path == "/v1/completions"
    assert request == recorded["request"] | {
        "prompt": [*smollm2_encoder.head, *smollm2_encoder.encode(PROMPT)]
    }
    values = recorded["response"]["choices"][0]["logprobs"]["top_logprobs"][0]
    assert len(values) == len(LABELS)
    assert reading.log_probabilities == tuple(
        values[f"token_id:{n}"] for n in smollm2_encoder.label_ids
    )


async def test_a_prompt_with_news_is_asked_about_with_and_without_them(
    server: Server, policy: VllmPolicy, smollm2_encoder: PromptEncoder
) -> None:
    server.answer(recording("labels")["response"])
    reading = await policy.decide(PROMPT, soon())
    bare = PROMPT._replace(user=PROMPT.before)
    asked = [request["prompt"] for _, _, request in server.requests]
    assert asked == [
        [*smollm2_encoder.head, *smollm2_encoder.encode(prompt)] for prompt in (PROMPT, bare)
    ]
    assert reading.without_text == reading.log_probabilities, "the server says one thing"
    server.requests.clear()
    assert (await policy.decide(bare, soon())).without_text is None
    assert len(server.requests) == 1


def test_what_vllm_answered_agrees_with_transformers(smollm2: LabelReader) -> None:
    recorded = recording("labels")
    ids, head = recorded["request"]["prompt"], smollm2.encoder.head
    if tuple(ids[: len(head)]) != head:
        pytest.skip("recorded with another prompt version: run record_vllm.py again")
    values = recorded["response"]["choices"][0]["logprobs"]["top_logprobs"][0]
    expected = [values[f"token_id:{number}"] for number in smollm2.encoder.label_ids]
    assert smollm2.read([ids[len(head) :]])[0] == pytest.approx(expected, abs=1e-3)


async def test_a_server_that_ignores_the_label_ids_is_found_out(
    server: Server, policy: VllmPolicy
) -> None:
    server.answer(recording("without_label_ids")["response"])
    error = await abstained(policy, soon())
    assert error.reason is AbstainReason.BACKEND_PROTOCOL
    assert "lack labels ['B', 'C', 'D'" in error.detail


async def test_a_model_that_the_server_does_not_have_is_named(
    server: Server, policy: VllmPolicy
) -> None:
    recorded = recording("unknown_model")
    server.answer(recorded["response"], recorded["status"])
    error = await abstained(policy, soon())
    assert error.reason is AbstainReason.BACKEND_PROTOCOL
    assert error.detail.startswith("HTTP 404: ")
    assert "The model `another` does not exist" in error.detail


def with_logprobs(values: Any) -> dict[str, Any]:
    return {"choices": [{"text": "A", "logprobs": {"top_logprobs": [values]}}]}


def recorded_values(**changes: Any) -> dict[str, Any]:
    values = recording("labels")["response"]["choices"][0]["logprobs"]["top_logprobs"][0]
    return {
        **values,
        **{f"token_id:{name.removeprefix('t')}": value for name, value in changes.items()},
    }


ODD_ANSWERS: dict[str, Any] = {
    "a list": [],
    "null": None,
    "no choices": {"object": "text_completion"},
    "empty choices": {"choices": []},
    "two choices": {"choices": [{}, {}]},
    "a choice that is text": {"choices": ["A"]},
    "no logprobs": {"choices": [{"text": "A", "logprobs": None}]},
    "no top_logprobs": {"choices": [{"text": "A", "logprobs": {"top_logprobs": None}}]},
    "no position": {"choices": [{"text": "A", "logprobs": {"top_logprobs": []}}]},
    "position null": with_logprobs(None),
    "token strings": with_logprobs(dict.fromkeys(LABELS, -1.0)),
    "an eleventh token": with_logprobs(recorded_values(t7=-9.0)),
    "NaN": with_logprobs(recorded_values(t49=float("nan"))),
    "minus infinity": with_logprobs(recorded_values(t49=float("-inf"))),
    "a positive value": with_logprobs(recorded_values(t49=0.5)),
    "text for a number": with_logprobs(recorded_values(t49="-1.0")),
    "null for a number": with_logprobs(recorded_values(t49=None)),
    "certain of every label": with_logprobs(dict.fromkeys(recorded_values(), 0.0)),
    "true for a number": with_logprobs(recorded_values(t49=True)),
}


@pytest.mark.parametrize("answer", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_an_odd_answer_abstains(server: Server, policy: VllmPolicy, answer: Any) -> None:
    server.answer(answer)
    assert (await abstained(policy, soon())).reason is AbstainReason.BACKEND_PROTOCOL


@pytest.mark.parametrize("status", [400, 401, 422, 500, 503])
async def test_an_error_status_abstains_with_what_it_says(
    server: Server, policy: VllmPolicy, status: int
) -> None:
    server.answer({"error": {"message": "x" * 1000}}, status)
    error = await abstained(policy, soon())
    assert error.reason is AbstainReason.BACKEND_PROTOCOL
    assert error.detail.startswith(f"HTTP {status}: ")
    assert len(error.detail) == 300


async def test_text_instead_of_json_abstains(server: Server, policy: VllmPolicy) -> None:
    server.body = b"<html>Bad gateway"
    error = await abstained(policy, soon())
    assert (error.reason, error.detail) == (
        AbstainReason.BACKEND_PROTOCOL,
        "not JSON: <html>Bad gateway",
    )


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe\x00", b"NaN"])
async def test_what_no_parser_takes_abstains(
    server: Server, policy: VllmPolicy, body: bytes
) -> None:
    server.body = body
    error = await abstained(policy, soon())
    assert error.reason is AbstainReason.BACKEND_PROTOCOL
    assert error.detail.startswith("not JSON: ")


async def test_a_server_that_hangs_up_is_unavailable(server: Server, policy: VllmPolicy) -> None:
    server.hang_up = True
    assert (await abstained(policy, soon())).reason is AbstainReason.BACKEND_UNAVAILABLE
    assert await policy.explain(PROMPT, ACTIONS[0], soon()) is None


async def test_nobody_listening_is_unavailable(
    server: Server, smollm2_encoder: PromptEncoder
) -> None:
    server.close()
    policy = VllmPolicy(server.url, "advisor", SCRIPTED_MANIFEST, smollm2_encoder)
    error = await abstained(policy, soon())
    assert error.reason is AbstainReason.BACKEND_UNAVAILABLE
    assert "ConnectError" in error.detail
    await policy.aclose()


async def test_a_silent_server_abstains_at_the_deadline(server: Server, policy: VllmPolicy) -> None:
    server.gate.clear()
    assert (await abstained(policy, soon(0.1))).reason is AbstainReason.DEADLINE
    assert await policy.explain(PROMPT, ACTIONS[0], soon(0.1)) is None


async def test_a_request_over_the_bound_abstains_at_once(
    server: Server, policy: VllmPolicy
) -> None:
    server.answer(recording("labels")["response"])
    server.gate.clear()
    under_way = [asyncio.create_task(policy.decide(PROMPT, soon())) for _ in range(2)]
    for _ in under_way:
        await asyncio.to_thread(server.arrived.acquire)
    assert (await abstained(policy, soon())).reason is AbstainReason.OVERLOADED
    server.gate.set()
    first, second = await asyncio.gather(*under_way)
    assert first == second
    assert await policy.decide(PROMPT, soon()) == first


async def test_a_prompt_that_is_too_long_is_never_sent(server: Server, policy: VllmPolicy) -> None:
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(Prompt(PROMPT_VERSION, SYSTEM, "x y " * 2000), soon())
    assert caught.value.reason is AbstainReason.PROMPT_TOO_LONG
    assert server.requests == []


async def test_after_closing_it_abstains(policy: VllmPolicy) -> None:
    await policy.aclose()
    assert (await abstained(policy, soon())).reason is AbstainReason.SHUTTING_DOWN
    assert await policy.explain(PROMPT, ACTIONS[0], soon()) is None


async def test_closing_abstains_what_is_under_way(server: Server, policy: VllmPolicy) -> None:
    server.gate.clear()
    under_way = asyncio.create_task(abstained(policy, soon()))
    await asyncio.to_thread(server.arrived.acquire)
    await policy.aclose()
    assert (await under_way).reason is AbstainReason.SHUTTING_DOWN


async def test_a_rationale_is_asked_for_as_recorded(
    server: Server, policy: VllmPolicy, smollm2_encoder: PromptEncoder
) -> None:
    recorded = recording("rationale")
    server.answer(recorded["response"])
    text = await policy.explain(PROMPT, ACTIONS[5], soon())
    ids = [*smollm2_encoder.head, *smollm2_encoder.encode_explanation(PROMPT, ACTIONS[5])]
    assert server.requests[0][2] == recorded["request"] | {"prompt": ids}
    assert text == recorded["response"]["choices"][0]["text"].strip()


async def test_the_key_is_sent_and_the_mass_observed(
    server: Server, smollm2_encoder: PromptEncoder
) -> None:
    told = Told()
    policy = VllmPolicy(
        server.url,
        "advisor",
        SCRIPTED_MANIFEST,
        smollm2_encoder,
        BackendOptions(telemetry=told),
        api_key="secret",
    )
    server.answer(recording("labels")["response"])
    reading: Reading = await policy.decide(PROMPT, soon())
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    assert told.seen["prompts_wait"] == [1, 0]
    assert told.seen["labels_read"] == [reading.label_mass]
    await policy.aclose()


async def test_questions_are_requests_of_their_own_over_the_same_prompt(
    server: Server, smollm2_encoder: PromptEncoder
) -> None:
    """The stand-in says -n / 100 of token n: of each label its own."""
    server.reads = lambda request: {
        f"token_id:{number}": -number / 10 for number in request["logprob_token_ids"]
    }
    calibration = Calibration(outlook=build.outlook_calibration())
    manifest = SCRIPTED_MANIFEST.model_copy(update={"calibration": calibration})
    policy = VllmPolicy(
        server.url, "advisor", manifest, smollm2_encoder, BackendOptions(max_queue=1)
    )
    reading = await policy.decide(PROMPT, soon())
    bare = PROMPT._replace(user=PROMPT.before)
    whole_ids, bare_ids = (
        [*smollm2_encoder.head, *smollm2_encoder.encode(prompt)] for prompt in (PROMPT, bare)
    )
    asked = [request["prompt"] for _, _, request in server.requests]
    assert asked[:2] == [whole_ids, bare_ids], "the actions first: they fill the cache"
    tails = {name: smollm2_encoder.question(name) for name in QuestionName}
    assert sorted(asked[2:]) == sorted(
        [*ids, *tail.ids] for ids in (whole_ids, bare_ids) for tail in tails.values()
    )
    assert all(request["max_tokens"] == 1 for _, _, request in server.requests)
    assert reading.questions == reading.questions_without_text
    assert reading.questions == {
        name: tuple(-number / 10 for number in tail.label_ids) for name, tail in tails.items()
    }
    await policy.aclose()
