"""Writes a model of a kind that vLLM serves at `/v1/systemone`: random weights, the tokenizer and
the chat template of another. What it says means nothing; how it is said is what a test asks about.

usage: python -m tests.policy.decision_model TOKENIZER_DIRECTORY DIRECTORY
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(tokenizer: Path, directory: Path) -> None:
    """A Qwen3 of two narrow layers."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, directory / name)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
