"""The other control: the teacher itself, without any language model. A policy that distils it can
only be better by what it reads in the text."""

from __future__ import annotations

from pathlib import Path

from scipy.special import log_softmax

from app.domain.model.manifest import Calibration
from training.config.learning import TargetsConfig
from training.learning.model.answers import Answers
from training.learning.targets.utility import aversion, utility
from training.learning.teacher.predictions import Predictions
from training.stages.declared import stage
from training.stages.store import Facts


@stage("answers")
def of_teacher(folder: Path, taught: Predictions, *, beta: float, targets: TargetsConfig) -> Facts:
    """The optimum that policies are trained for, of the scenarios that the teacher was asked about:
    softmax(E[U] / beta)."""
    worth = utility(taught.expected, taught.sd, aversion(taught.stake, targets))
    return Answers(log_softmax(worth / beta, axis=1), Calibration()).save(folder)
