"""Training the reward model: an ensemble, purged and embargoed cross-validation, out-of-fold
predictions, its report.

Every training scenario is predicted by members that saw neither it nor a label that overlaps its
own; everything else by members trained on all training scenarios. Synthetic variants train only in
folds where their parent does. Members differ by seed and by a Bayesian bootstrap (Rubin 1981) over
days: every day's scenarios get one exponential weight. Each stops early on its own latest rows,
purged and embargoed as well, which it never trains on.

Controls, on the same rows and folds: ridge regression of the rewards on the same inputs, and the
constant ranking of actions by their mean reward.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.actions import ACTIONS
from training.arrays import DAY_S, Floats, Progress, Rows, silent
from training.config.learning import RewardConfig
from training.learning.model.base_pass import Encoded
from training.learning.reward.accuracy import (
    accuracies,
    calibration,
    pairs_across,
    pairs_within,
    spearman,
)
from training.learning.reward.linear import (
    Sample,
    choose_strength,
    fit_linear,
    fit_ridge,
    predict_linear,
)
from training.learning.reward.network import (
    RewardError,
    RewardInputs,
    RewardNetwork,
    Scaling,
    Sizes,
    bradley_terry_loss,
    predict,
    scalar_loss,
)
from training.outcomes.labels import Labels
from training.scenarios.splits import overlapping, purged_kfold
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

TAIL = 0.15
"""Share of the latest scenarios that decides when to stop."""


@dataclass(frozen=True, eq=False)
class RewardData:
    """N scenarios as the reward model sees them. Rows are the scenario set's.

    rewards : (N, 10), R; rows with NaN are predicted, never trained on.
    weights : (N,) uniqueness.
    as_of, ends_at : (N,) seconds; of a synthetic row, the span of its own and its parent's window.
    parent : (N,) own index for real rows.
    train, validate : rows of real scenarios.
    """

    inputs: RewardInputs
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]
    as_of: Rows
    ends_at: Rows
    parent: Rows
    train: Rows
    validate: Rows

    @classmethod
    def of(cls, scenarios: ScenarioSet, labels: Labels, encoded: Encoded) -> Self:
        """The three artefacts put together. Raises `RewardError` when their rows do not agree."""
        count = len(scenarios.as_of)
        if not count == len(labels.rewards) == len(encoded):
            raise RewardError(
                f"{count} scenarios, {len(labels.rewards)} labels and {len(encoded)} encoded"
                " prompts are not of the same set: build the stages again"
            )
        return cls(
            RewardInputs(encoded.hidden, encoded.lines, scenarios.features()),
            labels.rewards,
            scenarios.weight,
            np.minimum(scenarios.as_of, scenarios.as_of[scenarios.parent]),
            np.maximum(scenarios.ends_at, scenarios.ends_at[scenarios.parent]),
            scenarios.parent,
            scenarios.rows(TRAIN, real_only=True),
            scenarios.rows(VALIDATE),
        )

    def with_variants(self, real: Rows) -> Rows:
        """Those rows and their synthetic variants."""
        return np.flatnonzero(np.isin(self.parent, real))

    def sample(self, scaling: Scaling, rows: Rows) -> Sample:
        """Rows with known rewards, for the linear part."""
        return Sample(
            scaling.flat(self.inputs, rows),
            self.rewards[rows],
            self.weights[rows],
            self.as_of[rows],
            self.ends_at[rows],
            self.parent[rows],
        )

    def known(self, rows: Rows) -> Rows:
        """Those of the rows whose rewards are known."""
        return rows[np.isfinite(self.rewards[rows]).all(1)]


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of N rows, out of fold for training rows.

    members : (M, 2, N, 10), scalar rewards (R) and pairwise scores (nats) of each member.
    linear, constant : (N, 10), the controls.
    """

    members: NDArray[np.float32]
    linear: NDArray[np.float64]
    constant: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(N, 10) scalar rewards of the ensemble, R."""
        return np.asarray(self.members[:, 0].mean(0, dtype=np.float64))

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N, 10) pairwise scores of the ensemble, nats."""
        return np.asarray(self.members[:, 1].mean(0, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Rewards:
    """The finished stage `reward`, rows aligned with the scenario set.

    predictions : (N, 10) float64, R; out of fold for training rows, by the whole ensemble
        elsewhere. No NaN.
    std : (N, 10) between members.
    members : (M, 2, N, 10), as `Predicted` has it; report : as `report.json` has it.
    """

    predictions: NDArray[np.float64]
    std: NDArray[np.float64]
    members: NDArray[np.float32]
    report: dict[str, Any]

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        predictions, std, members = (
            np.load(artifact / f"{name}.npy") for name in ("predictions", "std", "members")
        )
        report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
        return cls(predictions, std, members, report)


@stage("reward")
def reward(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    *,
    settings: RewardConfig,
    embargo_s: float,
    progress: Progress = silent,
) -> Facts:
    """The reward model, with predictions out of fold."""
    data = RewardData.of(scenarios, labels, encoded)
    return build_reward(folder, data, settings, embargo_s, progress)


def build_reward(
    folder: Path,
    data: RewardData,
    config: RewardConfig,
    embargo_s: float,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fill `folder`: `member-M.safetensors`, `predictions.npy`, `std.npy`, `members.npy`,
    `report.json`.

    `progress` is told members trained and in all.

    Raises
    ------
    RewardError, SplitError : too few scenarios with known rewards.
    """
    with _one_thread():
        members, predicted = cross_validate(data, config, embargo_s, progress)
    names = [f"member-{number}.safetensors" for number in range(len(members))]
    for name, member in zip(names, members, strict=True):
        member.save(folder / name)
    np.save(folder / "predictions.npy", predicted.mean)
    np.save(folder / "std.npy", predicted.members[:, 0].std(0, dtype=np.float64))
    np.save(folder / "members.npy", predicted.members)
    report = report_of(data, predicted, config.seed)
    (folder / "report.json").write_text(
        json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    return {"members": names, "rows": len(data.known(data.train)), **_headline(report)}


def cross_validate(
    data: RewardData,
    config: RewardConfig,
    embargo_s: float,
    progress: Progress = silent,
) -> tuple[list[RewardNetwork], Predicted]:
    """The ensemble of all training scenarios, and predictions of every row, out of fold where it
    trained."""
    folds = purged_kfold(data.as_of[data.train], data.ends_at[data.train], config.folds, embargo_s)
    everything = np.arange(len(data.inputs))
    parts = [(data.train, everything)]
    parts += [(data.train[fold.train], data.with_variants(data.train[fold.test])) for fold in folds]
    count, actions = len(everything), len(ACTIONS)
    outputs = np.empty((config.members, 2, count, actions), np.float32)
    linear, constant = np.empty((count, actions)), np.empty((count, actions))
    whole: list[RewardNetwork] = []
    for number, (train, asked) in enumerate(parts):
        fitting, stopping = inner_split(data, train, embargo_s)
        ensemble = []
        for member in range(config.members):
            progress(number * config.members + member, len(parts) * config.members)
            seed = config.seed + 1000 * number + member
            ensemble.append(fit_member(data, fitting, stopping, config, seed))
        outputs[:, :, asked] = predict(ensemble, data.inputs, asked)
        linear[asked] = linear_control(data, fitting, stopping, asked, config)
        constant[asked] = _means(data, np.concatenate([fitting, stopping]))
        if not whole:  # the first part is all training scenarios
            whole = ensemble
    progress(len(parts) * config.members, len(parts) * config.members)
    return whole, Predicted(outputs, linear, constant)


def inner_split(data: RewardData, train: Rows, embargo_s: float) -> tuple[Rows, Rows]:
    """Real training rows with known rewards -> rows to fit on (with their variants) and the latest
    ones, to stop on."""
    known = data.known(train)
    order = known[np.argsort(data.as_of[known], kind="stable")]
    stopping = order[len(order) - round(TAIL * len(order)) :]
    variants = data.known(data.with_variants(order[: len(order) - len(stopping)]))
    fitting = variants[~overlapping(variants, stopping, data.as_of, data.ends_at, embargo_s)]
    if not len(fitting) or not len(stopping):
        raise RewardError(
            f"{len(known)} scenarios with known rewards leave {len(fitting)} to fit on and"
            f" {len(stopping)} to stop on: take more scenarios, fewer folds, or a shorter embargo"
        )
    return fitting, stopping


def fit_member(
    data: RewardData, fitting: Rows, stopping: Rows, config: RewardConfig, seed: int
) -> RewardNetwork:
    """One member, deterministic for its seed. It keeps the epoch with the least loss on `stopping`;
    the first candidate is the linear part alone."""
    weights = data.weights[fitting] * _bootstrap(data.as_of[fitting] // DAY_S, seed)
    shape = config.model_dump(include={"components", "width", "layers", "heads", "dropout"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scaling = Scaling.fit(data.inputs, fitting, config.components)
        sample = data.sample(scaling, fitting)._replace(weights=weights)
        linear = fit_linear(sample, choose_strength(sample, data.sample(scaling, stopping)))
        network = RewardNetwork(
            Sizes(data.inputs.numbers.shape[-1], **shape), scaling, linear.linear
        )
        optimiser = torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        best, waited = _loss_on(network, data, stopping, config), 0
        state = copy.deepcopy(network.state_dict())
        for _ in range(config.epochs):
            network.train()
            order = torch.randperm(len(fitting)).numpy()
            for at in np.split(order, range(config.batch, len(order), config.batch)):
                loss = _loss(
                    network, data, fitting[at], weights[at], config, linear.cross_fitted[at]
                )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
            reached = _loss_on(network, data, stopping, config)
            if reached < best:
                best, waited = reached, 0
                state = copy.deepcopy(network.state_dict())
            else:
                waited += 1
            if waited >= config.patience:
                break
    network.load_state_dict(state)
    return network.eval()


def linear_control(
    data: RewardData, fitting: Rows, stopping: Rows, asked: Rows, config: RewardConfig
) -> NDArray[np.float64]:
    """(len(asked), 10) by ridge regression on the same inputs; its strength is the best on
    `stopping`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scaling = Scaling.fit(data.inputs, fitting, config.components)
    sample = data.sample(scaling, fitting)
    ridge = fit_ridge(sample, slice(None), choose_strength(sample, data.sample(scaling, stopping)))
    return predict_linear(ridge, scaling.flat(data.inputs, asked))[:, 0]


def report_of(data: RewardData, predicted: Predicted, seed: int) -> dict[str, Any]:
    """Measures on training rows (out of fold) and validation rows; see reward_report."""
    rankings = {
        "pairwise_head": predicted.scores,
        "scalar_head": predicted.mean,
        "linear": predicted.linear,
        "constant": predicted.constant,
    }
    found = {}
    for name, rows in (("out_of_fold", data.train), ("validate", data.validate)):
        within = pairs_within(data.rewards, data.weights, data.as_of, rows)
        across = pairs_across(data.rewards, data.weights, data.as_of, rows, seed)
        trades = {key: rankings[key] for key in ("scalar_head", "linear", "constant")}
        scores = predicted.members[:, 1].astype(np.float64)
        gaps = scores[:, within.row, within.action] - scores[:, within.row, within.other_action]
        found[name] = {
            "scenarios": len(data.known(rows)),
            "within": accuracies(within, rankings, "pairwise_head", seed),
            "across": accuracies(across, trades, "scalar_head", seed),
            "calibration": calibration(within, (1 / (1 + np.exp(-gaps))).mean(0)),
            "spearman": {
                key: spearman(values, data.rewards, rows) for key, values in trades.items()
            },
        }
    return found


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


def _bootstrap(days: Rows, seed: int) -> Floats:
    """One exponential weight per day, mean 1: the Bayesian bootstrap."""
    names, number = np.unique(days, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).exponential(size=len(names))[number])


def _loss(
    network: RewardNetwork,
    data: RewardData,
    rows: Rows,
    weights: Floats,
    config: RewardConfig,
    linear: Floats | None = None,
) -> torch.Tensor:
    start = None if linear is None else torch.from_numpy(np.asarray(linear, np.float32))
    scalar, scores = network(data.inputs.batch(rows), start)
    rewards, weight = (
        torch.from_numpy(np.asarray(values, np.float32)) for values in (data.rewards[rows], weights)
    )
    pairwise = bradley_terry_loss(scores, rewards, weight)
    return config.pairwise * pairwise + (1 - config.pairwise) * scalar_loss(scalar, rewards, weight)


def _loss_on(network: RewardNetwork, data: RewardData, rows: Rows, config: RewardConfig) -> float:
    """The same loss on held-back rows, by their own weights."""
    network.eval()
    with torch.inference_mode():
        return float(_loss(network, data, rows, data.weights[rows], config))


def _means(data: RewardData, rows: Rows) -> NDArray[np.float64]:
    """(10,) the constant ranking: weighted mean reward of each action."""
    return np.asarray(np.average(data.rewards[rows], axis=0, weights=data.weights[rows]))


def _headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader wants first, for the stage's facts."""
    return {
        name: {"pairwise_accuracy": part["within"]["pairwise_head"], "lead": part["within"]["lead"]}
        for name, part in report.items()
    }
