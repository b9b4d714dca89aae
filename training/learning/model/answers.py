"""What model versions answer to scenarios: raw label log-probabilities, read once and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.decision import prepare
from app.domain.scenario import Scenario
from app.policy.backends import Backend, load_policy
from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.learning.model.adapted import opened
from training.learning.model.base_pass import Encoded

FILE = "log_probabilities.npy"
_ROWS = 32
_PATIENCE_S = 300.0


def of_adapter(
    reader: LabelReader,
    encoded: Encoded,
    adapter: Path,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """(N, 10) of an adapter, read over the base pass: seconds where whole prompts would take
    minutes."""
    parts = []
    with opened(reader, encoded, adapter) as model, torch.no_grad():
        for begin in range(0, len(encoded), _ROWS):
            rows = torch.arange(begin, min(begin + _ROWS, len(encoded)))
            parts.append(model(rows).labels.float().cpu().numpy())
            progress(int(rows[-1]) + 1, len(encoded))
    return np.concatenate(parts)


def of_version(
    version: Path,
    roots: Sequence[Path],
    scenarios: Sequence[Scenario],
    threads: int,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """(N, 10) of any published version, loaded and asked as the service does; whole prompts, one
    after the other.

    Raises what `load_policy` raises: the files were changed, or belong to another prompt version.
    """
    policy = load_policy(Backend.TRANSFORMERS, version, roots=roots, threads=threads)

    async def ask() -> list[tuple[float, ...]]:
        try:
            found = []
            for number, scenario in enumerate(scenarios):
                reading = await policy.decide(prepare(scenario), time.monotonic() + _PATIENCE_S)
                found.append(reading.log_probabilities)
                progress(number + 1, len(scenarios))
            return found
        finally:
            await policy.aclose()

    return np.array(asyncio.run(ask()), np.float32)
