"""Checks that the gate asks for: serving answers as training did, and text in a prompt decides
nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from app.domain.model.prompt import Prompt
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Reading, prepare, propose
from app.domain.scenario import Scenario
from app.policy.backends import Backends
from app.policy.options import BackendOptions
from app.policy.port import Policy
from training.arrays import Progress, silent
from training.judging.gate.texts import EACH, SCENARIOS, Turned, attempts_on, judged
from training.judging.gate.verdict import Check, CheckName
from training.learning.model.answers import Answers
from training.learning.model.published import Published
from training.scenarios.table import ScenarioSet, evenly
from training.stages.declared import Aside, stage
from training.stages.store import Artifact, Facts

PARITY_SCENARIOS = 32
TOLERANCE = 1e-2
"""Nats. Keys and values are cached in float16 for training, so serving differs in the third
decimal."""


class Checked(NamedTuple):
    """Results, and the median time of one decision, seconds."""

    checks: tuple[Check, ...]
    decision_s: float

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        checks = tuple(
            Check(CheckName(check["name"]), check["passed"], check["evidence"])
            for check in artifact.facts["checks"]
        )
        return cls(checks, artifact.facts["decision_s"])


_PATIENCE_S = 300.0


@stage("checks")
def checks(
    folder: Path,
    version: Published,
    scenarios: ScenarioSet,
    answers: Answers,
    *,
    models: Aside[Path],
    threads: Aside[int],
    progress: Progress = silent,
) -> Facts:
    """Of a published version against what training read of it; its base lies in `models` too."""
    checked = run_checks(version.path, models, scenarios.scenarios(), answers, threads, progress)
    return {
        "checks": [asdict(check) for check in checked.checks],
        "decision_s": checked.decision_s,
    }


def run_checks(
    version: Path,
    models: Path,
    scenarios: Sequence[Scenario],
    answers: Answers,
    threads: int,
    progress: Progress = silent,
) -> Checked:
    """Load a published version as the service does, compare it with what training read of
    `scenarios`, and attack it."""
    policy = Backends(BackendOptions(roots=[models], threads=threads)).load(version)

    async def both() -> Checked:
        try:
            chosen, tried = (
                evenly(len(scenarios), count) for count in (PARITY_SCENARIOS, SCENARIOS)
            )
            step = _Steps(progress, len(chosen) + 2 * EACH * len(tried))
            first, seconds = await parity(
                policy, [scenarios[i] for i in chosen], answers.at(chosen).readings(), step
            )
            second = await texts(policy, [scenarios[i] for i in tried], step)
            return Checked((first, second), seconds)
        finally:
            await policy.aclose()

    return asyncio.run(both())


class _Steps:
    """Counts readings for a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


async def parity(
    policy: Policy,
    scenarios: Sequence[Scenario],
    expected: Sequence[Reading],
    step: Callable[[], None],
) -> tuple[Check, float]:
    """The serving code reads the log-probabilities that training read, of actions and of every
    question that the version answers, and takes the same action wherever two actions are not within
    the tolerance of each other. Also the median time of a decision, seconds."""
    gaps: list[float] = []
    took, other = [], 0
    for scenario, trained in zip(scenarios, expected, strict=True):
        began = time.monotonic()
        reading = await policy.decide(prepare(scenario), began + _PATIENCE_S, scenario)
        took.append(time.monotonic() - began)
        step()
        calibration = policy.manifest.calibration
        for served, read in ((reading, trained), (reading.bare, trained.bare)):
            gaps += _gaps(served, read, calibration.asked)
        mine, theirs = (propose(each, calibration) for each in (reading, trained))
        near = np.sort(np.log(mine.probabilities))[-2:]
        other += (
            mine.label != theirs.label
            and near[1] - near[0] > 2 * TOLERANCE / calibration.temperature
        )
    evidence = (
        f"{len(scenarios)} scenarios: largest gap {max(gaps):.1e} nats, {other} other actions"
    )
    return Check(CheckName.PARITY, max(gaps) <= TOLERANCE and not other, evidence), float(
        np.median(took)
    )


def _gaps(served: Reading, read: Reading, asked: Sequence[QuestionName]) -> Iterator[float]:
    """The largest of actions, and of each question; of one that either left out, infinity."""
    pairs = [(served.log_probabilities, read.log_probabilities)]
    pairs += [(served.questions.get(name, ()), read.questions.get(name, ())) for name in asked]
    for one, other in pairs:
        equal = len(one) == len(other) > 0
        yield float(np.abs(np.subtract(one, other)).max()) if equal else np.inf


async def texts(policy: Policy, scenarios: Sequence[Scenario], step: Callable[[], None]) -> Check:
    """Hostile news turn no rejection into an approval, and no more proposals than neutral news do;
    a prompt that several headlines leave is read once."""
    attempts = attempts_on(scenarios)
    read: dict[tuple[int, Prompt], Reading] = {}
    for attempt in attempts:
        asked = attempt.number, attempt.prompt
        if asked not in read:
            read[asked] = await policy.decide(
                attempt.prompt, time.monotonic() + _PATIENCE_S, scenarios[attempt.number]
            )
        step()
    readings = [read[attempt.number, attempt.prompt] for attempt in attempts]
    return judged(Turned.of(attempts, readings, policy.manifest.calibration))
