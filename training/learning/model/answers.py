"""What a model answers to scenarios: raw label log-probabilities, read once and kept, and what
they propose."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from app.domain.actions import ACTIONS
from app.domain.choice import chosen
from app.domain.decision import Reading, prepare
from app.domain.manifest import Calibration, ModelManifest
from app.domain.scenario import Scenario
from app.policy.backends import Backends
from app.policy.in_process.label_reader import LabelReader
from app.policy.options import BackendOptions
from training.arrays import Floats, Progress, Rows, silent
from training.learning.model.adapted import opened
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.scenarios.table import ScenarioSet
from training.stages.declared import Aside, stage
from training.stages.store import Artifact, Facts

FILE = "log_probabilities.npy"
BARE_FILE = "without_text.npy"
_ROWS = 32
_PATIENCE_S = 300.0
_APPROVING = np.array([action.approve for action in ACTIONS])


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers to N scenarios: what `app.domain.decision.propose` makes of each reading,
    for all of them at once.

    raw : (N, 10) label log-probabilities over the whole vocabulary, nats.
    bare : the same without the text parts of prompts, which is `raw` where a prompt has none; None
        when nobody asked, and then text decides.
    """

    raw: NDArray[np.floating]
    calibration: Calibration
    bare: NDArray[np.floating] | None = None

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        calibration = Calibration.from_json(artifact.facts["calibration"])
        return cls(np.load(artifact / FILE), calibration, np.load(artifact / BARE_FILE))

    def save(self, folder: Path) -> Facts:
        """Write the raw ones; the facts of a stage `answers`."""
        np.save(folder / FILE, self.raw)
        np.save(folder / BARE_FILE, self.raw if self.bare is None else self.bare)
        return {"rows": len(self), "calibration": self.calibration.as_json()}

    def __len__(self) -> int:
        return len(self.raw)

    def at(self, rows: Rows) -> Answers:
        """Its answers to some of the scenarios."""
        bare = None if self.bare is None else self.bare[rows]
        return Answers(self.raw[rows], self.calibration, bare)

    def readings(self) -> list[Reading]:
        """What the service would have read."""
        bare = self.raw if self.bare is None else self.bare
        return [
            Reading(
                log_probabilities=tuple(row), without_text=tuple(other) if other != row else None
            )
            for row, other in zip(self.raw.tolist(), bare.tolist(), strict=True)
        ]

    @cached_property
    def _scores(self) -> Floats:
        """(N, 10) before they are normalised over the labels."""
        bias = np.array(self.calibration.bias)
        return np.asarray((self.raw - bias) / self.calibration.temperature)

    @cached_property
    def log_policy(self) -> Floats:
        """(N, 10) log-probabilities of the actions, nats."""
        return np.asarray(log_softmax(self._scores, axis=1))

    @property
    def probabilities(self) -> Floats:
        """(N, 10) of the actions; every row sums to 1."""
        return np.exp(self.log_policy)

    @property
    def approve_probability(self) -> Floats:
        """(N,) of all approving actions together."""
        return np.asarray(self.probabilities[:, _APPROVING].sum(axis=1))

    @property
    def action(self) -> Rows:
        """(N,) index of the action that each reading proposes."""
        return choices(self._scores)

    @property
    def label_mass(self) -> Floats:
        """(N,) probability that fell on labels, 0-1."""
        return np.asarray(np.exp(np.asarray(self.raw, np.float64)).sum(axis=1))


def choices(scores: NDArray[np.floating]) -> Rows:
    """(N,) index of the action that the decision rule takes, by (N, 10) scores: utilities, or
    log-probabilities."""
    return np.array([chosen(row) for row in scores.tolist()], np.int64)


class Published(NamedTuple):
    """A version's directory, and its manifest as it was verified."""

    path: Path
    manifest: ModelManifest

    def hash(self) -> str:
        """Of the manifest, which has the hashes of all files."""
        return self.manifest.hash()


@stage("answers")
def of_policy(
    folder: Path, policy: Artifact, encoded: Encoded, base: Base, *, progress: Progress = silent
) -> Facts:
    """A policy's, or a warm-up's, to every scenario."""
    raw, bare = of_adapter(base.reader, encoded, policy / "adapter", progress)
    return Answers(raw, calibration_of(policy), bare).save(folder)


@stage("answers")
def of_published(
    folder: Path,
    version: Published,
    scenarios: ScenarioSet,
    encoded: Encoded,
    base: Base,
    *,
    models: Aside[Path],
    shipped: Aside[Path],
    threads: Aside[int],
    progress: Progress = silent,
) -> Facts:
    """A published version's: fast when it is an adapter over the same base, else prompt by prompt.
    Model directories lie in `models` and `shipped`."""
    named = version.manifest.base
    if named is not None and named.model_version == base.manifest.model_version:
        raw, bare = of_adapter(base.reader, encoded, version.path, progress)
    else:
        roots = [models, shipped]
        raw, bare = of_version(version.path, roots, scenarios.scenarios(), threads, progress)
    return Answers(raw, version.manifest.calibration, bare).save(folder)


def calibration_of(policy: Artifact) -> Calibration:
    """As it was fitted on the validation scenarios."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return Calibration.from_json(trained["calibration"])


def of_adapter(
    reader: LabelReader,
    encoded: Encoded,
    adapter: Path,
    progress: Progress = silent,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 10) of an adapter with and without text parts, read over the base pass: seconds where
    whole prompts would take minutes."""
    everything, texts = np.arange(len(encoded)), np.flatnonzero(encoded.text)
    total = len(everything) + len(texts)

    def read(over: Encoded, rows: Rows, before: int) -> NDArray[np.float32]:
        parts = [np.empty((0, len(ACTIONS)), np.float32)]
        with opened(reader, over, adapter) as model, torch.no_grad():
            for begin in range(0, len(rows), _ROWS):
                part = torch.from_numpy(rows[begin : begin + _ROWS])
                parts.append(model(part).labels.float().cpu().numpy())
                progress(before + begin + len(part), total)
        return np.concatenate(parts)

    raw = read(encoded, everything, 0)
    bare = raw.copy()
    if len(texts):
        bare[texts] = read(encoded.without_text(), texts, len(everything))
    return raw, bare


def of_version(
    version: Path,
    roots: Sequence[Path],
    scenarios: Sequence[Scenario],
    threads: int,
    progress: Progress = silent,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 10), with and without text parts, of any published version, loaded and asked as the
    service does; whole prompts, one after the other.

    Raises what `Backends.load` raises: the files were changed, or belong to another prompt version.
    """
    policy = Backends(BackendOptions(roots=roots, threads=threads)).load(version)

    async def ask() -> list[Reading]:
        try:
            found = []
            for number, scenario in enumerate(scenarios):
                found.append(await policy.decide(prepare(scenario), time.monotonic() + _PATIENCE_S))
                progress(number + 1, len(scenarios))
            return found
        finally:
            await policy.aclose()

    readings = asyncio.run(ask())
    raw, bare = (
        np.array([reading.log_probabilities for reading in each], np.float32)
        for each in (readings, [reading.bare for reading in readings])
    )
    return raw, bare
