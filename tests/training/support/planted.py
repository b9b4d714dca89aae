"""Encoded prompts of a tiny random model, for tests of the policy's training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Line, LineKind, Prompt, prompt_of
from app.policy.in_process.label_reader import LabelReader
from tests.policy.tiny_models import POSITIONS, save_tiny_model
from tests.training.support.artifacts import made_up
from training.config.learning import EncodeConfig
from training.learning.model.adapted import PolicyModel
from training.learning.model.base_pass import Encoded, build_encoded
from training.stages.store import Artifact


def prompt(text: str) -> Prompt:
    return Prompt(PROMPT_VERSION, SYSTEM, text)


def short_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of three lines and different lengths; the second line says `up` or `down`."""
    source = np.random.default_rng(seed)
    return [
        prompt(
            f"BTC long {'x' * int(source.integers(1, 9))}\nscore {i} of 5.5\nbtc"
            f" {'up' if i % 2 else 'down'}"
        )
        for i in range(count)
    ]


def tiny_reader(folder: Path) -> tuple[LabelReader, Path]:
    """A tiny random Llama and its directory."""
    base = folder / "tiny"
    if not base.is_dir():
        save_tiny_model(base)
    return LabelReader.load(base, POSITIONS), base


def encode(
    folder: Path, prompts: list[Prompt], reader: LabelReader, base: Path, **config: Any
) -> Artifact:
    """The stage `encode` in a workshop under `folder`; lines are of the kinds in their order."""
    return encode_lines(folder, [_by_order(one) for one in prompts], reader, base, **config)


def _by_order(one: Prompt) -> list[Line]:
    return [Line(kind, text) for kind, text in zip(LineKind, one.user.split("\n"), strict=False)]


def encode_lines(
    folder: Path, texts: Sequence[Sequence[Line]], reader: LabelReader, base: Path, **config: Any
) -> Artifact:
    """The same for lines that name their kinds."""
    settings = EncodeConfig(**config)
    identity = [settings.model_dump(mode="json"), [prompt_of(lines).hash for lines in texts]]

    def build(target: Path) -> dict[str, object]:
        return build_encoded(target, texts, reader, base, settings, folder / "cache")

    return made_up(folder / "artifacts", "encode", build, identity)


def encoded(
    folder: Path, prompts: list[Prompt], reader: LabelReader, base: Path, **config: Any
) -> Encoded:
    return Encoded.open(encode(folder, prompts, reader, base, **config))


class Exact(Encoded):
    """Keys and values in full precision, computed anew."""

    reader: LabelReader

    def keys_values(self, rows: Any) -> Any:
        stored = super().keys_values(rows)
        states = torch.zeros_like(stored.states)
        for i, row in enumerate(rows):
            ids, head = self.ids(row), len(self.reader.encoder.head)
            with torch.no_grad():
                cache = self.reader.model(
                    input_ids=torch.tensor([[*self.reader.encoder.head, *ids]]),
                    use_cache=True,
                ).past_key_values
            for number, layer in enumerate(cache.layers):
                states[number, 0, i, :, : len(ids)] = layer.keys[0, :, head:]
                states[number, 1, i, :, : len(ids)] = layer.values[0, :, head:]
        return stored._replace(states=states)


def exact(encoded: Encoded, base: Path) -> Encoded:
    found = Exact(**{name: getattr(encoded, name) for name in encoded.__dataclass_fields__})
    object.__setattr__(found, "reader", LabelReader.load(base))
    return found


def randomise(policy: PolicyModel, scale: float = 0.05) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weights in policy.named_parameters():
            if "lora_B" in name or name == "numbers.weight":
                weights.normal_(0, scale)
