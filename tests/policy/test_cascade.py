"""Rough readings: near exact ones, never mixed with them, allowed by a certificate and watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from app.domain.errors import InvalidRecord, ModelFileError
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.decision import Engine, Reading
from app.policy.backends import Backends
from app.policy.in_process import batching, cascade, certificate, engines, packed
from app.policy.in_process.batching import Batcher
from app.policy.in_process.cascade import Cascade, difference
from app.policy.in_process.certificate import Certificate
from app.policy.in_process.certifying import Pair, certificate_of, certify
from app.policy.in_process.engines import read_roughly, reader_by
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.policy import TransformersPolicy
from app.policy.in_process.whole.weights import load_model
from app.policy.options import BackendOptions
from app.policy.scripted import SCRIPTED_MANIFEST
from app.telemetry import Rough
from tests import builders as build
from tests.policy.peft_reading import activated, ids_of
from tests.policy.tiny_models import POSITIONS, save_tiny_model, write_manifest
from tests.telemetry import Told

KIND = "test_bf16"
Rows = list[list[tuple[float, ...]]]
AT = datetime(2026, 11, 27, tzinfo=UTC)
ONEDNN = BackendOptions(engine=Engine.ONEDNN, prompt_tokens=POSITIONS)
PROMPT = Prompt(PROMPT_VERSION, SYSTEM, "BTC long, and some more")
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16 faster, whatever this one is."""
    monkeypatch.setattr(engines, "kind_here", lambda: KIND)
    monkeypatch.setattr(certificate, "kind_here", lambda: KIND)
    monkeypatch.setattr(packed, "_is_faster_roughly", lambda layer, switch: True)


@pytest.fixture
def exact(tiny_directory: Path, tiny: LabelReader) -> LabelReader:
    return reader_by(ONEDNN, load_model(tiny_directory), tiny.encoder)


def vouching(manifest: ModelManifest, **changes: object) -> Certificate:
    fields = {
        "model_version": manifest.model_version,
        "manifest_hash": manifest.hash(),
        "kind": KIND,
        "torch": torch.__version__,
        "created_at": AT,
        "prompts": 2000,
        "mean": 0.002,
        "largest": 0.05,
        "within": 0.075,
        "actions_equal": 1.0,
        "read_again": 0.02,
    }
    return Certificate.from_json(fields | changes)


def test_in_two_steps_as_in_one(exact: LabelReader, tmp_path: Path) -> None:
    adapter = activated(exact, tmp_path / "a", 1)
    asks = [Ask(row, (None, adapter), text) for text, row in enumerate(ids_of(exact))]
    rough = [ask._replace(rough=True) for ask in asks]
    expected = exact.answer(asks)
    assert_near(exact.answer(rough), expected)  # Exact trunks are kept, and serve all.
    for ask in asks:
        exact._trunks.forget(exact._user(ask.ids))
    assert_near(exact.answer(rough), expected)


def assert_near(found: Rows, expected: Rows) -> None:
    """Equal but for the order of sums."""
    for some, others in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(some), torch.tensor(others), atol=1e-4, rtol=0)


@needs_bfloat16
def test_rough_readings_are_near_and_leave_exact_ones_alone(
    exact: LabelReader, tiny: LabelReader, tmp_path: Path
) -> None:
    assert read_roughly(ONEDNN, exact)
    adapter, other = activated(exact, tmp_path / "a", 1), activated(tiny, tmp_path / "b", 1)
    for row in ids_of(exact):
        ask = Ask(row, (adapter,), 1)
        rough = exact.answer([ask._replace(rough=True)])
        assert_near(exact.answer([ask._replace(rough=True)]), rough)  # Over the trunk of before.
        after = exact.answer([ask])
        assert_near(after, tiny.answer([Ask(row, (other,), 1)]))
        apart = (torch.tensor(rough) - torch.tensor(after)).abs().max()
        assert 1e-4 < apart < 0.5
    ask = Ask((*ids_of(exact)[0],), (adapter,))
    exact._trunks.forget(exact._user(ask.ids))
    mixed, alone = exact.answer([ask._replace(rough=True), ask])
    assert mixed != alone


@needs_bfloat16
def test_where_it_is_no_faster_or_says_something_else_nothing_is_read_roughly(
    exact: LabelReader, tiny: LabelReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    options = BackendOptions(telemetry=told)
    assert not read_roughly(options, tiny), "torch's layers are not packed"
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_is_faster_roughly", lambda layer, switch: False)
        assert not read_roughly(options, exact)
        patch.setattr(engines, "kind_here", lambda: None)
        assert not read_roughly(options, exact)
    assert not told.seen["engine_failed"]
    monkeypatch.setattr(engines, "ROUGH_NATS", -1.0)
    assert not read_roughly(options, exact)
    assert len(told.seen["engine_failed"]) == 1
    assert exact.rough is None


@pytest.fixture
async def policy(exact: LabelReader) -> AsyncIterator[TransformersPolicy]:
    told = Told()
    batcher = Batcher(exact, BackendOptions(telemetry=told))
    batcher.can_read_roughly()
    made = TransformersPolicy(
        batcher, SCRIPTED_MANIFEST, cascade=Cascade(vouching(SCRIPTED_MANIFEST), told)
    )
    yield made
    await made.aclose()


def soon() -> float:
    return time.monotonic() + 60


@needs_bfloat16
async def test_only_who_asks_for_it_is_given_a_rough_reading(policy: TransformersPolicy) -> None:
    plain = await policy.decide(PROMPT, soon())
    assert (plain.engine, plain.within) == (Engine.ONEDNN, None)
    other = PROMPT._replace(user="ETH long, and some more")
    rough = await policy.decide(other, soon(), rough=True)
    assert (rough.engine, rough.within) == (Engine.BFLOAT16, 0.075)
    exact = await policy.decide(other, soon())
    assert exact.engine is Engine.ONEDNN
    assert 0 < difference(rough, exact) < 0.075
    third = PROMPT._replace(user="SOL long, and some more")
    both = await asyncio.gather(
        policy.decide(third, soon(), rough=True), policy.decide(third, soon())
    )
    assert {reading.engine for reading in both} == {Engine.ONEDNN}, "an exact one serves both"


@needs_bfloat16
async def test_a_share_is_watched_while_the_model_is_idle_and_one_too_far_off_ends_it(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, "WATCH_EVERY", 2)
    monkeypatch.setattr(batching, "QUIET_S", 0.01)
    assert policy.cascade is not None
    told = policy.cascade._telemetry
    assert isinstance(told, Told)
    prompts = [PROMPT._replace(user=f"BTC long {'x' * number}") for number in range(4)]
    for prompt in prompts[:2]:
        await policy.decide(prompt, soon(), rough=True)
    await asyncio.gather(*policy._watches)
    assert told.seen["rough_compared"] == [Rough.NEAR]
    assert policy.health.startswith("roughly, within 0.075 nats (2000 prompts, test_bf16)")
    policy.cascade.certificate = vouching(SCRIPTED_MANIFEST, mean=1e-9, largest=1e-9, within=1e-9)
    for prompt in prompts[2:]:
        await policy.decide(prompt, soon(), rough=True)
    await asyncio.gather(*policy._watches)
    assert told.seen["rough_compared"] == [Rough.NEAR, Rough.BEYOND]
    assert policy.health.startswith("exactly: a rough reading was ")
    assert (await policy.decide(PROMPT, soon(), rough=True)).within is None


@needs_bfloat16
async def test_a_version_with_a_certificate_is_read_roughly_when_no_engine_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(engines, "is_faster", lambda layers: True)
    manifest = write_manifest(save_tiny_model(tmp_path / "v1"), "v1")
    vouching(manifest).write(tmp_path / "certificates")
    for engine, places, within in (
        (None, (tmp_path / "certificates",), 0.075),
        (Engine.ONEDNN, (tmp_path / "certificates",), None),
        (None, (tmp_path,), None),
    ):
        options = BackendOptions(engine=engine, certificates=places, prompt_tokens=POSITIONS)
        policy = Backends(options).load(tmp_path / "v1")
        reading = await policy.decide(PROMPT, soon(), rough=True)
        await policy.aclose()
        assert reading.within == within


def test_a_certificate_is_good_for_one_version_processor_and_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = vouching(SCRIPTED_MANIFEST)
    path = mine.write(tmp_path)
    assert Certificate.find(SCRIPTED_MANIFEST, [tmp_path / "none", tmp_path]) == mine
    others = SCRIPTED_MANIFEST.model_copy(update={"licence": "MIT"})
    assert Certificate.find(others, [tmp_path]) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        assert Certificate.find(SCRIPTED_MANIFEST, [tmp_path]) is None
    path.write_text("{")
    assert Certificate.find(SCRIPTED_MANIFEST, [tmp_path]) is None
    monkeypatch.setattr(certificate, "kind_here", lambda: None)
    assert Certificate.find(SCRIPTED_MANIFEST, [tmp_path]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": 1999},
        {"within": 0.2},
        {"within": 0.0},
        {"within": 1e-9},
        {"mean": 0.09},
    ],
)
def test_few_prompts_and_rough_ones_make_no_certificate(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRecord):
        vouching(SCRIPTED_MANIFEST, **wrong)


def test_a_certificate_says_what_was_seen() -> None:
    """H leads by little in two of 2,000. The largest difference is 0.01; within is half as much
    again."""

    def pair(lead: float, off: float) -> Pair:
        exact = Reading(log_probabilities=(-0.5 - lead, *[-9.0] * 6, -0.5, -9.0, -9.0))
        moved = (exact.log_probabilities[0] + off, *exact.log_probabilities[1:])
        return Pair(exact.model_copy(update={"log_probabilities": moved}), exact)

    pairs = [pair(2.0, 0.001)] * 1998 + [pair(0.02, 0.01), pair(0.005, 0.01)]
    made = certificate_of(SCRIPTED_MANIFEST, pairs, AT)
    assert made.largest == pytest.approx(0.01)
    assert made.within == pytest.approx(0.015)
    assert made.mean == pytest.approx((1998 * 0.001 + 0.02) / 2000)
    assert made.actions_equal == pytest.approx(1999 / 2000)
    assert made.read_again == pytest.approx(2 / 2000)
    assert made.quantile == pytest.approx(0.05 ** (1 / 2000))


@needs_bfloat16
async def test_certifying_reads_both_ways(exact: LabelReader, tiny: LabelReader) -> None:
    policy = TransformersPolicy(Batcher(exact, ONEDNN), SCRIPTED_MANIFEST)
    with pytest.raises(InvalidRecord, match="prompts"):
        certify(policy, [build.scenario(), build.scenario(candidate__rsi=20.0)], AT)
    slow = TransformersPolicy(Batcher(tiny, ONEDNN), SCRIPTED_MANIFEST)
    with pytest.raises(ModelFileError, match="needs no certificate"):
        certify(slow, [], AT)
    await policy.aclose()
    await slow.aclose()
