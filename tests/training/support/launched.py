"""A training run as `accelerate launch` starts it: python -m tests.training.support.launched FOLDER
DATA ALGORITHM."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from app.domain.model.manifest import Calibration
from tests.training.support.planted import encoded, short_prompts, tiny_reader
from training.config.learning import AdapterConfig, DpoConfig, ExpectedConfig
from training.learning.algorithms import dpo, expected
from training.learning.algorithms.run import TrainedPolicy
from training.learning.targets.problem import Problem

ROWS = 16


def run(folder: Path, data: Path, algorithm: str) -> TrainedPolicy:
    """Two epochs on a tiny model; `data` holds the encoded prompts already."""
    reader, base = tiny_reader(data)
    rows = encoded(data, short_prompts(ROWS), reader, base)
    rewards = np.where(np.arange(ROWS) % 2, 1.0, -1.0)[:, None] * np.linspace(0, 1, 10)
    pairs = np.array([(row, 9, 0) if row % 2 else (row, 0, 9) for row in range(ROWS)])
    problem = Problem(
        rows,
        rewards,
        np.ones(ROWS),
        np.arange(8),
        np.arange(8, ROWS),
        Calibration(),
        "tiny-1",
        pairs=pairs,
    )
    shared = {"epochs": 2, "batch": 4, "min_entropy": 0.0, "max_majority": 1.0}
    adapter = AdapterConfig(rank=4, alpha=8.0)
    if algorithm == "dpo":
        return dpo.train(
            problem, DpoConfig(**shared, start="base", learning_rate=3e-3), adapter, reader, folder
        )
    return expected.train(problem, ExpectedConfig(**shared), adapter, reader, folder)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
