"""Engines: the same labels by other libraries; one that fails is not used, and somebody is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.decision import Engine, Reading, propose
from app.policy.backends import Backends
from app.policy.calibration import random_prompts
from app.policy.in_process import packed
from app.policy.in_process.attention import attend
from app.policy.in_process.engines import EQUAL_NATS, reader_by
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.packed import PackedLinear
from app.policy.in_process.whole.served import load_to_serve
from app.policy.options import BackendOptions
from tests.policy.peft_reading import activated, ids_of
from tests.policy.tiny_models import POSITIONS, save_tiny_model, write_manifest
from tests.telemetry import Told

ONEDNN = BackendOptions(engine=Engine.ONEDNN, prompt_tokens=POSITIONS)


@pytest.mark.parametrize("shared", [1, 3])
def test_attention_by_onednn_is_attention(shared: int) -> None:
    torch.manual_seed(5)
    query = torch.randn(2, 2 * shared, 7, 8)
    key, value = torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 4)
    mask = torch.zeros(2, 1, 7, 11)
    mask[0, :, :, 6:] = torch.finfo(mask.dtype).min
    scores = query @ key.repeat_interleave(shared, 1).transpose(-1, -2) * 0.3 + mask
    expected = torch.softmax(scores, -1) @ value.repeat_interleave(shared, 1)
    found = attend(query, key, value, mask, 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_is_the_layer(bias: bool) -> None:
    torch.manual_seed(3)
    plain = nn.Linear(48, 80, bias=bias)
    states = torch.randn(2, 5, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain)(states), plain(states), atol=1e-5, rtol=0)


class Siblings(nn.Module):
    """Layers as a model has them; `odd` takes no part."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(48, size, bias=bias) for size in (32, 16, 80)
        )
        self.odd = nn.Linear(48, 16, bias=bias)

    def get_output_embeddings(self) -> None:
        """None is the vocabulary's head."""


@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_read_the_same_states_share_a_product(bias: bool) -> None:
    torch.manual_seed(3)
    model = Siblings(bias)
    some, others = torch.randn(2, 5, 48), torch.randn(1, 3, 48)
    with torch.inference_mode():
        plain = packed.pack(model)
        shared = {id(getattr(model, name).product) for name in ("q_proj", "k_proj", "v_proj")}
        assert len(shared) == 1
        for order, states in (
            (("q_proj", "k_proj", "v_proj", "odd"), some),
            (("v_proj", "k_proj", "q_proj", "q_proj"), some),
            (("q_proj", "q_proj"), others),
            (("k_proj",), some),
            (("v_proj",), others),
        ):
            for name in order:
                found = model.get_submodule(name)(states)
                torch.testing.assert_close(found, plain[name](states), atol=1e-5, rtol=0)
                found.view(-1, found.shape[-1])[0] += 7  # As adapters do, to nobody else's outputs.


def test_while_weights_are_laid_out_the_model_is_what_it_was_and_stays_so_where_that_fails() -> (
    None
):
    model = Siblings(bias=True)
    before = dict(model.named_modules())

    def is_as_before() -> bool:
        return all(model.get_submodule(name) is module for name, module in before.items())

    def fails() -> None:
        with packed.packing(model):
            assert is_as_before()
            raise RuntimeError("the trial failed")

    with pytest.raises(RuntimeError, match="the trial failed"):
        fails()
    assert is_as_before()
    with packed.packing(model) as plain:
        assert is_as_before()
    assert not is_as_before()
    packed.put(model, plain)
    assert is_as_before()


def test_layers_of_other_kinds_beside_each_other_multiply_for_themselves() -> None:
    model = Siblings(bias=False)
    model.k_proj = nn.Linear(48, 16, bias=True)
    packed.pack(model)
    assert model.get_submodule("q_proj").product is not model.get_submodule("k_proj").product
    states = torch.randn(2, 48)
    with torch.inference_mode():
        assert model.k_proj(states).shape == (2, 16)


def test_onednn_says_what_torch_says_with_adapters_and_with_and_without_text(
    tiny: LabelReader, tiny_directory: Path, tmp_path: Path
) -> None:
    reader = reader_by(ONEDNN, load_to_serve(tiny_directory), tiny.encoder)
    assert reader.engine is Engine.ONEDNN
    adapter, other = activated(tiny, tmp_path / "a", 1), activated(reader, tmp_path / "b", 1)
    ids = ids_of(tiny)
    for expected, found in zip(
        tiny.answer([Ask(row, (None, adapter), 1) for row in ids]),
        reader.answer([Ask(row, (None, other), 1) for row in ids]),
        strict=True,
    ):
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected), atol=EQUAL_NATS / 10, rtol=0
        )


def test_of_the_real_model_every_decision_is_equal(
    smollm2: LabelReader, smollm2_directory: Path, smollm2_manifest: ModelManifest
) -> None:
    reader = reader_by(
        BackendOptions(engine=Engine.ONEDNN), load_to_serve(smollm2_directory), smollm2.encoder
    )
    policies = [propose_by(each, smollm2_manifest) for each in (smollm2, reader)]
    assert policies[0] == policies[1]
    assert len(set(policies[0])) > 1, "it tells prompts apart"


def propose_by(reader: LabelReader, manifest: ModelManifest) -> list[str]:
    rows = [reader.encoder.encode(prompt) for prompt in random_prompts(24, seed=11)]
    return [
        propose(Reading(log_probabilities=row), manifest.calibration).label
        for row in reader.read(rows)
    ]


def test_torch_reads_where_it_is_asked_for_and_where_packing_is_no_faster(
    tiny: LabelReader, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = BackendOptions(engine=Engine.TORCH)
    assert reader_by(asked, load_to_serve(tiny_directory), tiny.encoder).engine is Engine.TORCH
    unhurried = reader_by(BackendOptions(), load_to_serve(tiny_directory), tiny.encoder)
    assert unhurried.engine is Engine.TORCH, "layers so small are not worth it"
    monkeypatch.setattr(packed, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(packed, "_least_seconds", lambda layer, states: 1.0)
    slow = reader_by(BackendOptions(), load_to_serve(tiny_directory), tiny.encoder)
    assert slow.engine is Engine.TORCH
    assert slow.read([slow.encoder.tail]) == tiny.read([tiny.encoder.tail])


def test_the_fastest_is_taken_by_itself(
    tiny: LabelReader, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(
        packed, "_least_seconds", lambda layer, states: 1.0 - isinstance(layer, PackedLinear)
    )
    reader = reader_by(BackendOptions(), load_to_serve(tiny_directory), tiny.encoder)
    assert reader.engine is Engine.ONEDNN


class Wrong(PackedLinear):
    """Off by a hundredth."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 1.01


class Broken(PackedLinear):
    """Does not run here."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")


class Odd(PackedLinear):
    """Fails in a way of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise ValueError("this primitive takes no such layout")


class Blind(PackedLinear):
    """Says no numbers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * float("nan")


@pytest.mark.parametrize("kind", [Wrong, Broken, Odd, Blind])
def test_an_engine_that_fails_is_not_used_and_is_counted(
    tiny: LabelReader,
    tiny_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[PackedLinear],
) -> None:
    monkeypatch.setattr(packed, "PackedLinear", kind)
    told = Told()
    options = BackendOptions(engine=Engine.ONEDNN, telemetry=told)
    reader = reader_by(options, load_to_serve(tiny_directory), tiny.encoder)
    assert reader.engine is Engine.TORCH
    assert reader.model.config._attn_implementation == "sdpa"
    assert len(told.seen["engine_failed"]) == 1
    assert reader.read([reader.encoder.tail]) == tiny.read([tiny.encoder.tail])


def test_where_there_is_no_onednn_torch_reads_and_nothing_has_failed(
    tiny: LabelReader, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    told = Told()
    options = BackendOptions(telemetry=told)
    assert reader_by(options, load_to_serve(tiny_directory), tiny.encoder).engine is Engine.TORCH
    assert not told.seen["engine_failed"]


async def test_the_engine_is_named_in_every_reading_and_counted(tmp_path: Path) -> None:
    told = Told()
    options = BackendOptions(engine=Engine.ONEDNN, prompt_tokens=POSITIONS, telemetry=told)
    write_manifest(save_tiny_model(tmp_path / "v1"), "v1")
    policy = Backends(options).load(tmp_path / "v1")
    reading = await policy.decide(
        Prompt(PROMPT_VERSION, SYSTEM, "BTC"), deadline=time.monotonic() + 60
    )
    await policy.aclose()
    assert reading.engine is Engine.ONEDNN
    assert told.seen["read_by"] == [Engine.ONEDNN]
    assert Reading.from_json(reading.as_json()) == reading
    old = reading.as_json()
    del old["engine"]
    assert Reading.from_json(old).as_json() == old, "records from before engines stay as they were"
