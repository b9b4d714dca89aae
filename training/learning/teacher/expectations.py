"""What the teacher says of one set of scenarios, as an artefact: what policies learn from, and what
stands beside their answers when they are judged."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import save_file

from training.learning.model.base_pass import Encoded
from training.learning.teacher.predictions import FILE, Predictions
from training.learning.teacher.teacher import Teacher
from training.scenarios.table import ScenarioSet
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
