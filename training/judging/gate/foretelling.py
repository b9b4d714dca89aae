"""What a version foretells of the agent's plans, all of them at once.

A version that answers no question of its own is judged by the teacher that it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.scenario import Scenario
from training.arrays import Columns, Floats, Rows
from training.judging.gate.verdict import STOPPED, WIN
from training.learning.model.answers import Answers
from training.learning.teacher.predictions import Predictions

_FROM = {
    "win": "win_probability",
    "stopped": "stopped_probability",
    "range_atr": "range_atr",
    "expected_r": "expected_r",
}
"""What an outlook calls it."""


@dataclass(frozen=True, eq=False)
class Foretelling(Columns):
    """Of N plans; NaN where it is not said.

    win, stopped : (N,) chances. range_atr : (N,). expected_r : (N,) net R of the plan.
    levels : (N, levels) chances of every level of the range.
    """

    win: Floats
    stopped: Floats
    range_atr: Floats
    expected_r: Floats
    levels: Floats

    @classmethod
    def of_version(cls, answers: Answers, scenarios: Sequence[Scenario]) -> Self | None:
        """A version's own; None when it answers no question."""
        outlook = answers.calibration.outlook
        if outlook is None:
            return None
        found = [each for each in answers.outlooks(scenarios) if each is not None]
        told = {
            field: np.array([getattr(each, name) for each in found], np.float64)
            for field, name in _FROM.items()
        }
        levels = np.full((len(found), len(BY_NAME[QuestionName.RANGE].labels)), np.nan)
        if QuestionName.RANGE in outlook.questions:
            question = outlook.questions[QuestionName.RANGE]
            read = (answers.bare_questions or answers.questions)[QuestionName.RANGE]
            for row, log_probs in enumerate(read.tolist()):
                levels[row] = question.chances(tuple(log_probs))
        return cls(**told, levels=levels)

    @property
    def chances(self) -> dict[str, Floats]:
        """By the names of readings."""
        return {WIN: self.win, STOPPED: self.stopped}

    @classmethod
    def of_teacher(cls, taught: Predictions) -> Self:
        """What the teacher says of them; it foretells actions' R, not the plan's."""
        count = len(taught.win)
        return cls(
            taught.win,
            taught.stopped,
            taught.range_atr,
            np.full(count, np.nan),
            np.full((count, len(BY_NAME[QuestionName.RANGE].labels)), np.nan),
        )


class Told(NamedTuple):
    """What a version foretells itself, None when it answers no question, and what its teacher
    does."""

    own: Foretelling | None
    teacher: Foretelling

    @classmethod
    def of(
        cls, answers: Answers, taught: Predictions, rows: Rows, scenarios: Sequence[Scenario]
    ) -> Self:
        """Of the scenarios of these rows."""
        own = Foretelling.of_version(answers.at(rows), scenarios)
        return cls(own, Foretelling.of_teacher(taught.at(rows)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other; a version that is silent in one of them foretells nothing."""
        own = [part.own for part in parts if part.own is not None]
        return cls(
            Foretelling.joined(own) if len(own) == len(parts) else None,
            Foretelling.joined([part.teacher for part in parts]),
        )

    @property
    def chances(self) -> dict[str, Floats]:
        """What the gate holds against what came."""
        return (self.teacher if self.own is None else self.own).chances
