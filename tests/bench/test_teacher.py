"""The shuffled control: fates change hands net of costs, so that costs tell nothing either."""

from __future__ import annotations

import numpy as np

from bench.teacher import shuffled
from training.learning.teacher.lessons import GROSS, QUESTIONS, WIN, Lessons, Told


def test_shuffled_fates_are_dealt_net_of_costs_and_whole_to_learned_rows_alone() -> None:
    source = np.random.default_rng(0)
    count, costs = 60, np.linspace(0.1, 0.5, 60)
    answers = source.normal(size=(count, len(QUESTIONS)))
    told = Told(np.zeros((count, 2)), np.ones((count, 9)), costs, np.zeros(count))
    as_of = np.arange(count) * 3600
    given = Lessons(told, answers, np.ones(count), as_of, as_of + 3600)
    learned = np.arange(40)
    dealt = shuffled(given, learned).answers
    gross, win = QUESTIONS.index(GROSS[1]), QUESTIONS.index(WIN)
    assert np.array_equal(dealt[40:], answers[40:])
    before = {row[win]: row[gross] - cost for row, cost in zip(answers[:40], costs, strict=False)}
    for row, cost in zip(dealt[:40], costs, strict=False):
        assert np.isclose(row[gross] - cost, before[row[win]])
    assert (dealt[:40, win] != answers[:40, win]).sum() > 30
