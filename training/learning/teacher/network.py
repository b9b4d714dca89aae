"""Small transformers, the third learner of the teacher: they read numbers and, where the base pass
was made, embeddings of the prompt.

A scenario is ten tokens: the base model's mean hidden state of each of the prompt's lines, and one
of numeric features. Each question is one more; it reads the scenario and itself, never another
question, so that one pass answers all, each as if it had been asked for alone. A scenario without a
prompt that was read has the token of its numbers alone.

Answers are standardised and foretold by least squares: of a chance, that is Brier's score. There is
no early stopping: whoever learned too much by heart gets little or no weight out of fold
(`training.learning.teacher.blend`). Members differ by their seed, and their mean answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.arrays import Floats, Rows
from training.config.learning import NetworkConfig
from training.learning.model.base_pass import Encoded
from training.learning.model.shards import LINES
from training.learning.teacher.lessons import QUESTIONS
from training.scenarios.table import ScenarioSet

_CLIP = 5.0
_CHUNK = 512
_SAMPLE = 4096
_OVERSAMPLED = 8


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the base model knows of the prompts that it read; `hidden` may stay on disk.

    hidden : (M, LINES, H) mean states by line. lines : (M, LINES) whether the line is there.
    ids : (M,) of the scenarios.
    """

    hidden: NDArray[np.float16]
    lines: NDArray[np.bool_]
    ids: NDArray[np.str_]

    @classmethod
    def of(cls, scenarios: ScenarioSet, encoded: Encoded) -> Self:
        """Of a table of scenarios and its base pass."""
        return cls(encoded.hidden, encoded.lines, _ids(scenarios))

    @classmethod
    def none(cls) -> Self:
        """No prompt was read."""
        return cls(
            np.zeros((0, LINES, 0), np.float16),
            np.zeros((0, LINES), np.bool_),
            np.zeros(0, np.str_),
        )


class Batch(NamedTuple):
    """Inputs of B scenarios: hidden (B, LINES, H), lines (B, LINES) bool, numbers (B, F) with NaN
    for not known."""

    hidden: Tensor
    lines: Tensor
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of N scenarios.

    numbers : (N, F), NaN where not known. place : (N,) in `prompts`; -1 where no prompt was read.
    """

    numbers: Floats
    place: Rows
    prompts: Prompts

    @classmethod
    def of(cls, numbers: Floats, scenarios: ScenarioSet, prompts: Prompts) -> Self:
        """Rows aligned with the table; prompts are found by the scenarios' ids."""
        places = {name: place for place, name in enumerate(prompts.ids.tolist())}
        place = [places.get(name, -1) for name in _ids(scenarios).tolist()]
        return cls(numbers, np.array(place, dtype=np.int64), prompts)

    @classmethod
    def without_prompts(cls, numbers: Floats) -> Self:
        """Numbers alone."""
        return cls(numbers, np.full(len(numbers), -1), Prompts.none())

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, rows: Rows) -> Self:
        """Some of them."""
        return type(self)(self.numbers[rows], self.place[rows], self.prompts)

    def batch(self, rows: Rows) -> Batch:
        """Those rows, as tensors."""
        place = self.place[rows]
        read = np.flatnonzero(place >= 0)
        hidden = np.zeros((len(rows), LINES, self.prompts.hidden.shape[-1]), np.float32)
        lines = np.zeros((len(rows), LINES), np.bool_)
        hidden[read] = self.prompts.hidden[place[read]]
        lines[read] = self.prompts.lines[place[read]]
        numbers = torch.from_numpy(np.asarray(self.numbers[rows], np.float32))
        return Batch(torch.from_numpy(hidden), torch.from_numpy(lines), numbers)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What standardises inputs, measured on training rows alone.

    hidden_mean (LINES, H) of each line, hidden_scale (H,) within lines; basis (LINES, H, K), the K
    principal components of each line's standardised states, divided by the first one's standard
    deviation, so that lines count alike (as in multiple factor analysis, Escofier & Pages 1994);
    number_mean, number_scale (F,) of what is known. A few hundred scenarios cannot tell hundreds of
    state dimensions apart; their main components they can.
    """

    hidden_mean: Tensor
    hidden_scale: Tensor
    basis: Tensor
    number_mean: Tensor
    number_scale: Tensor

    @classmethod
    def fit(cls, inputs: Inputs, components: int) -> Self:
        """A dimension that never varies, or a number that is never known, scales by 1."""
        prompts, place = inputs.prompts, inputs.place[inputs.place >= 0]
        size = prompts.hidden.shape[-1]
        total, squares, count = np.zeros((LINES, size)), np.zeros((LINES, size)), np.zeros(LINES)
        for begin in range(0, len(place), _CHUNK):
            part = place[begin : begin + _CHUNK]
            there = np.asarray(prompts.lines[part])
            states = np.asarray(prompts.hidden[part], np.float64) * there[:, :, None]
            total, squares, count = (
                total + states.sum(0),
                squares + (states**2).sum(0),
                count + there.sum(0),
            )
        mean = total / np.maximum(count, 1)[:, None]
        scale = _scale((squares - count[:, None] * mean**2).sum(0) / max(count.sum(), 1))
        sample = place[
            np.linspace(0, max(len(place) - 1, 0), min(len(place), _SAMPLE)).astype(np.int64)
        ]
        basis = np.stack(
            [_basis(prompts, sample, line, mean[line], scale, components) for line in range(LINES)]
        )
        finite = np.isfinite(inputs.numbers)
        counted = np.maximum(finite.sum(0), 1)
        number_mean = np.where(finite, inputs.numbers, 0.0).sum(0) / counted
        spread = (np.where(finite, inputs.numbers - number_mean, 0.0) ** 2).sum(0) / counted
        parts = (mean, scale, basis, number_mean, _scale(spread))
        return cls(*(_float(part) for part in parts))

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Components (B, LINES, K), 0 where a line is absent, and numbers (B, 2 F): standardised,
        then flags; what is not known is 0, the training mean, and its flag is 1."""
        components = self._components(batch)
        missing = batch.numbers.isnan()
        scaled = (batch.numbers.nan_to_num() - self.number_mean) / self.number_scale
        return components.clamp(-_CLIP, _CLIP), torch.cat(
            [scaled.clamp(-_CLIP, _CLIP).masked_fill(missing, 0.0), missing.float()], 1
        )

    def _components(self, batch: Batch) -> Tensor:
        """(B, LINES, K); 0 where a line is absent, all of them where no prompt was read at all."""
        if not batch.hidden.shape[-1]:
            return batch.hidden.new_zeros(*batch.lines.shape, self.basis.shape[-1])
        hidden = ((batch.hidden - self.hidden_mean) / self.hidden_scale).clamp(-_CLIP, _CLIP)
        return torch.einsum("blh,lhk->blk", hidden * batch.lines[:, :, None], self.basis)


def _basis(
    prompts: Prompts, place: Rows, line: int, mean: Floats, scale: Floats, components: int
) -> Floats:
    """(H, K) of one line, by randomised SVD (Halko, Martinsson & Tropp 2011); zeros beyond what the
    rows span."""
    there = np.asarray(prompts.lines[place, line])
    states = np.asarray(prompts.hidden[place, line], np.float64)[there]
    columns = np.zeros((len(mean), components))
    width = min(components, len(states) - 1, len(mean))
    if width < 1:
        return columns
    scaled = torch.from_numpy(((states - mean) / scale).clip(-_CLIP, _CLIP))
    _, strengths, basis = torch.svd_lowrank(
        scaled, min(width + _OVERSAMPLED, *scaled.shape), niter=4
    )
    spread = float(strengths[0]) / len(states) ** 0.5
    columns[:, :width] = basis[:, :width].numpy() / max(spread, 1e-6)
    return columns


class Network(nn.Module):
    """One member. Call it with a `Batch`: standardised answers (B, len(QUESTIONS)).

    Parameters
    ----------
    level, spread : (len(QUESTIONS),) mean and standard deviation of the training rows' answers.
    """

    def __init__(self, config: NetworkConfig, scaling: Scaling, level: Tensor, spread: Tensor):
        super().__init__()
        for name, value in vars(scaling).items():
            self.register_buffer(name, value)
        self.register_buffer("level", level)
        self.register_buffer("spread", spread)
        width = config.width
        self.from_line = nn.Parameter(
            torch.randn(LINES, config.components, width) / config.components**0.5
        )
        self.from_numbers = nn.Linear(2 * len(scaling.number_mean), width)
        self.line = nn.Parameter(torch.randn(LINES, width) * 0.02)
        self.question = nn.Parameter(torch.randn(len(QUESTIONS), width) * 0.02)
        self.drop = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            width,
            config.heads,
            4 * width,
            config.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        # A head of its own for each question; at 0, every answer is the training rows' mean.
        self.heads = nn.Parameter(torch.zeros(len(QUESTIONS), width))
        self.bias = nn.Parameter(torch.zeros(len(QUESTIONS)))

    @property
    def scaling(self) -> Scaling:
        """As it was fitted."""
        return Scaling(*(self.get_buffer(name) for name in Scaling.__dataclass_fields__))

    def forward(self, batch: Batch) -> Tensor:
        """See the class."""
        components, numbers = self.scaling.inputs(batch)
        count = len(numbers)
        lines = torch.einsum("blk,lkw->blw", self.drop(components), self.from_line) + self.line
        context = torch.cat([lines, self.from_numbers(self.drop(numbers))[:, None]], 1)
        tokens = torch.cat([context, self.question.expand(count, -1, -1)], 1)
        # Every token reads the scenario's; a question reads no other question, only itself.
        size, scenario = tokens.shape[1], context.shape[1]
        unseen = ~torch.eye(size, dtype=torch.bool)
        unseen[:, :scenario] = False
        absent = torch.cat([~batch.lines, torch.zeros(count, size - LINES, dtype=torch.bool)], 1)
        states = self.layers(tokens, mask=unseen, src_key_padding_mask=absent)[:, scenario:]
        answers: Tensor = (states * self.heads).sum(-1) + self.bias
        return answers


@dataclass(frozen=True, eq=False)
class Networks:
    """The learner: an ensemble whose mean answers. None of its members: it does not compete."""

    members: tuple[Network, ...]

    @classmethod
    def fit(
        cls, inputs: Inputs, answers: Floats, weight: Floats, config: NetworkConfig, seed: int
    ) -> Self:
        """On rows whose answers (n, len(QUESTIONS)) are known; deterministic for its seed."""
        with _one_thread(), torch.random.fork_rng(devices=[]):
            return cls(tuple(
                _member(inputs, answers, weight, config, seed + 1000 * number)
                for number in range(config.members)
            ))  # fmt: skip

    def predict(self, inputs: Inputs) -> Floats:
        """(N, len(QUESTIONS)), as the answers are."""
        total = np.zeros((len(inputs), len(QUESTIONS)))
        with _one_thread(), torch.inference_mode():
            for begin in range(0, len(inputs), _CHUNK):
                rows = np.arange(begin, min(begin + _CHUNK, len(inputs)))
                batch = inputs.batch(rows)
                for member in self.members:
                    level, spread = member.get_buffer("level"), member.get_buffer("spread")
                    total[rows] += (member(batch) * spread + level).double().numpy()
        return total / max(len(self.members), 1)

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """By `member/name`."""
        for number, member in enumerate(self.members):
            for name, tensor in member.state_dict().items():
                yield f"{number}/{name}", tensor.numpy()

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], config: NetworkConfig) -> Self:
        """From what `arrays` gave."""
        members = []
        for number in range(config.members):
            state = {
                name.removeprefix(f"{number}/"): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith(f"{number}/")
            }
            scaling = Scaling(*(state[name] for name in Scaling.__dataclass_fields__))
            with torch.random.fork_rng(devices=[]):
                member = Network(config, scaling, state["level"], state["spread"])
            member.load_state_dict(state)
            members.append(member.eval())
        return cls(tuple(members))


def _member(
    inputs: Inputs, answers: Floats, weight: Floats, config: NetworkConfig, seed: int
) -> Network:
    torch.manual_seed(seed)
    level = np.average(answers, axis=0, weights=weight)
    spread = _scale(np.average((answers - level) ** 2, axis=0, weights=weight))
    target, share = _float((answers - level) / spread), _float(weight / weight.mean())
    network = Network(config, Scaling.fit(inputs, config.components), _float(level), _float(spread))
    optimiser = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    network.train()
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(len(inputs)), config.batch):
            gap = network(inputs.batch(rows.numpy())) - target[rows]
            loss = (share[rows, None] * gap**2).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    return network.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """These matrices are too small to share: on a busy machine two threads took ten times as long
    as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ids(scenarios: ScenarioSet) -> NDArray[np.str_]:
    return np.array(scenarios.table["id"].to_list(), dtype=np.str_)


def _scale(variance: Floats) -> Floats:
    return np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
