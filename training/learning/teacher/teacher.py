"""The teacher: what every action is worth and how likely a plan wins, learned from every candidate.

Learners compete on the same rows, question by question, out of fold (purged, embargoed); a blend of
them answers (`training.learning.teacher.blend`). A training row is answered by learners that saw
neither it nor a label that overlaps its own, every other row by learners of all training rows.

Everything is kept as arrays: `learners.safetensors`, `out_of_fold.safetensors`, and
`teacher.json` with blends, errors, ids and folds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from app.domain.errors import AdvisorError
from app.domain.model.actions import ACTIONS
from training.arrays import Floats, Progress, Rows, silent
from training.config.data import OutcomesConfig
from training.config.learning import NetworkConfig, TeacherConfig
from training.learning.model.base_pass import Encoded
from training.learning.teacher.blend import Blend, Choice, chosen
from training.learning.teacher.boosting import Boosting
from training.learning.teacher.lessons import (
    CHANCES,
    GROSS,
    OF_STOP,
    QUESTIONS,
    RANGE,
    SQUARE,
    STOPPED,
    WIN,
    Lessons,
    Told,
)
from training.learning.teacher.linear import Linear
from training.learning.teacher.network import Inputs, Networks, Prompts
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.splits import purged_kfold
from training.scenarios.table import TRAIN, ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

ARRAYS, KEPT, SAID = "learners.safetensors", "out_of_fold.safetensors", "teacher.json"
WHOLE = "whole"
_FEW = 3
"""Schools, the whole among them, that leave one alone without a row's own: nobody to differ from.
"""
LEAST_DEVIATION = 0.05
"""R; no trade is surer than that."""


class TeacherError(AdvisorError):
    """Too few scenarios to learn from, or the artefact is damaged."""


class Learner(Protocol):
    """A fitted learner of one question from numbers: a dataclass of arrays."""

    def predict(self, inputs: Floats) -> Floats:
        """(N,)"""
        ...


LEARNERS: dict[str, type[Linear] | type[Boosting]] = {"ridge": Linear, "boosting": Boosting}
"""Who competes on numbers alone. A new one is a dataclass of arrays with `fit` and `predict`, and
an entry here."""
NETWORK = "network"


@dataclass(frozen=True, eq=False)
class School:
    """Fitted learners: those of numbers by question and name, and networks of all questions."""

    by_question: Mapping[str, Mapping[str, Learner]]
    networks: Networks

    @classmethod
    def of(cls, lessons: Lessons, inputs: Inputs, rows: Rows, config: TeacherConfig) -> Self:
        """Every learner fitted to these rows."""
        numbers, weight = inputs.numbers[rows], lessons.weight[rows]
        by_question = {
            name: {
                learner: kind.fit(
                    numbers, lessons.answers[rows, number], weight, config, name in CHANCES
                )
                for learner, kind in LEARNERS.items()
            }
            for number, name in enumerate(QUESTIONS)
        }
        networks = Networks.fit(
            inputs.at(rows), lessons.answers[rows], weight, config.network, config.seed
        )
        return cls(by_question, networks)

    def answers(self, inputs: Inputs) -> dict[str, dict[str, Floats]]:
        """(N,) by question and learner."""
        told = {
            name: {learner: fitted.predict(inputs.numbers) for learner, fitted in learners.items()}
            for name, learners in self.by_question.items()
        }
        if self.networks.members:
            together = self.networks.predict(inputs)
            for number, name in enumerate(QUESTIONS):
                told[name][NETWORK] = together[:, number]
        return told


@dataclass(frozen=True, eq=False)
class Teacher:
    """The finished stage.

    out_of_fold : of all rows of the candidates' table, in its order; rows that did not train are
        answered by the whole teacher.
    schools : learners by part: `whole`, and the number of each fold.
    ids, fold : (N,) of the candidates' table; fold -1 where a row did not train.
    """

    out_of_fold: Predictions
    schools: Mapping[str, School]
    blends: Mapping[str, Blend]
    ids: NDArray[np.str_]
    fold: Rows
    outcomes: OutcomesConfig
    report: dict[str, Any]

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage. Raises `TeacherError` when a file is damaged."""
        try:
            said = json.loads((artifact / SAID).read_text(encoding="utf-8"))
            kept = load_file(artifact / KEPT)
            schools = _restored(
                load_file(artifact / ARRAYS), NetworkConfig.model_validate(said[NETWORK])
            )
            fold = kept.pop("fold")
            return cls(
                Predictions(**kept),
                schools,
                {name: Blend(**blend) for name, blend in said["blends"].items()},
                np.array(said["ids"], dtype=np.str_),
                fold,
                OutcomesConfig(**said["outcomes"]),
                said["report"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TeacherError(
                f"{artifact.path} is damaged ({error}): remove it and build the stage again"
            ) from error

    def predict(self, scenarios: ScenarioSet, encoded: Encoded | None = None) -> Predictions:
        """Of scenarios that did not train it, rows aligned with the table; by the whole teacher.
        `encoded` is their base pass, for the networks, when there is one."""
        return self._said(scenarios, encoded, np.full(len(scenarios), -1))

    def of(self, scenarios: ScenarioSet, encoded: Encoded | None = None) -> Predictions:
        """Of any scenarios, rows aligned with the table; out of fold for those that trained and for
        variants of them."""
        place = {name: number for number, name in enumerate(self.ids.tolist())}
        names = scenarios.table["id"].to_list()
        parents = [place.get(names[parent], -1) for parent in scenarios.parent.tolist()]
        fold = np.where(np.array(parents) >= 0, self.fold[np.array(parents)], -1)
        return self._said(scenarios, encoded, fold)

    def _said(self, scenarios: ScenarioSet, encoded: Encoded | None, fold: Rows) -> Predictions:
        told = Told.of(scenarios, self.outcomes)
        return said_by_all(
            self.schools, self.blends, told, _inputs(told, scenarios, scenarios, encoded), fold
        )


def said_by_all(
    schools: Mapping[str, School],
    blends: Mapping[str, Blend],
    told: Told,
    inputs: Inputs,
    fold: Rows,
) -> Predictions:
    """What all schools say: rows of a fold are answered by the school that did without it, others
    (-1) by the whole. Doubt is of the schools that did without another fold than a row's own: all
    of those saw it, so that what became of it does not tell them apart."""
    said = said_by(schools[WHOLE], blends, told, inputs)
    expectations = []
    for number in range(len(schools) - 1):
        other = said_by(schools[str(number)], blends, told, inputs)
        mine = np.flatnonzero(fold == number)
        said.put(mine, other.at(mine))
        expected = other.expected.copy()
        if len(schools) > _FEW:
            expected[mine] = np.nan
        expectations.append(expected)
    return replace(said, doubt=doubt_of(np.stack(expectations)))


def doubt_of(expectations: Floats) -> Floats:
    """(N, 10) standard errors, from what K teachers expect that each did without one of K groups of
    rows: (K, N, 10), NaN where one is not asked.

    The delete-a-group jackknife (Kott 2001): teachers share most of their rows, so that they differ
    less than their expectations err; their variance counts (K - 1)^2 / K times.
    """
    groups = len(expectations)
    return np.asarray(np.nanstd(expectations, axis=0, ddof=1) * (groups - 1) / groups**0.5)


def said_by(school: School, blends: Mapping[str, Blend], told: Told, inputs: Inputs) -> Predictions:
    """What a school's learners say together, without a doubt."""
    foretold = school.answers(inputs)
    return predictions_of(told, {name: blends[name].of(foretold[name]) for name in QUESTIONS})


def predictions_of(told: Told, answers: Mapping[str, Floats]) -> Predictions:
    """From blended answers to what they mean for each action; nobody doubts."""
    gross, square = (
        np.column_stack([answers[name] for name in many]) / told.stop_atr[:, None] ** power
        for many, power in ((GROSS, 1), (SQUARE, 2))
    )
    variance = np.maximum(square - gross**2, LEAST_DEVIATION**2)
    stops = list(OF_STOP)
    nothing = np.zeros((len(told.costs), 1))
    net = (gross - told.costs[:, None])[:, stops] * told.shares
    deviation = np.sqrt(variance)[:, stops] * told.shares
    expected, sd = np.hstack([nothing, net]), np.hstack([nothing, deviation])
    assert expected.shape[1] == len(ACTIONS)
    surely = np.zeros_like(expected)
    return Predictions(
        expected,
        sd,
        surely,
        told.stake,
        answers[WIN],
        answers[STOPPED],
        np.exp(answers[RANGE]),
    )


@stage("teacher")
def teacher(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    prompted: ScenarioSet | None = None,
    encoded: Encoded | None = None,
    *,
    settings: TeacherConfig,
    outcomes: OutcomesConfig,
    embargo_s: float,
    shuffled: bool = False,
    progress: Progress = silent,
) -> Facts:
    """The teacher of all candidates, with predictions out of fold. `prompted` are the scenarios
    whose prompts the base pass `encoded` read: some of the candidates. `shuffled` is a control: the
    outcomes are dealt to each other at random, and what seems to be earned by that is an error."""
    lessons, train = Lessons.of(scenarios, labels, outcomes), scenarios.rows(TRAIN)
    taught = teach(
        dealt_out(lessons, train, settings.seed) if shuffled else lessons,
        train,
        settings,
        embargo_s,
        progress,
        _inputs(lessons.told, scenarios, prompted, encoded),
    )
    said = {
        "blends": {name: choice.blend.as_json() for name, choice in taught.choices.items()},
        "ids": scenarios.table["id"].to_list(),
        "outcomes": outcomes.model_dump(mode="json"),
        NETWORK: settings.network.model_dump(mode="json"),
        "report": taught.report,
    }
    (folder / SAID).write_text(json.dumps(said, allow_nan=False) + "\n", encoding="utf-8")
    save_file(dict(_flat(taught.schools)), folder / ARRAYS)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in vars(taught.out_of_fold).items()}
        | {"fold": taught.fold},
        folder / KEPT,
    )
    return {"rows": int((taught.fold >= 0).sum()), **taught.report}


def dealt_out(lessons: Lessons, train: Rows, seed: int) -> Lessons:
    """With the known outcomes of the training rows dealt to each other at random."""
    known = train[np.isfinite(lessons.answers[train]).all(1)]
    answers = lessons.answers.copy()
    answers[known] = answers[np.random.default_rng(seed).permutation(known)]
    return replace(lessons, answers=answers)


class Taught(NamedTuple):
    """What `teach` comes to."""

    schools: dict[str, School]
    choices: dict[str, Choice]
    out_of_fold: Predictions
    fold: Rows
    report: dict[str, Any]


def teach(
    lessons: Lessons,
    train: Rows,
    config: TeacherConfig,
    embargo_s: float,
    progress: Progress = silent,
    inputs: Inputs | None = None,
) -> Taught:
    """Fit every learner on every fold and on all training rows, and blend them. Without `inputs`
    networks read numbers alone.

    Raises
    ------
    TeacherError, SplitError : too few scenarios that bars can judge.
    """
    known = train[np.isfinite(lessons.answers[train]).all(1)]
    if len(known) < 2 * config.folds:
        raise TeacherError(
            f"{len(known)} scenarios with known outcomes are too few for {config.folds} folds"
        )
    folds = purged_kfold(lessons.as_of[known], lessons.ends_at[known], config.folds, embargo_s)
    fold = np.full(len(lessons.answers), -1)
    inputs = inputs or Inputs.without_prompts(lessons.told.inputs)
    schools = {WHOLE: School.of(lessons, inputs, known, config)}
    foretold: dict[str, dict[str, Floats]] = {name: {} for name in QUESTIONS}
    progress(1, config.folds + 1)
    for number, part in enumerate(folds):
        test = known[part.test]
        schools[str(number)] = School.of(lessons, inputs, known[part.train], config)
        fold[test] = number
        for name, answers in schools[str(number)].answers(inputs.at(test)).items():
            for learner, values in answers.items():
                told = foretold[name].setdefault(learner, np.full(len(fold), np.nan))
                told[test] = values
        progress(number + 2, config.folds + 1)
    choices = {name: _choice(name, foretold[name], lessons, known, fold) for name in QUESTIONS}
    blends = {name: choice.blend for name, choice in choices.items()}
    report = {name: {"teaches": c.name, "errors": c.errors} for name, c in choices.items()}
    said = said_by_all(schools, blends, lessons.told, inputs, fold)
    return Taught(schools, choices, said, fold, {"questions": report})


def _inputs(
    told: Told, scenarios: ScenarioSet, prompted: ScenarioSet | None, encoded: Encoded | None
) -> Inputs:
    if prompted is None or encoded is None:
        return Inputs.without_prompts(told.inputs)
    return Inputs.of(told.inputs, scenarios, Prompts.of(prompted, encoded))


def _choice(
    name: str, foretold: Mapping[str, Floats], lessons: Lessons, rows: Rows, fold: Rows
) -> Choice:
    came = lessons.answers[rows, QUESTIONS.index(name)]
    told = {learner: values[rows] for learner, values in foretold.items()}
    return chosen(told, came, lessons.weight[rows], fold[rows], name in CHANCES)


def _flat(schools: Mapping[str, School]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Arrays by `part/question/learner/name`, and `part/network/member/name`."""
    for part, school in schools.items():
        for question, learners in school.by_question.items():
            for learner, fitted in learners.items():
                for name, array in vars(fitted).items():
                    yield f"{part}/{question}/{learner}/{name}", np.ascontiguousarray(array)
        for name, array in school.networks.arrays():
            yield f"{part}/{NETWORK}/{name}", np.ascontiguousarray(array)


def _restored(arrays: Mapping[str, NDArray[Any]], config: NetworkConfig) -> dict[str, School]:
    gathered: dict[tuple[str, str, str], dict[str, Any]] = {}
    networks: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        part, question, learner, name = path.split("/")
        if question == NETWORK:
            networks.setdefault(part, {})[f"{learner}/{name}"] = array
        else:
            gathered.setdefault((part, question, learner), {})[name] = array
    fitted: dict[str, dict[str, dict[str, Learner]]] = {}
    for (part, question, learner), fields in gathered.items():
        fitted.setdefault(part, {}).setdefault(question, {})[learner] = LEARNERS[learner](**fields)
    return {
        part: School(by_question, Networks.restored(networks.get(part, {}), config))
        for part, by_question in fitted.items()
    }
