"""Several model servers over real HTTP: one that dies, hangs, fails or has another model costs no
decision while another one answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.prompt import Prompt
from app.policy import replicas
from app.policy.calibration import random_prompts
from app.policy.encoding import PromptEncoder
from app.policy.options import BackendOptions
from app.policy.replicas import urls_of
from app.policy.scripted import SCRIPTED_MANIFEST
from app.policy.vllm import VllmPolicy
from app.telemetry import Attempt
from tests.policy.model_server import Server
from tests.telemetry import Told

ASKED = random_prompts(1, seed=11)[0]
PROMPT: Prompt = ASKED._replace(user=ASKED.before)
"""Without a text part: one request a decision."""


class Pair:
    """Two servers, a policy over both, and what was told of them."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.told = Told()
        self.first, self.second = Server(), Server()
        for server in (self.first, self.second):
            server.reads = lambda request: {
                f"token_id:{number}": -float(1 + place)
                for place, number in enumerate(encoder.label_ids)
            }
        self.policy = VllmPolicy(
            f"{self.first.url}, {self.second.url}/",
            "advisor",
            SCRIPTED_MANIFEST,
            encoder,
            BackendOptions(telemetry=self.told),
        )

    def ended(self) -> Counter[tuple[str, Attempt]]:
        names = {self.first.url: "first", self.second.url: "second"}
        return Counter((names[url], how) for url, how in self.told.seen["replica_asked"])


@pytest.fixture
async def pair(smollm2_encoder: PromptEncoder) -> AsyncIterator[Pair]:
    pair = Pair(smollm2_encoder)
    yield pair
    await pair.policy.aclose()
    pair.first.close()
    pair.second.close()


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


EXPECTED = tuple(-float(1 + place) for place in range(len(LABELS)))


async def decided(pair: Pair, seconds: float = 60) -> tuple[float, ...]:
    return (await pair.policy.decide(PROMPT, soon(seconds))).log_probabilities


def test_servers_are_separated_by_commas_and_count_once() -> None:
    assert urls_of("http://a:1, http://b:2/,,http://a:1/") == ("http://a:1", "http://b:2")


async def test_what_one_cannot_take_the_other_is_given(pair: Pair) -> None:
    """Two at once: the second goes to the server with nothing under way."""
    pair.first.gate.clear()
    held = asyncio.create_task(decided(pair))
    await asyncio.to_thread(pair.first.arrived.acquire)
    assert await decided(pair) == EXPECTED
    pair.first.gate.set()
    assert await held == EXPECTED
    assert pair.ended() == {("first", Attempt.ANSWERED): 1, ("second", Attempt.ANSWERED): 1}
    assert pair.policy.health == "2 of 2 servers answer"


def dies(pair: Pair) -> None:
    pair.first.close()


def hangs_up(pair: Pair) -> None:
    pair.first.hang_up = True


def fails(pair: Pair) -> None:
    pair.first.reads = None
    pair.first.answer({"error": {"message": "out of memory"}}, 500)


def has_another_model(pair: Pair) -> None:
    pair.first.reads = None
    pair.first.answer({"error": {"message": "The model `advisor` does not exist"}}, 404)


def says_other_tokens(pair: Pair) -> None:
    pair.first.reads = lambda request: {"token_id:7": -1.0}


def says_what_no_parser_takes(pair: Pair) -> None:
    pair.first.reads = None
    pair.first.body = b"[" * 200_000


@pytest.mark.parametrize(
    "fault",
    [says_what_no_parser_takes, dies, hangs_up, fails, has_another_model, says_other_tokens],
)
async def test_a_server_that_fails_costs_no_decision_and_rests(pair: Pair, fault: Any) -> None:
    fault(pair)
    for _ in range(5):
        assert await decided(pair) == EXPECTED
    ended = pair.ended()
    assert ended["second", Attempt.ANSWERED] == 5
    assert ended["first", Attempt.FAILED] < 5, "it is left alone for a while"
    assert pair.policy.health.startswith(f"1 of 2 servers answer; {pair.first.url}: ")
    assert await pair.policy.explain(PROMPT, ACTIONS[0], soon()) is None, "labels are no sentence"


async def test_a_server_is_asked_again_when_it_has_rested(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "REST_S", 0.0)
    hangs_up(pair)
    await decided(pair)
    pair.first.hang_up = False
    await decided(pair)
    assert pair.ended()["first", Attempt.ANSWERED] == 1
    assert pair.policy.health == "2 of 2 servers answer"


async def test_one_that_hangs_is_overtaken_within_the_deadline(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "FIRST_HEDGE_S", 0.01)
    pair.first.gate.clear()
    assert await decided(pair) == EXPECTED
    assert pair.ended() == {("second", Attempt.ANSWERED): 1, ("first", Attempt.OVERTAKEN): 1}
    assert "slower than another" in pair.policy.health


async def test_hedges_have_a_budget(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten at once, then a tenth of what is asked."""
    monkeypatch.setattr(replicas, "FIRST_HEDGE_S", 0.001)
    monkeypatch.setattr(replicas, "MOST_HEDGES", 0.5)
    pair.policy._replicas._hedges = 0.0
    pair.first.gate.clear()
    with pytest.raises(PolicyAbstained) as caught:
        await decided(pair, 0.2)
    assert caught.value.reason is AbstainReason.DEADLINE
    assert not pair.second.requests


async def test_where_all_fail_the_last_failure_is_told(pair: Pair) -> None:
    fails(pair)
    pair.second.hang_up = True
    with pytest.raises(PolicyAbstained) as caught:
        await decided(pair)
    assert caught.value.reason is AbstainReason.BACKEND_UNAVAILABLE
    fails(pair)
    pair.second.hang_up = False
    assert await decided(pair) == EXPECTED, "all rest: the one that is ready first is asked"
