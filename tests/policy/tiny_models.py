"""Tiny random models and tokenizers, made on the fly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from app.domain.model.manifest import MANIFEST_NAME, BaseModelRef, ModelManifest
from app.policy.versions.store import file_hash, model_files

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
POSITIONS = 4096
TINY: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 258,
}


def byte_tokenizer(
    merges: tuple[tuple[str, str], ...] = (), template: str | None = CHAT_TEMPLATE
) -> Any:
    """A tokenizer with one token per byte, three control tokens, and the given merges of
    neighbours."""
    vocabulary = {
        symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        chat_template=template,
    )


def save_tiny_model(directory: Path, config: Any = None, tokenizer: Any = None) -> Path:
    """A random causal LM of a few thousand parameters as a Hugging Face directory.
    Deterministic."""
    torch.manual_seed(0)
    config = config or LlamaConfig(**TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return directory


def save_adapter(
    directory: Path,
    model: Any,
    tail: Sequence[int] | None,
    seed: int = 1,
    scale: float = 0.3,
    **options: Any,
) -> Path:
    """A LoRA adapter with random terms on q, k, v and o, in PEFT's files; activated by `tail`,
    ordinary without one. `options` change adapter_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(seed)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "bias": "none",
        "alora_invocation_tokens": list(tail) if tail is not None else None,
        **options,
    }
    tensors = {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in config["target_modules"]:
            for side, shape in (
                ("A", (config["r"], module.in_features)),
                ("B", (module.out_features, config["r"])),
            ):
                tensor = torch.randn(shape, generator=source) * scale / shape[1] ** 0.5
                tensors[f"base_model.model.{name}.lora_{side}.weight"] = tensor
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def write_manifest(
    directory: Path, model_version: str, base: ModelManifest | None = None, **more: Any
) -> ModelManifest:
    """A manifest for the files that are there; `base` makes it an adapter's."""
    manifest = ModelManifest(
        model_version=model_version,
        base_model="tiny",
        licence="Apache-2.0",
        created_at=more.pop("created_at", datetime(2026, 1, 1, tzinfo=UTC)),
        files={name: file_hash(directory / name) for name in sorted(model_files(directory))},
        base=BaseModelRef.of(base) if base is not None else None,
        **more,
    )
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest.as_json()))
    return manifest
