"""Asking over real HTTP: a model that speaks each protocol, and servers that do not mean well."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.domain.canonical import digest
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import LABELS
from app.domain.model.inquiry import Inquiry
from app.domain.record.decision import Reading
from app.policy.deciders.decider import MOST_BYTES, Decider
from app.policy.deciders.spent import Budget
from app.policy.deciders.table import Declared
from bench.serving.stand_in import StandIn, standing_in
from tests import builders as build

NAMES = [option.name for option in Inquiry().options]
KEY = "sk-never-shown-1234567890"
DAY = datetime(2026, 11, 26, 12, tzinfo=UTC)


def decider(url: str, folder: Path, protocol: str = "systemone", **more: Any) -> Decider:
    declared = Declared.from_json(
        {"name": "jev", "protocol": protocol, "url": url, "model": "jev-latest", **more}
    )
    return Decider(declared, KEY, folder, lambda: DAY)


async def ask(asked: Decider, within_s: float = 20.0, inquiry: Inquiry | None = None) -> Reading:
    try:
        return await asked.ask(
            build.scenario(), inquiry or asked.inquiry, time.monotonic() + within_s
        )
    finally:
        await asked.aclose()


@pytest.mark.parametrize("protocol", ["systemone", "decisions", "chat"])
async def test_each_protocol_gives_the_models_own_probabilities(
    tmp_path: Path, protocol: str
) -> None:
    model = StandIn(mass=0.8)
    async with standing_in(model) as url:
        reading = await ask(decider(url, tmp_path, protocol, price_in=0.5))
    [(path, headers, body)] = model.asked
    assert path == {"chat": "/v1/chat/completions"}.get(protocol, f"/v1/{protocol}")
    assert headers["authorization"] == f"Bearer {KEY}"
    state = body.get("state") or body.get("input") or body["messages"][1]["content"]
    text = json.dumps(state, sort_keys=True) if protocol == "systemone" else state
    expected = model.probabilities(text, NAMES)
    told = 1.0 if protocol == "decisions" else 0.8
    exchange = reading.exchange
    assert exchange is not None
    assert [math.exp(value) / told for value in reading.log_probabilities] == pytest.approx(
        expected
    )
    assert exchange.label_mass == (None if protocol == "decisions" else pytest.approx(0.8))
    assert exchange.question == digest(orjson.dumps(body))
    assert exchange.order == LABELS
    assert exchange.model == "jev-latest-exact"
    assert exchange.input_tokens == (320 if protocol == "chat" else 300)
    told_cost = {"systemone": 300 * 0.5e-6, "decisions": 0.0004, "chat": 320 * 0.5e-6}
    assert exchange.cost == pytest.approx(told_cost[protocol])


@pytest.mark.parametrize("protocol", ["systemone", "decisions", "chat"])
async def test_a_model_that_does_not_look_at_places_says_the_same_in_any_order(
    tmp_path: Path, protocol: str
) -> None:
    async with standing_in(StandIn()) as url:
        listed = await ask(decider(url, tmp_path, protocol))
        other = await ask(decider(url, tmp_path, protocol), inquiry=Inquiry().permuted("x"))
    assert other.exchange is not None
    assert other.exchange.order != LABELS
    assert other.log_probabilities == pytest.approx(listed.log_probabilities)


async def test_a_model_that_leans_to_the_first_place_does_not(tmp_path: Path) -> None:
    async with standing_in(StandIn(lean=5.0)) as url:
        first = await ask(decider(url, tmp_path))
        last = await ask(decider(url, tmp_path, order="reversed"))
    assert max(range(10), key=first.log_probabilities.__getitem__) == 0
    assert max(range(10), key=last.log_probabilities.__getitem__) == 9


async def test_to_trade_or_not_is_a_choice_of_two(tmp_path: Path) -> None:
    model = StandIn(mass=1.0)
    async with standing_in(model) as url:
        reading = await ask(decider(url, tmp_path, question="trade", masked=True))
    question = model.asked[0][2]["questions"]["decision"]
    assert list(question["criteria"]) == ["reject", "trade"]
    assert model.asked[0][2]["state"]["coin"] == "coin"
    chances = [math.exp(value) for value in reading.log_probabilities]
    assert chances[0] + chances[8] == pytest.approx(1.0), "a stop of 1.5 ATR is that of the plan"


def systemone(**changes: Any) -> bytes:
    """An answer as it should be, with changes to the question's answer."""
    chances = dict(zip(NAMES, [0.1] * 10, strict=True))
    answer = {"type": "choice", "choice": "reject", "probabilities": chances, "confidence": 0.1}
    return json.dumps({"model": "m", "answers": {"decision": answer | changes}}).encode()


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def answering(answer: bytes, pause_s: float = 0.0) -> AsyncIterator[str]:
    """A server that answers whatever it is asked with these bytes; one by one, with a pause."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            parts = [answer] if not pause_s else [answer[at : at + 1] for at in range(len(answer))]
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def chances(**changes: Any) -> dict[str, Any]:
    return dict(zip(NAMES, [0.1] * 10, strict=True)) | changes


WITHOUT_ONE = dict.fromkeys(NAMES[1:], 1 / 9)
HOSTILE = {
    "not JSON": (http(b"<html>no</html>"), "the answer is not JSON"),
    "NaN": (http(systemone(probabilities=chances(reject=float("nan")))), "the answer is not JSON"),
    "no object": (http(b"[]"), "no JSON object"),
    "deeply nested": (http(b"[" * 100_000), "the answer is not JSON"),
    "sums to more": (http(systemone(probabilities=chances(reject=0.2))), "sum to 1.1"),
    "negative": (http(systemone(probabilities=chances(reject=-0.1))), "between 0 and 1"),
    "text for a number": (http(systemone(probabilities=chances(reject="0.1"))), "between 0 and 1"),
    "true for a number": (http(systemone(probabilities=chances(reject=True))), "between 0 and 1"),
    "infinite": (
        http(systemone().replace(b"0.1,", b"1e999,", 1)),
        "",
    ),
    "an option more": (http(systemone(probabilities=chances(all_in=0.0))), "not of the options"),
    "an option less": (http(systemone(probabilities=WITHOUT_ONE)), "not of the options"),
    "an unknown choice": (http(systemone(choice="all_in")), "its choice is not the option"),
    "a choice of no text": (http(systemone(choice=["reject"])), "its choice is not the option"),
    "a choice against its numbers": (
        http(systemone(probabilities={**dict.fromkeys(NAMES, 0.0), NAMES[1]: 1.0})),
        "its choice is not the option",
    ),
    "another type": (http(systemone(type="noul")), "no choice"),
    "probabilities of no kind": (http(systemone(probabilities=7)), "not of the options"),
    "no answer": (http(b'{"answers": {}}'), "declined"),
    "answers of no kind": (http(b'{"answers": "yes"}'), "declined"),
    "a strange mass": (
        http(systemone()[:-1] + b', "diagnostics": {"decision": {"label_mass": "all"}}}'),
        "label mass",
    ),
    "redirected": (http(b"", "307 Away", "Location: http://169.254.169.254/"), "leads elsewhere"),
    "unauthorised": (http(KEY.encode(), "401 No"), "HTTP 401: the key is refused"),
    "not there": (http(KEY.encode(), "404 No"), "HTTP 404"),
    "not for this model": (
        http(b"", "501 No"),
        "HTTP 501: the server does not answer this protocol",
    ),
    "overloaded": (http(KEY.encode(), "503 No"), "HTTP 503"),
    "too often": (http(KEY.encode(), "429 No"), "HTTP 429"),
    "huge": (http(b"x" * (MOST_BYTES + 1)), "larger than 262144 bytes"),
    "endless": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"4000\r\n"
        + b"x" * 0x4000
        + b"\r\n"
        + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 40,
        "larger than 262144 bytes",
    ),
    "compressed": (http(b"x", "200 OK", "Content-Encoding: gzip"), "compressed"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "RemoteProtocolError"),
    "hung up": (b"", "RemoteProtocolError"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_answer_is_refused_with_one_sentence_that_holds_no_secret(
    tmp_path: Path, name: str
) -> None:
    answer, why = HOSTILE[name]
    async with answering(answer) as url:
        with pytest.raises(PolicyAbstained) as refused:
            await ask(decider(url, tmp_path))
    assert why in str(refused.value)
    assert KEY not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.reason in set(AbstainReason)


async def test_an_answer_that_trickles_ends_at_the_deadline(tmp_path: Path) -> None:
    async with answering(http(systemone()), pause_s=0.05) as url:
        began = time.monotonic()
        with pytest.raises(PolicyAbstained) as refused:
            await ask(decider(url, tmp_path), within_s=0.3)
    assert refused.value.reason is AbstainReason.DEADLINE
    assert time.monotonic() - began < 20


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(PolicyAbstained) as refused:
        await ask(decider("http://127.0.0.1:9", tmp_path))
    assert refused.value.reason is AbstainReason.BACKEND_UNAVAILABLE
    assert KEY not in str(refused.value)


async def test_rounded_probabilities_are_made_to_sum_to_one(tmp_path: Path) -> None:
    told = chances(reject=0.12)
    async with answering(http(systemone(probabilities=told))) as url:
        reading = await ask(decider(url, tmp_path))
    assert math.exp(reading.log_probabilities[0]) == pytest.approx(0.12 / 1.02)


async def test_a_refusal_of_the_decisions_form_is_declined(tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "answers": [{"type": "refusal", "name": "decision"}]})
    async with answering(http(body.encode())) as url:
        with pytest.raises(PolicyAbstained) as refused:
            await ask(decider(url, tmp_path, "decisions"))
    assert refused.value.reason is AbstainReason.DECLINED


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]},
        {
            "choices": [
                {"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": -1}]}]}}
            ]
        },
        {
            "choices": [
                {"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": 3}]}]}}
            ]
        },
        {"choices": [{"logprobs": {"content": [{"top_logprobs": ["A"]}]}}]},
        {"answers": [{"type": "choice", "probabilities": [7]}]},
    ],
)
async def test_an_odd_chat_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with answering(http(json.dumps(body).encode())) as url:
        with pytest.raises(PolicyAbstained):
            await ask(decider(url, tmp_path, "chat"))


def test_a_days_budget_outlives_the_process_and_begins_anew_at_midnight(tmp_path: Path) -> None:
    path = tmp_path / "deciders" / "jev.json"
    first = Budget(path, per_day=3, cost_per_day=None)
    assert [first.take(DAY), first.take(DAY)] == [True, True]
    after = Budget(path, per_day=3, cost_per_day=None)
    assert [after.take(DAY), after.take(DAY)] == [True, False]
    assert after.take(datetime(2026, 11, 27, 0, 0, 1, tzinfo=UTC))


def test_what_was_paid_ends_a_day_as_well(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "jev.json", per_day=100, cost_per_day=1.0)
    assert budget.take(DAY)
    budget.add(0.6)
    assert budget.take(DAY)
    budget.add(0.6)
    assert not Budget(tmp_path / "jev.json", per_day=100, cost_per_day=1.0).take(DAY)


def test_nothing_is_asked_where_it_cannot_be_noted(tmp_path: Path) -> None:
    (tmp_path / "deciders").write_text("a file where a folder should be")
    assert not Budget(tmp_path / "deciders" / "jev.json", 100, None).take(DAY)
