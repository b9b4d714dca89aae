"""What a model answers to scenarios: raw label log-probabilities, read once and kept, and what
they propose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from app.domain.model.actions import ACTIONS
from app.domain.model.choice import chosen
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Outlook
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.decision import Reading, foretold
from app.domain.scenario import Scenario
from app.policy.in_process.label_reader import LabelReader
from training.arrays import Floats, Progress, Rows, silent
from training.learning.model.adapted import opened
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

FILE = "log_probabilities.npy"
BARE_FILE = "without_text.npy"
QUESTION_FILE = "{}_log_probabilities.npy"
BARE_QUESTION_FILE = "{}_without_text.npy"
_ROWS = 32
_APPROVING = np.array([action.approve for action in ACTIONS])


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers to N scenarios: what `app.domain.record.decision.propose` makes of each
    reading, for all of them at once.

    raw : (N, 10) label log-probabilities over the whole vocabulary, nats.
    bare : the same without the text parts of prompts, which is `raw` where a prompt has none; None
        when nobody asked, and then text decides.
    questions, bare_questions : the same of each question's labels, (N, its labels); empty of a
        version that answers none.
    """

    raw: NDArray[np.floating]
    calibration: Calibration
    bare: NDArray[np.floating] | None = None
    questions: Mapping[QuestionName, NDArray[np.floating]] = field(default_factory=dict)
    bare_questions: Mapping[QuestionName, NDArray[np.floating]] = field(default_factory=dict)

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage."""
        calibration = Calibration.from_json(artifact.facts["calibration"])
        questions, bare_questions = (
            {name: np.load(artifact / file.format(name)) for name in calibration.asked}
            for file in (QUESTION_FILE, BARE_QUESTION_FILE)
        )
        raw, bare = np.load(artifact / FILE), np.load(artifact / BARE_FILE)
        return cls(raw, calibration, bare, questions, bare_questions)

    @classmethod
    def of(cls, readings: Sequence[Reading], calibration: Calibration) -> Self:
        """From what was read of each scenario."""

        def table(column: Iterable[tuple[float, ...]]) -> NDArray[np.float32]:
            return np.array(list(column), np.float32)

        bare = [reading.bare for reading in readings]
        return cls(
            table(reading.log_probabilities for reading in readings),
            calibration,
            table(reading.log_probabilities for reading in bare),
            *(
                {name: table(each.questions[name] for each in them) for name in calibration.asked}
                for them in (readings, bare)
            ),
        )

    def save(self, folder: Path) -> Facts:
        """Write the raw ones; the facts of a stage `answers`."""
        np.save(folder / FILE, self.raw)
        np.save(folder / BARE_FILE, self.raw if self.bare is None else self.bare)
        for name in self.calibration.asked:
            read = self.questions[name]
            np.save(folder / QUESTION_FILE.format(name), read)
            np.save(folder / BARE_QUESTION_FILE.format(name), self.bare_questions.get(name, read))
        return {"rows": len(self), "calibration": self.calibration.as_json()}

    def __len__(self) -> int:
        return len(self.raw)

    def at(self, rows: Rows) -> Answers:
        """Its answers to some of the scenarios."""
        bare = None if self.bare is None else self.bare[rows]
        questions, bare_questions = (
            {name: read[rows] for name, read in them.items()}
            for them in (self.questions, self.bare_questions)
        )
        return Answers(self.raw[rows], self.calibration, bare, questions, bare_questions)

    def readings(self) -> list[Reading]:
        """What the service would have read."""
        bare = self.raw if self.bare is None else self.bare
        without = self.bare_questions or self.questions
        found = []
        for row, (log_probs, other) in enumerate(
            zip(self.raw.tolist(), bare.tolist(), strict=True)
        ):
            reading = Reading(
                log_probabilities=tuple(log_probs), questions=_row(self.questions, row)
            )
            if other != log_probs:
                told = {
                    "without_text": tuple(other),
                    "questions_without_text": _row(without, row),
                }
                reading = reading.model_copy(update=told)
            found.append(reading)
        return found

    def outlooks(self, scenarios: Sequence[Scenario]) -> list[Outlook | None]:
        """What it foretells of the scenarios that these are the answers to."""
        return [
            foretold(reading, self.calibration, scenario)
            for reading, scenario in zip(self.readings(), scenarios, strict=True)
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


@stage("answers")
def of_base(folder: Path, encoded: Encoded, base: Base) -> Facts:
    """The base model's own, as the base pass read them."""
    return Answers(np.asarray(encoded.label_log_probs), base.manifest.calibration).save(folder)


@stage("answers")
def of_policy(
    folder: Path, policy: Artifact, encoded: Encoded, base: Base, *, progress: Progress = silent
) -> Facts:
    """A policy's, or a warm-up's, to every scenario."""
    calibration = calibration_of(policy)
    return of_adapter(base.reader, encoded, policy / "adapter", calibration, progress).save(folder)


def calibration_of(policy: Artifact) -> Calibration:
    """As it was fitted on the validation scenarios."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return Calibration.from_json(trained["calibration"])


def steps_of(policy: Artifact) -> list[dict[str, float]]:
    """The measures of each step of its learning."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return list(trained["history"])


def of_adapter(
    reader: LabelReader,
    encoded: Encoded,
    adapter: Path,
    calibration: Calibration,
    progress: Progress = silent,
) -> Answers:
    """An adapter's, with and without text parts, read over the base pass: seconds where whole
    prompts would take minutes."""
    everything, texts = np.arange(len(encoded)), np.flatnonzero(encoded.text)
    total, asked = len(everything) + len(texts), calibration.asked

    def read(over: Encoded, rows: Rows, before: int) -> list[NDArray[np.float32]]:
        sizes = [len(ACTIONS), *(len(BY_NAME[name].labels) for name in asked)]
        parts = [[np.empty((0, size), np.float32) for size in sizes]]
        with opened(reader, over, adapter) as model, torch.no_grad():
            for begin in range(0, len(rows), _ROWS):
                part = torch.from_numpy(rows[begin : begin + _ROWS])
                output = model(part, questions=asked)
                found = [output.labels, *(output.questions[name] for name in asked)]
                parts.append([values.float().cpu().numpy() for values in found])
                progress(before + begin + len(part), total)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    whole = read(encoded, everything, 0)
    bare = [values.copy() for values in whole]
    if len(texts):
        without = read(encoded.without_text(), texts, len(everything))
        for values, other in zip(bare, without, strict=True):
            values[texts] = other
    (raw, *answers), (bare_raw, *bare_answers) = whole, bare
    questions, bare_questions = (
        dict(zip(asked, them, strict=True)) for them in (answers, bare_answers)
    )
    return Answers(raw, calibration, bare_raw, questions, bare_questions)


def _row(
    tables: Mapping[QuestionName, NDArray[np.floating]], row: int
) -> dict[QuestionName, tuple[float, ...]]:
    return {name: tuple(values[row].tolist()) for name, values in tables.items()}
