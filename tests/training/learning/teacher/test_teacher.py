"""What the teacher learns in worlds whose truth is known, and what it must not learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.model.actions import ACTIONS
from tests.training.support.candles import random_walk
from tests.training.support.histories import history, label_artifact, scenario_artifact
from training.arrays import DAY_S, Rows
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
    risk_of,
)
from training.learning.teacher.linear import Linear
from training.learning.teacher.network import Inputs
from training.learning.teacher.teacher import (
    WHOLE,
    Taught,
    Teacher,
    TeacherError,
    dealt_out,
    doubt_of,
    said_by,
    teach,
    teacher,
)
from training.outcomes.labels import Labels
from training.scenarios.history import History
from training.scenarios.table import TRAIN, ScenarioSet
from training.stages.store import Artifact
from training.stages.workshop import Workshop

NUMBERS_ALONE = NetworkConfig(members=0)
CONFIG = TeacherConfig(
    folds=3, trees=15, learning_rate=0.2, leaves=4, ridge=10.0, network=NUMBERS_ALONE
)
HOUR = 3600
PLAN = next(n for n, action in enumerate(ACTIONS) if action.name == "approve_r1.00_s1.5")


def lessons(state: NDArray[Any], earned: NDArray[Any], source: np.random.Generator) -> Lessons:
    """One scenario every eight hours, its label six hours long. `state` is told among noise;
    `earned` is R before costs of the plan's quantity at each of the stops. Costs are 0.1 R."""
    count = len(state)
    inputs = np.column_stack([state, source.normal(size=(count, 3))])
    columns = dict.fromkeys(GROSS, earned) | dict.fromkeys(SQUARE, earned**2)
    columns |= {WIN: (earned > 0.1) * 1.0, STOPPED: (earned < -0.9) * 1.0, RANGE: 0.3 * state}
    told = Told(
        inputs,
        np.ones((count, 9)),
        np.ones(count),
        np.full(count, 0.001),
        np.full(count, 0.1),
        np.zeros(count),
    )
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


def test_doubt_is_of_the_size_of_the_expectation_s_error_and_not_of_a_trade_s_luck() -> None:
    """The truth is 0.34 in state 1 and -0.14 in state 0; a trade's deviation is 1.3."""
    given, state = skewed(1600)
    said = taught(given, CONFIG.model_copy(update={"folds": 5})).out_of_fold
    error = said.expected[:, 9] - np.where(state == 1, 0.34, -0.14)
    missed, doubt = float(np.sqrt((error**2).mean())), float(said.doubt[:, 9].mean())
    assert 0.3 < doubt / missed < 2.0
    assert said.sd[:, 9].mean() > 5 * doubt
    assert not said.doubt[:, 0].any()


def test_doubt_by_hand() -> None:
    """Three teachers that did without a part: 0.1, 0.2, 0.3 vary by 0.01; times 4 / 3. Of a row of
    the first one's own part the other two say 0.2 and 0.3: 0.005 x 4 / 3."""
    expectations = np.array([0.1, 0.2, 0.3])[:, None, None] * np.ones((3, 2, 10))
    expectations[0, 1] = np.nan
    doubts = doubt_of(expectations)
    assert doubts[0] == pytest.approx(np.full(10, (0.01 * 4 / 3) ** 0.5))
    assert doubts[1] == pytest.approx(np.full(10, (0.005 * 4 / 3) ** 0.5))


def test_the_shuffled_control_deals_known_training_outcomes_and_nothing_else() -> None:
    given, _ = skewed(60)
    answers = given.answers.copy()
    answers[::7] = np.nan
    given, train = replace(given, answers=answers), np.arange(40)
    dealt = dealt_out(given, train, seed=1).answers
    known = np.setdiff1d(train, np.arange(0, 60, 7))
    rest = np.setdiff1d(np.arange(60), known)
    np.testing.assert_array_equal(dealt[rest], answers[rest])
    assert sorted(map(tuple, dealt[known])) == sorted(map(tuple, answers[known]))
    assert not np.array_equal(dealt[known], answers[known])


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


@pytest.fixture(scope="module")
def by_share(tmp_path_factory: pytest.TempPathFactory) -> dict[float, tuple[ScenarioSet, Lessons]]:
    """Candidates of bars that wander, and what they teach: as they are, and each with a variant on
    other terms."""
    given = history(random_walk(8_000, 1), random_walk(8_000, 2, "ETHUSDT"))
    return {share: of_terms(tmp_path_factory.mktemp("terms"), given, share) for share in (0.0, 1.0)}


def of_terms(folder: Path, given: History, share: float) -> tuple[ScenarioSet, Lessons]:
    scenarios = ScenarioSet.open(scenario_artifact(folder, given, terms=share))
    fates = Labels.open(label_artifact(folder, scenarios, given.series()))
    return scenarios, Lessons.of(scenarios, fates, OutcomesConfig())


def with_spread(scenarios: ScenarioSet, rows: Rows, bps: float) -> ScenarioSet:
    """Some of the scenarios, all with this spread."""
    some = scenarios.table[rows]
    spread = rf'"spread_bps":{bps}'
    text = some["scenario"].str.replace(r'"spread_bps":[0-9.e-]+', spread)
    return ScenarioSet(some.with_columns(scenario=text), scenarios.reported)


def test_a_spread_is_learned_where_it_varies_and_nowhere_else(
    by_share: dict[float, tuple[ScenarioSet, Lessons]],
) -> None:
    """Ridge regression of the plan's net R on features, told nothing of costs. 20 bps more, half
    on each side, cost 0.002 of what is bought: over the risk as a fraction of it, R."""
    plain, _ = by_share[0.0]
    asked = plain.rows(TRAIN)[:200]
    cost = float((0.002 / risk_of([plain.scenarios()[row] for row in asked])).mean())
    falls = {}
    for share, (scenarios, given) in by_share.items():
        rows = scenarios.rows(TRAIN)
        rows = rows[np.isfinite(given.answers[rows]).all(axis=1)]
        net = given.answers[rows, 0] / given.told.stop_atr[rows] - given.told.costs[rows]
        inputs, config = scenarios.features()[rows], TeacherConfig(ridge=1.0)
        fitted = Linear.fit(inputs, net, given.weight[rows], config, chance=False)
        near, wide = (
            fitted.predict(with_spread(plain, asked, bps).features()) for bps in (2.0, 22.0)
        )
        falls[share] = float((near - wide).mean())
    assert falls[0.0] == 0.0
    assert falls[1.0] == pytest.approx(cost, rel=0.4)


def test_the_teacher_charges_a_wider_spread_over_the_plan_s_risk(
    by_share: dict[float, tuple[ScenarioSet, Lessons]],
) -> None:
    plain, _ = by_share[0.0]
    asked = plain.rows(TRAIN)[:200]
    cost = float((0.002 / risk_of([plain.scenarios()[row] for row in asked])).mean())
    scenarios, given = by_share[1.0]
    made = teach(given, scenarios.rows(TRAIN), CONFIG.model_copy(update={"folds": 2}), DAY_S)
    blends = {name: choice.blend for name, choice in made.choices.items()}
    told = [Told.of(with_spread(plain, asked, bps), OutcomesConfig()) for bps in (2.0, 22.0)]
    near, wide = (
        said_by(made.schools[WHOLE], blends, some, Inputs.without_prompts(some.inputs))
        for some in told
    )
    fall = near.expected[:, PLAN] - wide.expected[:, PLAN]
    assert float(fall.mean()) == pytest.approx(cost, rel=0.15)


def test_one_r_of_a_wider_stop_is_more_of_the_market(
    by_share: dict[float, tuple[ScenarioSet, Lessons]],
) -> None:
    """What one unit does with its stop at a distance of the action space does not depend on the
    plan's own stop: before costs R times the plan's distance is the same, for one price path."""
    scenarios, given = by_share[1.0]
    variants = np.flatnonzero(~scenarios.real & np.isfinite(given.answers).all(axis=1))
    column = QUESTIONS.index(STOPPED)
    distance = given.told.stop_atr[variants]
    stopped = given.answers[variants, column]
    assert stopped[distance < 1.2].mean() > stopped[distance > 2.0].mean() + 0.2
    near = given.answers[:, : len(GROSS)]
    parents = scenarios.parent[variants]
    assert np.corrcoef(near[variants, 1], near[parents, 1])[0, 1] > 0.6
