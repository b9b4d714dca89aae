"""A whole model from its directory: its configuration builds it, its safetensors fill it, all of it
and nothing else.

transformers alone would follow an index out of the directory, load the adapter that a file names,
fetch kernels that a configuration asks for, and fill what is missing with random numbers. So the
tensors are read here, and it is given them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from app.domain.errors import ModelFileError
from app.policy.in_process.tensors import read_tensors
from app.policy.versions.files import read_object, refusals, some_of

CONFIG_NAME = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_REPEATED = 1024
"""Layers, experts and other things that a configuration asks for many times."""
MAX_NUMBER = 1 << 31
MAX_BUFFER_NUMBERS = 1 << 28
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


def load_model(directory: Path) -> Any:
    """The model of a Hugging Face directory, in float32: safetensors only, no remote code, no
    network, every weight from a file and finite. Raises `ModelFileError`."""
    transformers_logging.disable_progress_bar()
    with refusals(f"{directory} holds no usable causal language model and"):
        _require_modest(directory / CONFIG_NAME, read_object(directory / CONFIG_NAME))
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        tensors = _tensors(directory)
        kind = _require_room(directory, config, tensors)
        model, told = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
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
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                directory, local_files_only=True
            )
        return model.eval()


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
