"""The policy: an adapter trained by one of the algorithms, and what became of the language."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.arrays import Progress, silent
from training.config.data import OutcomesConfig
from training.config.learning import AdapterConfig, Algorithm, TargetsConfig
from training.learning.algorithms.run import TrainedPolicy
from training.learning.model import language
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.targets.preferences import Preferences
from training.learning.targets.problem import Problem, problem_of
from training.learning.targets.utility import ablations
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import ScenarioSet, evenly
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

DIALOGUES = 16
"""Held-out dialogues on which the language is looked at."""
MEASURED = 2
"""Times that it is looked at."""
Train = Callable[..., TrainedPolicy]
"""An algorithm's `train`."""


@stage("policy")
def policy(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    taught: Predictions,
    preferences: Preferences,
    base: Base,
    algorithm: Train,
    warm_up: Artifact | None = None,
    *,
    settings: Algorithm,
    adapter: AdapterConfig,
    targets: TargetsConfig,
    outcomes: OutcomesConfig,
    seed: int,
    progress: Progress = silent,
) -> Facts:
    """The adapter with its measures. A policy that collapsed raises and leaves nothing."""
    start = None if warm_up is None else warm_up.path
    problem = problem_of(
        scenarios, labels, encoded, taught, preferences, base, targets, seed, start, outcomes
    )
    # The bar ends with the language: before training, and after.
    trained = algorithm(
        problem,
        settings,
        adapter,
        base.reader,
        folder,
        lambda done, total: progress(done, total + MEASURED),
    )
    steps = len(trained.history)
    return {
        "algorithm": settings.algorithm,
        "ablations": list(ablations(targets)),
        "metrics": trained.metrics,
        "questions": trained.questions,
        "language": _language(
            problem,
            trained,
            base,
            lambda done, total: progress(steps + done, steps + total),
        ),
        "steps": steps,
    }


def _language(
    problem: Problem, trained: TrainedPolicy, base: Base, progress: Progress
) -> dict[str, Any] | None:
    """Fluency before and after, on dialogues of the validation period; None when the agent never
    said anything."""
    if problem.demonstrations is None:
        return None
    rows = problem.validate_rows[evenly(len(problem.validate_rows), DIALOGUES)]
    return language.compare(
        base.reader,
        problem.encoded,
        trained.adapter,
        rows,
        problem.demonstrations,
        trained.answers.action,
        progress,
    )
