"""What a model's directory holds: its configuration, and its safetensors, all of them and nothing
else.

transformers alone would follow an index out of the directory, load the adapter that a file names,
fetch kernels that a configuration asks for, and fill what is missing with random numbers. So the
tensors are read here, and who builds a model is given them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.domain.errors import ModelFileError
from app.policy.in_process.tensors import read_tensors
from app.policy.versions.files import read_object

CONFIG_NAME, GENERATION_NAME = "config.json", "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_REPEATED = 1024
"""Layers, experts and other things that a configuration asks for many times."""
MAX_NUMBER = 1 << 31
_REFUSED_KEYS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "quantization_config",
        "transformers_weights",
        "fusion_config",
        "kernel_config",
        "use_kernels",
    }
)
"""They load other files, other code, or weights that are no plain numbers."""
_REPEATED = ("layer", "expert", "block", "head")


class Contents(NamedTuple):
    """A configuration, and tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def read_contents(directory: Path) -> Contents:
    """Read a Hugging Face directory: every number in it plain and finite, every tensor from the
    file that is to have it. Raises `ModelFileError`."""
    config = read_object(directory / CONFIG_NAME)
    _require_modest(directory / CONFIG_NAME, config)
    return Contents(config, _tensors(directory))


def _require_modest(path: Path, value: Any, key: str = "") -> None:
    """Raise `ModelFileError` when a configuration asks for what is never loaded, or for more than
    any model has: building it would take the memory of the process."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _REFUSED_KEYS and inner:
                raise ModelFileError(f"{path} asks for {name}, which is not supported")
            _require_modest(path, inner, name)
    elif isinstance(value, list):
        if len(value) > MAX_REPEATED:
            raise ModelFileError(f"{path}: {key} has {len(value)} entries")
        for inner in value:
            _require_modest(path, inner, key)
    elif isinstance(value, int | float):
        repeated = any(word in key for word in _REPEATED) and not key.endswith(("dim", "size"))
        if abs(value) > (MAX_REPEATED if repeated and isinstance(value, int) else MAX_NUMBER):
            raise ModelFileError(f"{path}: {key} is {str(value)[:30]}, more than any model has")


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the directory's safetensors by name, each from the file that is to have
    it."""
    stored = {path.name for path in directory.glob("*.safetensors")}
    if (directory / SINGLE).is_file():
        expected: dict[str, set[str] | None] = {SINGLE: None}
    elif (directory / INDEX).is_file():
        expected = dict(_shards(directory / INDEX))
    else:
        raise ModelFileError(f"{directory} has neither {SINGLE} nor {INDEX}")
    if stored != expected.keys():
        odd = sorted(stored ^ expected.keys())
        raise ModelFileError(f"{directory}: {odd[0]} is surplus or missing: the model is not whole")
    tensors: dict[str, torch.Tensor] = {}
    for name, wanted in expected.items():
        read = read_tensors(directory / name)
        if wanted is not None and read.keys() != wanted:
            odd = sorted(read.keys() ^ wanted)
            raise ModelFileError(f"{directory / name}: tensor {odd[0]} is surplus or missing")
        tensors.update(read)
    return tensors


def _shards(index: Path) -> dict[str, set[str]]:
    """Files beside the index and the tensors that each has, as the index says."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index} has no weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelFileError(
                f"{index} names {name!r}, which is no file beside it: weights lie in the model's"
                " own directory"
            )
        shards.setdefault(name, set()).add(tensor)
    return shards
