"""Models of Llama's shape in plain torch: the bits that transformers says, and every other model
left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Engine
from app.policy.calibration import random_prompts
from app.policy.encoding import PromptEncoder
from app.policy.in_process.engines import reader_by
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.whole.llama import Llama, Shape
from app.policy.in_process.whole.served import load_to_serve
from app.policy.in_process.whole.weights import load_model
from app.policy.options import BackendOptions
from tests.policy.peft_reading import activated
from tests.policy.tiny_models import POSITIONS, TINY, save_adapter, save_tiny_model, write_manifest

QUESTIONS = tuple(QuestionName)
KINDS: dict[str, dict[str, Any]] = {
    "keys shared by two heads": {},
    "keys for each head": {"num_key_value_heads": 4},
    "biases and a head of its own": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "a head that is the embeddings": {"tie_word_embeddings": True},
    "heads narrower than the rest": {"head_dim": 6, "rms_norm_eps": 1e-3},
    "another turn of positions": {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
}


def readers(directory: Path, encoder: PromptEncoder, engine: Engine) -> list[LabelReader]:
    """Ours, and transformers'."""
    models = load_to_serve(directory), load_model(directory)
    assert isinstance(models[0], Llama)
    assert not isinstance(models[1], Llama)
    return [reader_by(BackendOptions(engine=engine), model, encoder) for model in models]


def said_of(reader: LabelReader, prompts: Iterable[Prompt]) -> list[Any]:
    """By every road: whole, with and without text, with questions, alone and together, from a kept
    trunk, and as a text."""
    encoder = reader.encoder
    ids = [encoder.encode(prompt) for prompt in prompts]
    asks = [
        Ask(row, (None,), text, asked)
        for row in ids
        for text in (0, 3)
        for asked in ((), QUESTIONS)
    ]
    said: list[Any] = [reader.read(ids), reader.read(ids[:1]), reader.answer(asks)]
    said += [reader.answer([ask]) for ask in asks]
    text = reader.begin(encoder.encode_explanation(next(iter(prompts)), ACTIONS[0]))
    while len(text.generated) < 4 and not text.finished:
        reader.advance(text)
    return [*said, text.generated]


@pytest.mark.parametrize("engine", [Engine.TORCH, Engine.ONEDNN])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_what_is_said_is_bit_for_bit_what_transformers_says(
    tmp_path: Path, changes: dict[str, Any], engine: Engine
) -> None:
    directory = save_tiny_model(tmp_path, LlamaConfig(**TINY | changes))
    encoder = PromptEncoder.from_directory(directory, POSITIONS)
    texts = [Prompt(PROMPT_VERSION, SYSTEM, text) for text in ("BTC long", "x", "ETH " * 20)]
    ours, theirs = readers(directory, encoder, engine)
    assert said_of(ours, texts) == said_of(theirs, texts)


@pytest.mark.parametrize("engine", [Engine.TORCH, Engine.ONEDNN])
def test_of_the_real_model_too(smollm2_directory: Path, engine: Engine) -> None:
    encoder = PromptEncoder.from_directory(smollm2_directory)
    ours, theirs = readers(smollm2_directory, encoder, engine)
    ids = [encoder.encode(prompt) for prompt in random_prompts(2, seed=3)]
    asks = [Ask(row, (None,), 5, QUESTIONS) for row in ids]
    assert ours.answer(asks) == theirs.answer(asks)
    assert ours.read(ids[:1]) == theirs.read(ids[:1])


def test_and_with_adapters(tiny: LabelReader, tiny_directory: Path, tmp_path: Path) -> None:
    ours, theirs = readers(tiny_directory, tiny.encoder, Engine.TORCH)
    ids = tiny.encoder.encode(Prompt(PROMPT_VERSION, SYSTEM, "BTC long"))
    said = [
        reader.answer([Ask(ids, (None, activated(reader, tmp_path / name, 1)), 2, QUESTIONS)])
        for name, reader in (("ours", ours), ("theirs", theirs))
    ]
    assert said[0] == said[1]


def test_weights_of_fewer_bits_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    load_model(directory).bfloat16().save_pretrained(directory)
    encoder = PromptEncoder.from_directory(directory, POSITIONS)
    ours, theirs = readers(directory, encoder, Engine.TORCH)
    prompts = [Prompt(PROMPT_VERSION, SYSTEM, "BTC")]
    assert said_of(ours, prompts) == said_of(theirs, prompts)


OTHERS: dict[str, dict[str, Any]] = {
    "another kind": {"model_type": "mistral"},
    "a key that nobody here knows": {"sliding_window": 48},
    "another activation": {"hidden_act": "gelu"},
    "stretched positions": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    "stretched, as older files say it": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "positions said twice": {"rope_theta": 1e4},
    "no size": {"hidden_size": None},
    "a size in words": {"hidden_size": "32"},
    "true for a size": {"num_hidden_layers": True},
    "heads that do not share alike": {"num_key_value_heads": 3},
    "wide heads": {"head_dim": 512},
    "no number": {"rms_norm_eps": float("nan")},
    "positions that never turn": {"rope_parameters": {"rope_theta": -1.0}},
    "a word for a switch": {"tie_word_embeddings": "no"},
}  # fmt: skip


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_every_other_configuration_is_left_to_transformers(changes: dict[str, Any]) -> None:
    config = json.loads(LlamaConfig(**TINY).to_json_string(use_diff=False))
    usual = {
        name: config[name] for name in (*TINY, "model_type", "rope_parameters", "rms_norm_eps")
    }
    assert Shape.of(usual) is not None
    assert Shape.of(usual | changes) is None


def test_older_files_say_positions_otherwise() -> None:
    usual = {**TINY, "model_type": "llama", "rope_theta": 10000, "rope_scaling": None}
    shape = Shape.of(usual)
    assert shape is not None
    assert (shape.theta, shape.heads, shape.key_heads, shape.head) == (10000.0, 4, 2, 8)


@pytest.mark.parametrize("ends", ["<end>", [2, "<end>"]])
def test_ends_that_are_no_tokens_are_left_to_transformers(tmp_path: Path, ends: Any) -> None:
    directory = save_tiny_model(tmp_path)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    assert not isinstance(load_to_serve(directory), Llama)


def test_texts_end_where_the_files_say(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert load_to_serve(directory).generation_config.eos_token_id == [7, 8]
    path.unlink()
    assert load_to_serve(directory).generation_config.eos_token_id == [TINY["eos_token_id"]]


SERVED = """
import sys
from pathlib import Path
from app.policy.backends import Backends
from app.policy.options import BackendOptions
folder = Path(sys.argv[1])
policy = Backends(BackendOptions(roots=[folder], prompt_tokens=4096)).load(folder / "adapter")
policy.batcher.abandon()
brought = {"transformers", "torch._dynamo", "sympy", "pandas", "accelerate", "scipy"}
print(*sorted(brought & sys.modules.keys()))
"""


def test_the_service_loads_such_a_model_without_transformers_and_compilers(tmp_path: Path) -> None:
    """Their imports were half of the time to ready."""
    base = save_tiny_model(tmp_path / "base")
    manifest = write_manifest(base, "base")
    encoder = PromptEncoder.from_directory(base, POSITIONS)
    save_adapter(tmp_path / "adapter", load_model(base), encoder.tail)
    write_manifest(tmp_path / "adapter", "adapter", manifest)
    done = subprocess.run(
        [sys.executable, "-c", SERVED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "", "and its log before it"
