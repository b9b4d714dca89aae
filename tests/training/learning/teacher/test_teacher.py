"""What the teacher learns in worlds whose truth is known, and what it must not learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.actions import ACTIONS
from tests.training.support.histories import history, label_artifact, scenario_artifact
from training.arrays import DAY_S
from training.config.data import OutcomesConfig
from training.config.learning import NetworkConfig, TeacherConfig
from training.learning.teacher.lessons import (
    GROSS,
    QUESTIONS,
    RANGE,
    SQUARE,
    STOPPED,
    WIN,
    Lessons,
    Told,
)
from training.learning.teacher.teacher import Taught, Teacher, TeacherError, teach, teacher
from training.scenarios.table import TRAIN, ScenarioSet
from training.stages.store import Artifact
from training.stages.workshop import Workshop

NUMBERS_ALONE = NetworkConfig(members=0)
CONFIG = TeacherConfig(
    folds=3, trees=15, learning_rate=0.2, leaves=4, ridge=10.0, network=NUMBERS_ALONE
)
HOUR = 3600


def lessons(state: NDArray[Any], earned: NDArray[Any], source: np.random.Generator) -> Lessons:
    """One scenario every eight hours, its label six hours long. `state` is told among noise;
    `earned` is R before costs of the plan's quantity at each of the stops. Costs are 0.1 R."""
    count = len(state)
    inputs = np.column_stack([state, source.normal(size=(count, 3))])
    columns = dict.fromkeys(GROSS, earned) | dict.fromkeys(SQUARE, earned**2)
    columns |= {WIN: (earned > 0.1) * 1.0, STOPPED: (earned < -0.9) * 1.0, RANGE: 0.3 * state}
    told = Told(inputs, np.ones((count, 9)), np.full(count, 0.1), np.zeros(count))
    as_of = np.arange(count) * 8 * HOUR
    answers = np.column_stack([columns[name] for name in QUESTIONS])
    return Lessons(told, answers, np.ones(count), as_of, as_of + 6 * HOUR)


def skewed(count: int, seed: int = 0) -> tuple[Lessons, NDArray[Any]]:
    """State 1 wins 2.6 R in 40 % and loses 1 in 60 % (worth 0.44); state 0 wins 0.6 in 60 % and
    loses 1 in 40 % (worth -0.04). Hindsight likes state 0 more often."""
    source = np.random.default_rng(seed)
    state = (source.random(count) < 0.5) * 1.0
    won = source.random(count) < np.where(state == 1, 0.4, 0.6)
    earned = np.where(won, np.where(state == 1, 2.6, 0.6), -1.0)
    return lessons(state, earned, source), state


def taught(given: Lessons, config: TeacherConfig = CONFIG, embargo_s: float = DAY_S) -> Taught:
    return teach(given, np.arange(len(given.answers)), config, embargo_s)


def test_it_finds_a_planted_expectation_through_skewed_noise() -> None:
    given, state = skewed(3000)
    said = taught(given).out_of_fold
    action = len(ACTIONS) - 1
    for value, worth, wins, variance in (
        (1.0, 0.44 - 0.1, 0.4, 0.4 * 2.6**2 + 0.6 - 0.44**2),
        (0.0, -0.04 - 0.1, 0.6, 0.6 * 0.6**2 + 0.4 - 0.04**2),
    ):
        rows = state == value
        assert said.expected[rows, action].mean() == pytest.approx(worth, abs=0.08)
        assert said.win[rows].mean() == pytest.approx(wins, abs=0.04)
        assert said.stopped[rows].mean() == pytest.approx(1 - wins, abs=0.04)
        assert (said.sd[rows, action] ** 2).mean() == pytest.approx(variance, abs=0.25)
        assert said.range_atr[rows].mean() == pytest.approx(np.exp(0.3 * value), rel=0.02)
    assert not said.expected[:, 0].any()
    assert not said.sd[:, 0].any()


def test_expectations_mean_what_they_say_where_little_can_be_known() -> None:
    given, _ = skewed(2500, seed=3)
    said = taught(given).out_of_fold
    net = given.answers[:, QUESTIONS.index(GROSS[0])] - 0.1
    slope = np.polyfit(said.expected[:, 1], net, 1)[0]
    assert 0.8 < slope < 1.2
    for name, chance in ((WIN, said.win), (STOPPED, said.stopped)):
        came = given.answers[:, QUESTIONS.index(name)]
        assert abs(chance.mean() - came.mean()) < 0.01


def test_shuffled_labels_teach_nothing() -> None:
    given, state = skewed(2000)
    source = np.random.default_rng(9)
    said = taught(replace(given, answers=source.permutation(given.answers))).out_of_fold
    for values in (said.expected[:, 9], said.win, said.stopped):
        assert abs(values[state == 1].mean() - values[state == 0].mean()) < 0.03


def test_a_fold_learns_nothing_of_labels_that_overlap_it_or_lie_in_its_embargo() -> None:
    given, _ = skewed(600)
    config = CONFIG.model_copy(update={"trees": 2})
    before = taught(given, config)
    test = np.flatnonzero(before.fold == 1)
    assert test.tolist() == list(range(200, 400))
    # Eight hours apart: three rows lie within the day behind the last label; 197-199 end before it.
    for row, learns in ((199, True), (402, False), (403, True)):
        answers = given.answers.copy()
        answers[row, QUESTIONS.index(GROSS[0])] += 50.0
        after = taught(replace(given, answers=answers), config)
        first, second = (
            once.schools["1"].by_question[GROSS[0]]["ridge"].predict(given.told.inputs)
            for once in (before, after)
        )
        assert (np.abs(first - second).max() > 1e-6) == learns, row


def test_rows_that_do_not_train_change_nothing() -> None:
    given, _ = skewed(900)
    train = np.arange(700)
    before = teach(given, train, CONFIG, DAY_S)
    answers = given.answers.copy()
    answers[700:] = -99.0
    after = teach(replace(given, answers=answers), train, CONFIG, DAY_S)
    for name, values in vars(before.out_of_fold).items():
        assert np.array_equal(values, getattr(after.out_of_fold, name)), name
    assert (before.fold[700:] == -1).all()


def test_unknown_outcomes_are_answered_and_never_learned_from() -> None:
    given, _ = skewed(600)
    answers = given.answers.copy()
    answers[::7] = np.nan
    said = taught(replace(given, answers=answers))
    assert np.isfinite(said.out_of_fold.expected).all()
    assert (said.fold[::7] == -1).all()


def test_too_few_rows_are_one_line() -> None:
    given, _ = skewed(5)
    with pytest.raises(TeacherError, match=r"^5 scenarios with known outcomes are too few"):
        taught(given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, ScenarioSet, Workshop]:
    folder = tmp_path_factory.mktemp("teacher")
    given = history()
    table = scenario_artifact(folder, given)
    scenarios = ScenarioSet.open(table)
    fates = label_artifact(folder, scenarios, given.series())
    shop = Workshop(folder)
    settings = TeacherConfig(folds=2, trees=5, least_rows=5, network=NUMBERS_ALONE)
    artifact = shop.make(
        teacher,
        scenarios=table,
        labels=fates,
        settings=settings,
        outcomes=OutcomesConfig(),
        embargo_s=DAY_S,
    )
    return artifact, scenarios, shop


def test_an_artefact_answers_anew_what_it_kept(
    made: tuple[Artifact, ScenarioSet, Workshop],
) -> None:
    artifact, scenarios, _ = made
    again = Teacher.open(artifact)
    kept, train = again.out_of_fold, scenarios.rows(TRAIN)
    for name, values in vars(again.of(scenarios)).items():
        np.testing.assert_array_equal(values, getattr(kept, name), name)
    whole = again.predict(scenarios)
    others = np.setdiff1d(np.arange(len(scenarios)), train)
    np.testing.assert_array_equal(whole.range_atr[others], kept.range_atr[others])
    inputs = Told.of(scenarios, again.outcomes).inputs[train]
    raw = [school.by_question[RANGE]["ridge"].predict(inputs) for school in again.schools.values()]
    assert not any(np.array_equal(raw[0], other) for other in raw[1:])
    assert kept.expected.shape == kept.sd.shape == (len(scenarios), len(ACTIONS))


def test_variants_are_answered_out_of_fold_like_their_parents(
    made: tuple[Artifact, ScenarioSet, Workshop], tmp_path: Path
) -> None:
    artifact, scenarios, _ = made
    with_variants = ScenarioSet.open(
        scenario_artifact(tmp_path, history(), limit=40, perturbations=1)
    )
    again = Teacher.open(artifact)
    said = again.of(with_variants)
    place = {name: row for row, name in enumerate(scenarios.table["id"])}
    real = np.flatnonzero(with_variants.real)
    at = [place[with_variants.table["id"][int(row)]] for row in real]
    np.testing.assert_array_equal(said.win[real], again.out_of_fold.win[at])
    variant = int(np.flatnonzero(~with_variants.real)[0])
    parent = place[with_variants.table["id"][int(with_variants.parent[variant])]]
    school = again.schools[str(again.fold[parent])]
    told = Told.of(with_variants, again.outcomes)
    foretold = {name: fit.predict(told.inputs) for name, fit in school.by_question[WIN].items()}
    assert said.win[variant] == again.blends[WIN].of(foretold)[variant]


def test_a_price_does_not_know_whose_account_it_moves(
    made: tuple[Artifact, ScenarioSet, Workshop],
) -> None:
    artifact, scenarios, _ = made
    poor = scenarios.table.with_columns(
        scenario=scenarios.table["scenario"].str.replace(
            '"drawdown_fraction":0.0', '"drawdown_fraction":0.9', literal=True
        )
    )
    again, other = Teacher.open(artifact), ScenarioSet(poor, scenarios.reported)
    assert not np.array_equal(scenarios.features(), other.features(), equal_nan=True)
    np.testing.assert_array_equal(again.predict(scenarios).expected, again.predict(other).expected)


def test_a_damaged_artefact_is_one_clear_error(
    made: tuple[Artifact, ScenarioSet, Workshop], tmp_path: Path
) -> None:
    artifact, _, _ = made
    for path in artifact.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(TeacherError, match="is damaged"):
        Teacher.open(Artifact(tmp_path, artifact.manifest))
