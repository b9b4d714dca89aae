"""Reading labels from a model: cached head, padding and batches change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, MistralConfig

from app.domain.errors import ModelFileError
from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.model.questions import QuestionName
from app.policy.calibration import random_prompts
from app.policy.in_process.label_reader import PREFILL_TOKENS, Ask, LabelReader
from app.policy.in_process.reading.layout import parted
from tests.policy.tiny_models import POSITIONS, TINY, save_tiny_model

TOLERANCE = 1e-4
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**TINY),
    "sliding window": MistralConfig(**TINY, sliding_window=48),
    "capped logits": Gemma2Config(
        **TINY, sliding_window=64, final_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
}


def full_pass(
    reader: LabelReader, ids: Sequence[int], label_ids: Sequence[int] | None = None
) -> torch.Tensor:
    """Label log-probabilities of one whole prompt, the plain way: no cache, no batch."""
    with torch.inference_mode():
        logits = reader.model(
            input_ids=torch.tensor([[*reader.encoder.head, *ids]]), use_cache=False
        ).logits[0, -1]
    return torch.log_softmax(logits.float(), -1)[list(label_ids or reader.encoder.label_ids)]


def assert_agree(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(params=CONFIGS, ids=str)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> LabelReader:
    return LabelReader.load(save_tiny_model(tmp_path, CONFIGS[request.param]), POSITIONS)


def test_batches_and_the_cached_head_agree_with_full_passes(reader: LabelReader) -> None:
    texts = [
        "BTC",
        "ETH long and a good deal longer than the first, so that it is padded",
        "x" * 200,
        "SOL up",
    ]
    batch = [reader.encoder.encode(Prompt(PROMPT_VERSION, SYSTEM, text)) for text in texts]
    expected = torch.stack([full_pass(reader, ids) for ids in batch])
    assert_agree(torch.tensor(reader.read(batch)), expected)
    singles = [
        reader.read([ids])[0] for ids in batch
    ]  # after the batch: it left the stored head as it was
    assert_agree(torch.tensor(singles), expected)


def test_a_model_is_asked_questions_as_by_full_passes(reader: LabelReader) -> None:
    """The base model itself; one with sliding windows too."""
    texts = ["BTC", "ETH long and a good deal longer than the first"]
    batch = [reader.encoder.encode(Prompt(PROMPT_VERSION, SYSTEM, text)) for text in texts]
    asked = tuple(QuestionName)
    found = reader.answer([Ask(ids, (None,), 0, asked) for ids in batch])
    for ids, [row] in zip(batch, found, strict=True):
        labels, answers = parted(row, reader.encoder, asked)
        assert_agree(torch.tensor(labels), full_pass(reader, ids))
        for name, answer in answers.items():
            tail = reader.encoder.question(name)
            expected = full_pass(reader, (*ids, *tail.ids), tail.label_ids)
            assert_agree(torch.tensor(answer), expected)


def test_generation_in_steps_agrees_with_full_passes(reader: LabelReader) -> None:
    ids = reader.encoder.encode_explanation(Prompt(PROMPT_VERSION, SYSTEM, "BTC long"), ACTIONS[0])
    text = reader.begin(ids)
    assert len(ids) > PREFILL_TOKENS
    while len(text.generated) < 5 and not text.finished:
        reader.advance(text)
    sequence = [*reader.encoder.head, *ids]
    for token in text.generated:
        with torch.inference_mode():
            assert (
                int(reader.model(input_ids=torch.tensor([sequence])).logits[0, -1].argmax())
                == token
            )
        sequence.append(token)
    assert text.generated or text.finished


def test_smollm2_batch_single_and_full_pass_agree(smollm2: LabelReader) -> None:
    batch = [smollm2.encoder.encode(prompt) for prompt in random_prompts(3, seed=5)]
    batch.append(smollm2.encoder.encode(Prompt(PROMPT_VERSION, SYSTEM, "BTC long")))
    together = torch.tensor(smollm2.read(batch))
    assert_agree(together, torch.stack([full_pass(smollm2, ids) for ids in batch]))
    assert_agree(together[0], torch.tensor(smollm2.read(batch[:1])[0]))


def test_log_probabilities_are_over_the_whole_vocabulary(smollm2: LabelReader) -> None:
    [row] = smollm2.read([smollm2.encoder.encode(random_prompts(1, seed=9)[0])])
    mass = torch.tensor(row).exp().sum().item()
    assert 0.2 < mass < 1.0


def test_a_directory_without_a_model_is_refused(tmp_path: Path, tiny_directory: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read"):
        LabelReader.load(tmp_path)
    for path in tiny_directory.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelFileError, match=r"has neither model\.safetensors nor"):
        LabelReader.load(tmp_path)
