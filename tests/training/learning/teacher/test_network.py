"""What the networks read, and what they must not: rows that do not train, lines that are not there,
each other's questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.learning.teacher.test_teacher import CONFIG, lessons
from training.arrays import DAY_S, Floats
from training.config.learning import NetworkConfig
from training.learning.model.shards import LINES
from training.learning.teacher.lessons import GROSS, QUESTIONS, RANGE
from training.learning.teacher.network import Inputs, Networks, Prompts, Scaling
from training.learning.teacher.teacher import NETWORK, teach

SMALL = NetworkConfig(
    members=1, components=2, width=8, epochs=12, batch=32, learning_rate=0.01, dropout=0.0
)
SIZE = 5


def prompts(state: Floats, source: np.random.Generator) -> Prompts:
    """Of scenarios whose second line alone shows the state; the third is never there."""
    count = len(state)
    hidden = source.normal(0, 0.3, (count, LINES, SIZE))
    hidden[:, 1] += np.outer(state, np.ones(SIZE))
    lines = np.ones((count, LINES), np.bool_)
    lines[:, 2] = False
    return Prompts(hidden.astype(np.float16), lines, np.arange(count).astype(np.str_))


def made(count: int = 400, prompted: float = 0.5) -> tuple[Inputs, Floats, Floats]:
    """Inputs that show the state in prompts of some rows, and answers that are the state."""
    source = np.random.default_rng(1)
    state = source.normal(size=count)
    place = np.where(source.random(count) < prompted, np.arange(count), -1)
    numbers = source.normal(size=(count, 3))
    numbers[source.random(count) < 0.3, 1] = np.nan
    inputs = Inputs(numbers, place, prompts(state, source))
    return inputs, np.tile(state[:, None], len(QUESTIONS)), state


def test_what_only_a_prompt_shows_is_learned_where_it_was_read() -> None:
    inputs, answers, state = made()
    train, rest = np.arange(300), np.arange(300, 400)
    fitted = Networks.fit(inputs.at(train), answers[train], np.ones(300), SMALL, 0)
    said = fitted.predict(inputs.at(rest))[:, 0]
    read = inputs.place[rest] >= 0
    assert np.corrcoef(said[read], state[rest][read])[0, 1] > 0.9
    assert abs(np.corrcoef(said[~read], state[rest][~read])[0, 1]) < 0.4
    assert np.isfinite(said).all()
    assert said[~read].std() < said[read].std() / 2


def test_who_learned_from_prompts_answers_without_any_as_of_a_prompt_that_was_not_read() -> None:
    inputs, answers, _ = made(120)
    fitted = Networks.fit(inputs, answers, np.ones(120), SMALL, 0)
    nowhere = replace(inputs, place=np.full(120, -1))
    expected = fitted.predict(nowhere)
    alone = fitted.predict(Inputs.without_prompts(inputs.numbers))
    np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_untrained_every_answer_is_the_weighted_mean() -> None:
    inputs, answers, _ = made(50)
    weight = np.linspace(0.1, 2, 50)
    config = SMALL.model_copy(update={"learning_rate": 1e-12})
    said = Networks.fit(inputs, answers, weight, config, 0).predict(inputs)
    mean = np.average(answers, axis=0, weights=weight)
    np.testing.assert_allclose(said, np.tile(mean, (50, 1)), atol=1e-5)


def test_the_same_seed_gives_the_same_and_members_differ_by_theirs() -> None:
    inputs, answers, _ = made(80)
    config = SMALL.model_copy(update={"members": 2, "epochs": 1})
    state = torch.get_rng_state()
    first, again = (Networks.fit(inputs, answers, np.ones(80), config, 3) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.predict(inputs), again.predict(inputs))
    alone = [Networks((member,)).predict(inputs) for member in first.members]
    assert not np.allclose(alone[0], alone[1])
    np.testing.assert_allclose(first.predict(inputs), (alone[0] + alone[1]) / 2)


def test_a_question_is_answered_as_if_it_had_been_asked_alone() -> None:
    inputs, answers, _ = made(80)
    fitted = Networks.fit(inputs, answers, np.ones(80), SMALL, 0)
    before = fitted.predict(inputs)
    with torch.no_grad():
        fitted.members[0].question[3, 0] += 1.0
    after = fitted.predict(inputs)
    moved = np.abs(after - before).max(0) > 1e-6
    assert moved.tolist() == [number == 3 for number in range(len(QUESTIONS))]


def test_a_line_that_is_not_there_and_a_prompt_that_was_not_read_say_nothing() -> None:
    inputs, answers, _ = made(80)
    fitted = Networks.fit(inputs, answers, np.ones(80), SMALL, 0)
    hidden = inputs.prompts.hidden.copy()
    hidden[:, 2] = 9.0
    hidden[inputs.place < 0] = 9.0
    other = replace(inputs, prompts=replace(inputs.prompts, hidden=hidden))
    np.testing.assert_array_equal(fitted.predict(inputs), fitted.predict(other))
    numbers = inputs.numbers.copy()
    numbers[:, 0] += 1.0
    assert not np.allclose(fitted.predict(inputs), fitted.predict(replace(inputs, numbers=numbers)))


def test_inputs_are_standardised_by_the_rows_that_train() -> None:
    inputs, _, _ = made(300)
    scaling = Scaling.fit(inputs, 2)
    components, numbers = scaling.inputs(inputs.batch(np.arange(300)))
    known = np.isfinite(inputs.numbers)
    for column in range(3):
        there = numbers[:, column].numpy()[known[:, column]]
        assert there.mean() == pytest.approx(0, abs=0.01)
        assert there.std() == pytest.approx(1, abs=0.02)
    assert (numbers[:, 3:].bool().numpy() == ~known).all()
    read = torch.from_numpy(inputs.place >= 0)
    assert not components[~read].any()
    assert not components[:, 2].any()
    assert components[read][:, 1, 0].std() == pytest.approx(1, abs=0.15)


def test_networks_without_any_prompt_read_numbers_alone() -> None:
    source = np.random.default_rng(2)
    numbers = source.normal(size=(300, 2))
    answers = np.tile(numbers[:, [0]], len(QUESTIONS))
    inputs = Inputs.without_prompts(numbers)
    said = Networks.fit(inputs, answers, np.ones(300), SMALL, 0).predict(inputs)
    assert np.corrcoef(said[:, 0], numbers[:, 0])[0, 1] > 0.95


def test_they_compete_with_the_others_on_the_same_folds() -> None:
    """The state is shown by the prompts alone: who does not read them is no better than the mean,
    and the networks' share is decided out of fold."""
    source = np.random.default_rng(5)
    state = source.choice([0.0, 1.0], 600)
    given = lessons(np.zeros(600), np.where(state > 0, 2.0, -1.0), source)
    given.answers[:, QUESTIONS.index(RANGE)] = state
    inputs = Inputs(given.told.inputs, np.arange(600), prompts(state, source))
    config = CONFIG.model_copy(update={"network": SMALL})
    taught = teach(given, np.arange(600), config, DAY_S, inputs=inputs)
    errors = taught.choices[GROSS[0]].errors
    assert errors[NETWORK] < errors["ridge"] / 4
    assert errors[NETWORK] < errors["boosting"] / 4
    action = taught.out_of_fold.expected[:, 9]
    assert action[state > 0].mean() - action[state == 0].mean() == pytest.approx(3, abs=0.3)
    # Eight hours apart, embargo of a day: fold 1 is rows 200 to 399, its learners see 403 again.
    for row, learns in ((402, False), (403, True)):
        answers = given.answers.copy()
        answers[row, QUESTIONS.index(RANGE)] += 50.0
        other = teach(replace(given, answers=answers), np.arange(600), config, DAY_S, inputs=inputs)
        one, two = (once.schools["1"].networks.predict(inputs) for once in (taught, other))
        assert (np.abs(one - two).max() > 1e-3) == learns, row


def test_what_is_stored_answers_as_before() -> None:
    inputs, answers, _ = made(60)
    config = SMALL.model_copy(update={"members": 2, "epochs": 1})
    fitted = Networks.fit(inputs, answers, np.ones(60), config, 0)
    again = Networks.restored(dict(fitted.arrays()), config)
    np.testing.assert_array_equal(fitted.predict(inputs), again.predict(inputs))


def test_no_members_do_not_compete() -> None:
    source = np.random.default_rng(5)
    given = lessons(np.zeros(90), source.normal(size=90), source)
    taught = teach(given, np.arange(90), CONFIG, DAY_S)
    assert set(taught.choices[RANGE].errors) == {"ridge", "boosting", "stack"}
