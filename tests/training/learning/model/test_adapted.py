"""The tail-only pass over cached keys and values is the whole pass; what is saved is PEFT's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from app.domain.features import FEATURE_NAMES
from app.domain.model.prompt import LineKind, lines_of
from app.domain.model.questions import QuestionName
from app.policy.calibration import random_scenarios
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.numbers import left_out_by
from app.policy.in_process.whole.weights import load_model
from app.policy.versions.store import NUMBERS_NAME
from tests.training.support.planted import (
    encode_lines,
    encoded,
    exact,
    randomise,
    short_prompts,
    tiny_reader,
)
from training.config.learning import AdapterConfig
from training.learning.model.adapted import adapted, opened, save_adapter, save_merged
from training.learning.model.base_pass import Encoded
from training.learning.model.shards import EncodeError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOLERANCE = 1e-4
CACHED = 2e-2
"""Keys and values are stored in float16."""
TINY = AdapterConfig(rank=4, alpha=8.0)
ORDINARY = AdapterConfig(rank=4, alpha=8.0, kind="ordinary")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelReader, Encoded, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    reader, base = tiny_reader(folder)
    return reader, encoded(folder, short_prompts(6), reader, base, batch=4, shard=4), base


def full_pass(model: Any, reader: LabelReader, encoded: Encoded, rows: list[int]) -> torch.Tensor:
    """One prompt after the other, without any cache, by PEFT's own forward."""
    found = []
    for row in rows:
        ids = [*reader.encoder.head, *encoded.ids(row), *reader.encoder.tail]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        found.append(torch.log_softmax(logits.float(), -1)[list(reader.encoder.label_ids)])
    return torch.stack(found)


def check_equal(
    reader: LabelReader, encoded: Encoded, base: Path, config: AdapterConfig, rows: list[int]
) -> None:
    source = exact(encoded, base) if config.kind == "activated" else encoded
    with adapted(reader, source, config, seed=0) as policy:
        with torch.no_grad():
            untrained = policy(torch.tensor(rows)).labels
        torch.testing.assert_close(
            untrained,
            torch.from_numpy(np.array(encoded.label_log_probs[rows])),
            atol=TOLERANCE,
            rtol=0,
        )
        randomise(policy)
        expected = full_pass(policy.model, reader, encoded, rows)
        with torch.no_grad():
            actual = policy(torch.tensor(rows)).labels
        torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)
        assert (actual - untrained).abs().max() > 10 * TOLERANCE  # the adapter does something
        if config.kind == "activated":
            policy.encoded = encoded
            with torch.no_grad():
                torch.testing.assert_close(
                    policy(torch.tensor(rows)).labels, expected, atol=CACHED, rtol=0
                )


@pytest.mark.parametrize("config", [TINY, ORDINARY], ids=["activated", "ordinary"])
def test_a_batch_of_tails_equals_whole_passes(
    tiny: tuple[LabelReader, Encoded, Path], config: AdapterConfig
) -> None:
    reader, rows, base = tiny
    check_equal(reader, rows, base, config, [4, 0, 3])


@pytest.mark.parametrize(
    "config", [AdapterConfig(), AdapterConfig(kind="ordinary")], ids=["activated", "ordinary"]
)
def test_on_smollm2_too(tmp_path: Path, config: AdapterConfig) -> None:
    base = import_smollm2(Path(__file__).parents[4] / "var" / "models")
    reader = LabelReader.load(base)
    texts = [lines_of(scenario) for scenario in random_scenarios(2, seed=5)]
    rows = Encoded.open(encode_lines(tmp_path, texts, reader, base))
    check_equal(reader, rows, base, config, [0, 1])


@pytest.mark.parametrize("config", [TINY, ORDINARY], ids=["activated", "ordinary"])
def test_questions_are_read_as_if_each_alone_followed_the_tail(
    tiny: tuple[LabelReader, Encoded, Path], config: AdapterConfig
) -> None:
    reader, stored, base = tiny
    source, rows, asked = exact(stored, base), [4, 0, 3], tuple(QuestionName)
    with adapted(reader, source, config, seed=0) as policy, torch.no_grad():
        randomise(policy)
        output = policy(torch.tensor(rows), questions=asked)
        torch.testing.assert_close(
            output.labels, policy(torch.tensor(rows)).labels, atol=TOLERANCE, rtol=0
        )
        for name in asked:
            tail = reader.encoder.question(name)
            for i, row in enumerate(rows):
                suffix = [*reader.encoder.tail, *tail.ids]
                ids = [*reader.encoder.head, *source.ids(row), *suffix]
                more = {"alora_offsets": [len(suffix)]} if config.kind == "activated" else {}
                logits = policy.model(
                    input_ids=torch.tensor([ids]), use_cache=False, **more
                ).logits[0, -1]
                expected = torch.log_softmax(logits.float(), -1)[list(tail.label_ids)]
                torch.testing.assert_close(
                    output.questions[name][i], expected, atol=TOLERANCE, rtol=0
                )


@pytest.mark.parametrize("config", [TINY, ORDINARY], ids=["activated", "ordinary"])
def test_texts_after_the_tail_are_read_as_the_whole_sequence_would_be(
    tiny: tuple[LabelReader, Encoded, Path], config: AdapterConfig
) -> None:
    reader, stored, base = tiny
    source = exact(stored, base)
    texts = [[5, 6, 7], [8, *reader.encoder.tail, 9, 10]]  # a dialogue holds the tail twice
    with adapted(reader, source, config, seed=0) as policy, torch.no_grad():
        randomise(policy)
        output = policy(torch.tensor([1, 2]), texts)
        assert output.text is not None
        for i, (row, text) in enumerate(zip([1, 2], texts, strict=True)):
            suffix = [*reader.encoder.tail, *text]
            ids = [*reader.encoder.head, *source.ids(row), *suffix]
            more = {"alora_offsets": [len(suffix)]} if config.kind == "activated" else {}
            logits = (
                policy.model(input_ids=torch.tensor([ids]), use_cache=False, **more)
                .logits[0]
                .log_softmax(-1)
            )
            begin = len(ids) - len(text)
            expected = torch.stack([logits[begin - 1 + t, text[t]] for t in range(len(text))])
            torch.testing.assert_close(
                output.text[i, : len(text)], expected, atol=TOLERANCE, rtol=0
            )
            assert (output.text[i, len(text) :] == 0).all()
            torch.testing.assert_close(
                output.labels[i],
                logits[begin - 1, list(reader.encoder.label_ids)],
                atol=TOLERANCE,
                rtol=0,
            )


def test_gradients_reach_every_part_of_the_adapter_and_nothing_else(
    tiny: tuple[LabelReader, Encoded, Path],
) -> None:
    reader, rows, _ = tiny
    with adapted(reader, rows, TINY, seed=0) as policy:
        randomise(policy)
        policy(torch.tensor([0, 1])).labels[:, 0].sum().backward()
        trained = {
            name: weights.grad
            for name, weights in policy.named_parameters()
            if weights.requires_grad
        }
        assert trained
        assert all("lora_" in name for name in trained)
        assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values())


def test_numbers_are_read_in_training_as_they_are_in_service(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path
) -> None:
    reader, stored, base = tiny
    source, rows, asked = exact(stored, base), [4, 0, 3], tuple(QuestionName)
    numbers = np.random.default_rng(0).normal(30, 5, (len(stored), len(FEATURE_NAMES)))
    numbers[4, :9], numbers[:, 9], numbers[:, 10] = np.nan, np.nan, 7.0
    object.__setattr__(source, "numbers", numbers)
    config = AdapterConfig(rank=4, alpha=8.0, numbers=3)
    with adapted(reader, source, config, seed=0) as policy, torch.no_grad():
        untrained = policy(torch.tensor(rows)).labels
        expected = torch.from_numpy(np.array(stored.label_log_probs[rows]))
        torch.testing.assert_close(untrained, expected, atol=TOLERANCE, rtol=0)
        randomise(policy, 1.0)
        trained = policy(torch.tensor(rows), questions=asked)
        said = torch.cat([trained.labels, *trained.questions.values()], dim=1)
        policy.numbers = None
        assert (policy(torch.tensor(rows)).labels - trained.labels).abs().max() > 0.01
        save_adapter(policy, tmp_path / "text", "tiny-1")
    assert not (tmp_path / "text" / NUMBERS_NAME).exists()
    with adapted(reader, source, config, seed=0) as policy, torch.no_grad():
        randomise(policy, 1.0)
        save_adapter(policy, tmp_path / "numbers", "tiny-1")
    with opened(reader, source, tmp_path / "numbers") as policy, torch.no_grad():
        again = policy(torch.tensor(rows)).labels
    torch.testing.assert_close(again, trained.labels, atol=TOLERANCE, rtol=0)
    service = LabelReader.load(base)
    adapter = Adapter.load(tmp_path / "numbers", service.model, service.encoder.tail)
    known = [[None if np.isnan(value) else value for value in numbers[row]] for row in rows]
    asks = [
        Ask((*source.ids(row), *service.encoder.tail), (adapter,), 0, asked, tuple(its))
        for row, its in zip(rows, known, strict=True)
    ]
    served = torch.tensor([row for [row] in service.answer(asks)])
    torch.testing.assert_close(served, said, atol=TOLERANCE, rtol=0)


def test_a_base_pass_without_numbers_is_refused(tiny: tuple[LabelReader, Encoded, Path]) -> None:
    reader, rows, _ = tiny
    config = AdapterConfig(rank=4, alpha=8.0, numbers=3)
    with pytest.raises(EncodeError, match="no numbers"), adapted(reader, rows, config, seed=0):
        pass


def test_an_adapter_reads_the_lines_that_it_was_trained_on(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path
) -> None:
    reader, stored, _ = tiny
    rows = replace(stored, left_out=frozenset({LineKind.BOOK}), _open={})
    rows = replace(rows, numbers=np.ones((len(rows), len(FEATURE_NAMES))))
    config = AdapterConfig(rank=4, alpha=8.0, numbers=3)
    with adapted(reader, rows, config, seed=0) as policy:
        save_adapter(policy, tmp_path, "tiny-1")
    assert left_out_by(tmp_path) == {LineKind.BOOK}
    with opened(reader, rows, tmp_path):
        pass
    others = replace(rows, left_out=frozenset(), _open={})
    with (
        pytest.raises(EncodeError, match="trained on other lines"),
        opened(reader, others, tmp_path),
    ):
        pass


@pytest.mark.filterwarnings("ignore:for base_model.*copying from a non-meta:UserWarning")
@pytest.mark.parametrize("config", [TINY, ORDINARY], ids=["activated", "ordinary"])
def test_a_saved_adapter_is_read_where_its_base_lies(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path, config: AdapterConfig
) -> None:
    reader, rows, base = tiny
    with adapted(reader, rows, config, seed=0) as policy:
        save_adapter(policy, tmp_path, "tiny-1")
    elsewhere, _ = tiny_reader(base.parent)
    elsewhere.model.to("meta")  # another device than where tensors come to be, as a GPU is
    with opened(elsewhere, rows, tmp_path) as policy:
        assert policy.device.type == "meta"
        tensors = [*policy.parameters(), *policy.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_what_is_saved_is_pefts_own_and_names_no_path(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path
) -> None:
    reader, rows, base = tiny
    with adapted(reader, rows, TINY, seed=0) as policy:
        randomise(policy)
        save_adapter(policy, tmp_path, "tiny-1")
        expected = full_pass(policy.model, reader, rows, [0, 5])
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny-1"
    assert settings["alora_invocation_tokens"] == list(reader.encoder.tail)
    loaded = PeftModel.from_pretrained(load_model(base), tmp_path).eval()
    torch.testing.assert_close(full_pass(loaded, reader, rows, [0, 5]), expected, atol=1e-6, rtol=0)


def test_the_reader_is_its_old_self_afterwards(tiny: tuple[LabelReader, Encoded, Path]) -> None:
    reader, rows, _ = tiny
    before = full_pass(reader.model, reader, rows, [0])
    with adapted(reader, rows, TINY, seed=0) as policy:
        randomise(policy)
    torch.testing.assert_close(full_pass(reader.model, reader, rows, [0]), before, atol=0, rtol=0)
    assert not any("lora" in name for name, _ in reader.model.named_parameters())


def test_an_ordinary_adapter_merges_into_a_plain_directory(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path
) -> None:
    reader, rows, base = tiny
    with adapted(reader, rows, ORDINARY, seed=0) as policy:
        randomise(policy)
        save_adapter(policy, tmp_path / "adapter", "tiny-1")
        expected = full_pass(policy.model, reader, rows, [0, 1])
    save_merged(tmp_path / "adapter", LabelReader.load(base), base, tmp_path / "merged")
    merged = LabelReader.load(tmp_path / "merged")
    torch.testing.assert_close(
        full_pass(merged.model, merged, rows, [0, 1]), expected, atol=TOLERANCE, rtol=0
    )
