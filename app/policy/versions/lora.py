"""The configuration of a LoRA adapter (Hu et al. 2021, arXiv:2106.09685), as PEFT writes it.

An option that would change the arithmetic is refused, wherever the adapter is run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from app.domain.errors import ModelFileError
from app.policy.versions.files import read_object

CONFIG_NAME = "adapter_config.json"
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "alora_invocation_tokens",
    "bias",
    "task_type",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
"""They choose modules (the tensors' names tell which), matter in training only, or say who wrote
it."""
_PLAIN_STARTS = (True, False, "gaussian")
"""Ways to start a training that leave the base model's weights as they are; others change them."""


def read_lora(path: Path) -> dict[str, Any]:
    """The configuration, when it asks for a plain LoRA on linear layers and nothing else. An
    activated adapter has `alora_invocation_tokens`. Raises `ModelFileError`."""
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ModelFileError(f"{path}: peft_type is {kind!r}; only LORA is supported")
    asked = {key for key, value in config.items() if value} - _READ - _WITHOUT_EFFECT
    if config.get("bias", "none") != "none":
        asked.add("bias")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        asked.add("init_lora_weights")
    if asked:
        raise ModelFileError(
            f"{path}: {', '.join(sorted(asked))} not supported: train a plain LoRA on linear layers"
        )
    rank, alpha, tokens = (
        config.get("r"),
        config.get("lora_alpha"),
        config.get("alora_invocation_tokens"),
    )
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelFileError(f"{path}: r is {rank!r}, not a rank")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise ModelFileError(f"{path}: lora_alpha is {alpha!r}, not a number")
    if tokens is not None and not (
        isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
    ):
        raise ModelFileError(
            f"{path}: alora_invocation_tokens is {tokens!r}, not a list of token ids"
        )
    return config
