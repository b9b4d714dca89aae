"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), read from the files that PEFT writes, without
PEFT.

Two kinds. An *activated* adapter (Greenewald et al. 2025, arXiv:2504.12397) works from the prompt's
tail on: before it, keys and values are the base model's, so that all versions over one base share
them. An *ordinary* one works on every token; it is merged into a copy of the base model and is then
a model like any other.

Importing PEFT takes eight seconds of CPU. What is read here is what can be checked whole: a
low-rank term on linear layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.domain.errors import ModelFileError
from app.domain.model.prompt import Prompt, without
from app.domain.scenario import Scenario
from app.policy.in_process.numbers import Numbers
from app.policy.in_process.tensors import read_tensors
from app.policy.versions.files import some_of
from app.policy.versions.lora import CONFIG_NAME, read_lora

WEIGHTS_NAME = "adapter_model.safetensors"
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True, eq=False)
class Delta:
    """What one linear layer gets added: x -> (x @ down.T) @ up.T. `down` (rank, in), `up` (out,
    rank), scaled."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """A verified adapter: its terms by name of the base model's module, whether it is an activated
    one, and what it reads past the text."""

    deltas: Mapping[str, Delta]
    activated: bool
    numbers: Numbers | None = None

    @classmethod
    def load(cls, directory: Path, model: Any, tail: tuple[int, ...]) -> Adapter:
        """Read and check an adapter's directory.

        Parameters
        ----------
        model : the base model it is for.
        tail : the encoder's tail; an activated adapter must have been trained to wake at exactly
            these ids.

        Raises
        ------
        ModelFileError : another kind of adapter, an option that is not supported, another tail, or
            tensors that do not fit the configuration or the model.
        """
        config = read_lora(directory / CONFIG_NAME)
        woken_by = config.get("alora_invocation_tokens")
        if woken_by is not None and tuple(woken_by) != tail:
            raise ModelFileError(
                f"{directory / CONFIG_NAME}: alora_invocation_tokens are {woken_by}, but this"
                f" model's prompts end with {list(tail)}: the adapter was trained with another chat"
                " template; train it again"
            )
        tensors = read_tensors(directory / WEIGHTS_NAME)
        deltas = _deltas(directory / WEIGHTS_NAME, tensors, config, model)
        numbers = Numbers.load(directory, len(tail), model.get_input_embeddings().embedding_dim)
        if numbers is not None and woken_by is None:
            raise ModelFileError(
                f"{directory}: an ordinary adapter reads no numbers: train an activated one"
            )
        return cls(deltas, woken_by is not None, numbers)

    def reads(self, prompt: Prompt, scenario: Scenario | None) -> Prompt:
        """What it reads of a scenario's prompt: all but the lines whose numbers it has past the
        text."""
        if self.numbers is None or scenario is None:
            return prompt
        return without(prompt, scenario, self.numbers.left_out)

    def merge_into(self, model: Any) -> None:
        """Add an ordinary adapter's terms to the model's own weights, in place."""
        with torch.no_grad():
            for name, delta in self.deltas.items():
                weight = model.get_submodule(name).weight
                weight += (delta.up @ delta.down).to(weight.dtype)


def _deltas(
    path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], model: Any
) -> dict[str, Delta]:
    """Both sides of every term, checked against the modules they are for."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        named = _TENSOR.match(key)
        if named is None:
            raise ModelFileError(
                f"{path}: {key} is no term of a plain LoRA; only lora_A and lora_B are supported"
            )
        sides.setdefault(named["module"], {})[named["side"]] = tensor
    modules = dict(model.named_modules())
    _require_all_targets(path, config, modules, sides)
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    deltas = {}
    for name, pair in sides.items():
        module = modules.get(name)
        if module is not None and module is model.get_output_embeddings():
            raise ModelFileError(
                f"{path}: {name} is the output layer, whose adapters are not supported: train"
                " without it"
            )
        if not isinstance(module, torch.nn.Linear):
            what = "no module" if module is None else f"a {type(module).__name__}"
            raise ModelFileError(
                f"{path}: {name} is {what} of the base model, not a linear layer: it is for"
                " another one"
            )
        shapes = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        expected = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
        if shapes != expected:
            raise ModelFileError(
                f"{path}: {name} has terms of shape {shapes}, the base model needs {expected}"
            )
        down, up = pair["A"].float(), pair["B"].float() * scaling
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ModelFileError(
                f"{path}: {name} holds numbers that are not finite: the training failed; train it"
                " again"
            )
        deltas[name] = Delta(down.contiguous(), up.contiguous())
    return deltas


def _require_all_targets(
    path: Path, config: dict[str, Any], modules: Mapping[str, Any], terms: Mapping[str, Any]
) -> None:
    """Every module that the configuration names has its term, and some module has one."""
    targets = config.get("target_modules")
    if isinstance(targets, list):
        matched = {
            target: [name for name in modules if f".{name}".endswith(f".{target}")]
            for target in targets
        }
        unknown = sorted(target for target, names in matched.items() if not names)
        if unknown:
            raise ModelFileError(
                f"{path}: the base model has no module {', '.join(unknown)}: it is for another one"
            )
        everywhere = not config.get("layers_to_transform") and not config.get("exclude_modules")
        missing = sorted({name for names in matched.values() for name in names} - terms.keys())
        if everywhere and missing:
            raise ModelFileError(
                f"{path} lacks {some_of(missing)}: it is cut short; publish it again"
            )
    if not terms:
        raise ModelFileError(f"{path} holds no term at all: publish it again")
