"""What the teacher says of one set of scenarios, as an artefact: what policies learn from, and what
stands beside their answers when they are judged. And what a teacher of shuffled labels says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from training.arrays import Progress, silent
from training.config.data import OutcomesConfig
from training.config.learning import TeacherConfig
from training.learning.model.base_pass import Encoded
from training.learning.teacher.lessons import Lessons
from training.learning.teacher.predictions import FILE, Predictions
from training.learning.teacher.teacher import Teacher, teach
from training.outcomes.labels import Labels
from training.scenarios.table import TRAIN, ScenarioSet
from training.stages.declared import stage
from training.stages.store import Facts


@stage("taught")
def taught(
    folder: Path, scenarios: ScenarioSet, teacher: Teacher, encoded: Encoded | None = None
) -> Facts:
    """Out of fold where a scenario trained the teacher, by the whole of it elsewhere."""
    said: Predictions = teacher.of(scenarios, encoded)
    save_file(vars(said), folder / FILE)
    return {"rows": len(said), **teacher.report}


@stage("taught")
def taught_at_random(
    folder: Path,
    candidates: ScenarioSet,
    labels: Labels,
    scenarios: ScenarioSet,
    *,
    settings: TeacherConfig,
    outcomes: OutcomesConfig,
    embargo_s: float,
    progress: Progress = silent,
) -> Facts:
    """A control: what a teacher says whose candidates' outcomes were dealt to each other at random.
    What seems to be earned by it is an error."""
    lessons = Lessons.of(candidates, labels, outcomes)
    train = candidates.rows(TRAIN, real_only=True)
    known = train[np.isfinite(lessons.answers[train]).all(1)]
    answers = lessons.answers.copy()
    answers[known] = answers[np.random.default_rng(settings.seed).permutation(known)]
    dealt = teach(replace(lessons, answers=answers), train, settings, embargo_s, progress)
    blends = {name: choice.blend for name, choice in dealt.choices.items()}
    ids = candidates.table["id"].to_numpy()
    fooled = Teacher(
        dealt.out_of_fold, dealt.schools, blends, ids, dealt.fold, outcomes, dealt.report
    )
    said = fooled.predict(scenarios)
    save_file(vars(said), folder / FILE)
    return {"rows": len(said)}
