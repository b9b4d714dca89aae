"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), read from the files that PEFT writes, without
PEFT.

Two kinds. An *activated* adapter (Greenewald et al. 2025, arXiv:2504.12397) works from the prompt's
tail on: before it, keys and values are the base model's, so that all versions over one base share
them. An *ordinary* one works on every token; it is merged into a copy of the base model and is then
a model like any other.

Importing PEFT takes eight seconds of CPU. What is read here is what can be checked whole: a
low-rank term on linear layers. Any option that would change the arithmetic is refused.
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
from app.policy.versions.files import read_object, some_of

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
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
        config = _read_config(directory / CONFIG_NAME)
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


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, when this module can do all that it asks for."""
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
