"""Tiny random models and tokenizers, made on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

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


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = (), template: str | None = CHAT_TEMPLATE) -> Any:
    """A tokenizer with one token per byte, three control tokens, and the given merges of neighbours."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], chat_template=template
    )


def save_tiny_model(directory: Path, config: Any = None, tokenizer: Any = None) -> Path:
    """A random causal LM of a few thousand parameters as a Hugging Face directory. Deterministic."""
    torch.manual_seed(0)
    config = config or LlamaConfig(**TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return directory
