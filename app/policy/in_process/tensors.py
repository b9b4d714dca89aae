"""Weights from a file: safetensors, and plain numbers only."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from app.domain.errors import ModelFileError
from app.policy.versions.files import refusals

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Others stand for something else: integers for a quantised weight, complex ones for two."""
MASKS = (".attn.bias", ".attention.bias", ".position_ids")
"""What older files hold beside weights, and nothing is made of."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file by name. Raises `ModelFileError` also for numbers that are not plain,
    or not finite in float32, in which they are read."""
    with refusals(f"{path} cannot be read and"):
        tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in PLAIN:
            if name.endswith(MASKS):
                continue
            raise ModelFileError(
                f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, which is no"
                " plain number: convert the weights to float32, float16 or bfloat16"
            )
        if tensor.numel() and not all(each.float().isfinite() for each in tensor.aminmax()):
            raise ModelFileError(
                f"{path}: {name} holds numbers that are not finite: the file is damaged, or the"
                " training failed"
            )
    return tensors
