"""Numbers read past the text: a projection of a scenario's features that is added to the embeddings
of the prompt's tail.

A small model reads the digits of a prompt badly. An activated adapter may bring a linear map from
the features that rivals and teacher read (`app.domain.features`) to the first tokens of the tail,
on which it works anyway: no token more, nothing before the tail changes, so that the base pass is
shared as ever. A feature that is not known adds nothing. Lines of the prompt that say the same in
digits may be left out: fewer tokens are a faster decision. Training and serving use this class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from app.domain.errors import ModelFileError
from app.domain.features import FEATURE_NAMES, features
from app.domain.model.prompt import IN_DIGITS, LineKind
from app.domain.scenario import Scenario
from app.policy.in_process.tensors import read_tensors
from app.policy.versions.files import refusals
from app.policy.versions.store import NUMBERS_NAME

FAR = 4.0
"""Standard deviations beyond which a feature counts as so far away: a stranger's numbers move the
reading by no more."""
LEFT_OUT = "left_out"
"""Where the file says which of the prompt's lines are not read; one without it reads them all."""
Known = tuple[float | None, ...]
"""Features of one scenario, in the order of `FEATURE_NAMES`; None where not known."""
EXTREMES: tuple[Known, ...] = tuple((end,) * len(FEATURE_NAMES) for end in (math.inf, -math.inf))
"""As far away as a scenario's can be, to either side."""


def known_of(scenario: Scenario | None) -> Known:
    """A scenario's features; nothing of none."""
    if scenario is None:
        return ()
    return tuple(None if math.isnan(value) else value for value in features(scenario))


class Numbers(torch.nn.Module):
    """The map.

    Parameters
    ----------
    mean, scale : (F,) of the features that trained it.
    weight : (tokens, F, embedding) float32.
    names : of the features.
    left_out : kinds of the prompt's lines that the version does not read, since they say in digits
        what the features say.
    """

    def __init__(
        self,
        mean: torch.Tensor,
        scale: torch.Tensor,
        weight: torch.Tensor,
        names: Sequence[str] = FEATURE_NAMES,
        left_out: Collection[LineKind] = (),
    ):
        super().__init__()
        self.names = tuple(names)
        self.left_out = frozenset(left_out)
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.weight = torch.nn.Parameter(weight.float())
        self._columns = [FEATURE_NAMES.index(name) for name in self.names]

    @property
    def tokens(self) -> int:
        """How many tokens of the tail it adds to."""
        return self.weight.shape[0]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, features) as `app.domain.features.features` gives them, NaN where not known, to
        (B, tokens, embedding)."""
        given = features.to(self.mean.device)[:, self._columns].float()
        known = ((given - self.mean) / self.scale).clamp(-FAR, FAR).nan_to_num(0.0)
        return torch.einsum("bf,tfe->bte", known, self.weight)

    def of(self, known: Known) -> torch.Tensor:
        """(tokens, embedding) of one scenario."""
        unknown = float("nan")
        row = [unknown if value is None else value for value in known]
        with torch.no_grad():
            found: torch.Tensor = self(torch.tensor([row], dtype=torch.float64))[0]
            return found

    def save(self, folder: Path) -> None:
        """Write the file."""
        tensors = {"mean": self.mean, "scale": self.scale, "weight": self.weight.detach()}
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            folder / NUMBERS_NAME,
            {"features": json.dumps(self.names), LEFT_OUT: json.dumps(sorted(self.left_out))},
        )

    @classmethod
    def load(cls, folder: Path, tokens: int, embedding: int) -> Numbers | None:
        """From an adapter's directory; None of a version that reads the text alone.

        Parameters
        ----------
        tokens : of the tail. embedding : size of the base model's.

        Raises
        ------
        ModelFileError : features that no scenario has, shapes that do not fit, or numbers that are
            not finite.
        """
        path = folder / NUMBERS_NAME
        if not path.is_file():
            return None
        with refusals(f"{path} cannot be read and"), safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            names = tuple(json.loads(told["features"]))
            left_out = _left_out(told)
        tensors = read_tensors(path)
        if tensors.keys() != {"mean", "scale", "weight"}:
            raise ModelFileError(f"{path} does not hold mean, scale and weight alone: it is no map")
        mean, scale, weight = (tensors[name].float() for name in ("mean", "scale", "weight"))
        unknown = sorted({str(name) for name in names} - set(FEATURE_NAMES))
        if unknown:
            raise ModelFileError(
                f"{path}: no scenario has the features {', '.join(unknown)[:200]}: it was made for"
                " another version of this service"
            )
        if not names or len(set(names)) < len(names):
            raise ModelFileError(f"{path} names no feature, or one twice: it is no map")
        fits = (
            mean.shape == scale.shape == (len(names),)
            and weight.dim() == 3
            and weight.shape[1:] == (len(names), embedding)
            and 1 <= weight.shape[0] <= tokens
        )
        if not fits:
            raise ModelFileError(
                f"{path}: weights of shape {tuple(weight.shape)} do not fit {len(names)} features,"
                f" a tail of {tokens} tokens and embeddings of {embedding}"
            )
        if not bool((scale > 0).all()):
            raise ModelFileError(f"{path} holds a scale of 0: train it again")
        return cls(mean, scale, weight, names, left_out)


def left_out_by(folder: Path) -> frozenset[LineKind]:
    """Kinds of lines that the adapter in a directory does not read. Raises `ModelFileError`."""
    path = folder / NUMBERS_NAME
    if not path.is_file():
        return frozenset()
    with refusals(f"{path} cannot be read and"), safe_open(path, framework="pt") as file:
        return _left_out(file.metadata() or {})


def _left_out(told: Mapping[str, str]) -> frozenset[LineKind]:
    """Raises `ValueError` for what is no line of numbers."""
    named = {str(name) for name in json.loads(told.get(LEFT_OUT, "[]"))}
    if never := sorted(named - IN_DIGITS):
        raise ValueError(f"lines of {', '.join(never)[:200]} cannot be left out of a prompt")
    return frozenset(map(LineKind, named))
