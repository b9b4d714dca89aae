"""What a published version answers to scenarios: over the base pass where its keys and values are
kept, else asked as the service asks it.

Asked so, nothing is kept of a prompt but its reading, whatever the number of prompts. Readings lie
in the stage's cache, a piece of some scenarios in a file that is named by version and scenarios: a
killed stage loses one piece.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import TypeAdapter, ValidationError

from app.domain.canonical import content_hash
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Reading, prepare
from app.domain.scenario import Scenario
from app.policy.backends import Backends
from app.policy.in_process.numbers import left_out_by
from app.policy.options import BackendOptions
from app.policy.port import Policy
from training.arrays import Progress, silent
from training.learning.model.answers import Answers, of_adapter
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.scenarios.table import ScenarioSet
from training.stages.declared import Aside, KeptBy, stage
from training.stages.store import Facts

PIECE = 32
"""Scenarios that are read together and kept together; fewer than may wait for a policy."""
_PATIENCE_S = 600.0
_READINGS = TypeAdapter(list[Reading])


class Published(NamedTuple):
    """A version's directory, and its manifest as it was verified."""

    path: Path
    manifest: ModelManifest

    def hash(self) -> str:
        """Of the manifest, which has the hashes of all files."""
        return self.manifest.hash()


@stage("answers")
def of_published(
    folder: Path,
    version: Published,
    scenarios: ScenarioSet,
    encoded: Encoded | None = None,
    base: Base | None = None,
    *,
    models: Aside[Path],
    shipped: Aside[Path],
    threads: Aside[int],
    cache: Annotated[Path, KeptBy(of_version)],
    progress: Progress = silent,
) -> Facts:
    """A published version's: over the base pass when there is one of the model that it adapts, and
    of the lines that it reads.
    Model directories lie in `models` and `shipped`."""
    named = version.manifest.base
    if (
        encoded is not None
        and base is not None
        and named is not None
        and named.model_version == base.manifest.model_version
        and left_out_by(version.path) == encoded.left_out
    ):
        calibration = version.manifest.calibration
        return of_adapter(base.reader, encoded, version.path, calibration, progress).save(folder)
    whole = scenarios.scenarios()
    return of_version(version.path, [models, shipped], whole, threads, cache, progress).save(folder)


def of_version(
    version: Path,
    roots: Sequence[Path],
    scenarios: Sequence[Scenario],
    threads: int,
    kept: Path,
    progress: Progress = silent,
) -> Answers:
    """Any published version's, with and without text parts, loaded and asked as the service does;
    what lies in `kept` is not asked again.

    Raises what `Backends.load` raises: the files were changed, or belong to another prompt version.
    """
    policy = Backends(BackendOptions(roots=roots, threads=threads)).load(version)
    kept.mkdir(parents=True, exist_ok=True)

    async def ask() -> list[Reading]:
        try:
            readings: list[Reading] = []
            for begin in range(0, len(scenarios), PIECE):
                readings += await _piece(policy, scenarios[begin : begin + PIECE], kept)
                progress(len(readings), len(scenarios))
            return readings
        finally:
            await policy.aclose()

    return Answers.of(asyncio.run(ask()), policy.manifest.calibration)


async def _piece(policy: Policy, scenarios: Sequence[Scenario], kept: Path) -> list[Reading]:
    path = kept / f"{piece_name(policy.manifest, scenarios)}.json"
    with suppress(OSError, ValidationError):  # What is not there, or damaged, is asked again.
        return _READINGS.validate_json(path.read_bytes())
    deadline = time.monotonic() + _PATIENCE_S
    readings = await asyncio.gather(
        *(policy.decide(prepare(scenario), deadline, scenario) for scenario in scenarios)
    )
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(_READINGS.dump_json(readings))
    draft.replace(path)
    return readings


def piece_name(manifest: ModelManifest, scenarios: Sequence[Scenario]) -> str:
    """By what a reading depends on beside the code: the version, and whole scenarios."""
    content = [manifest.hash(), [scenario.hash() for scenario in scenarios]]
    return content_hash(content).removeprefix("sha256:")[:24]
