"""A whole model as transformers builds it: of any shape, and as training adapts it.

It is given a directory's contents (`contents`), and finds nothing by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging as transformers_logging

from app.domain.errors import ModelFileError
from app.policy.in_process import attention
from app.policy.in_process.whole.contents import GENERATION_NAME, Contents, read_contents
from app.policy.versions.files import refusals, some_of

MAX_BUFFER_NUMBERS = 1 << 28
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias")


def load_model(directory: Path) -> Any:
    """The model of a Hugging Face directory, in float32: safetensors only, no remote code, no
    network, every weight from a file and finite. Raises `ModelFileError`."""
    with refusals(f"{directory} holds no usable causal language model and"):
        return build_model(directory, read_contents(directory))


def build_model(directory: Path, contents: Contents) -> Any:
    """As `load_model`, of contents that were read. Raises `ModelFileError`, and what the library
    raises."""
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    kind = _require_room(directory, config, contents.tensors)
    model, told = kind.from_pretrained(
        None,
        config=config,
        state_dict=contents.tensors,
        dtype=torch.float32,
        output_loading_info=True,
    )
    for key, what in (
        ("missing_keys", "lacks the weights"),
        ("unexpected_keys", "holds weights that are not the model's:"),
        ("mismatched_keys", "holds weights of another shape:"),
        ("error_msgs", "cannot be loaded:"),
    ):
        if told.get(key):
            names = sorted(map(str, told[key]))
            raise ModelFileError(f"{directory} {what} {some_of(names)}")
    if (directory / GENERATION_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return model.eval()


def _require_room(directory: Path, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The model's class, once its shapes alone show that the files hold all its numbers: what is
    missing would be made up, however large."""
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shape.tie_weights()
    needed = sum(parameter.numel() for parameter in shape.parameters())
    there = sum(tensor.numel() for tensor in tensors.values())
    if needed > there or sum(b.numel() for b in shape.buffers()) > MAX_BUFFER_NUMBERS:
        raise ModelFileError(
            f"{directory} lacks weights: its configuration asks for {needed} numbers, its files"
            f" hold {there}"
        )
    return type(shape)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """By oneDNN, as transformers asks; models that change scores on the way, and passes without a
    mask of their own, are left to torch."""
    plain = all(options.get(name) is None for name in _CHANGES_SCORES)
    if attention_mask is None or not attention_mask.is_floating_point() or not plain:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return whole
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention.attend(query, key, value, attention_mask, scaling), None


AttentionInterface.register(attention.NAME, _attend)
AttentionMaskInterface.register(attention.NAME, sdpa_mask)
