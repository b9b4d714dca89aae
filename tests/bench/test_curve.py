"""The learning curve: readers find what is there to be read, on rows they were not fitted to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench.curve import read
from training.learning.algorithms.measures import rank_agreement


def test_a_reader_finds_what_its_inputs_hold_and_nothing_else() -> None:
    source = np.random.default_rng(0)
    inputs = source.normal(size=(600, 5))
    rewards = np.zeros((600, 10))
    rewards[:, 4] = inputs[:, 2] + 5.0
    given = SimpleNamespace(
        rewards=rewards,
        weights=np.ones(600),
        train_rows=np.arange(400),
        validate_rows=np.arange(400, 600),
    )
    assert read(inputs, given, given.train_rows) > 0.99  # type: ignore[arg-type]
    blind = read(source.normal(size=(600, 5)), given, given.train_rows)  # type: ignore[arg-type]
    assert abs(blind) < 0.25


def test_rank_agreement_by_hand() -> None:
    """Best approvals less rejecting: 1, 2, 4, 3 against 10, 20, 30, 40: squared differences of
    ranks 0, 0, 1, 1; 1 - 6 x 2 / (4 x 15) = 0.8."""
    policy = np.array([[0.0, 1.0, 0.5], [1.0, 3.0, 0.0], [-1.0, 0.0, 3.0], [0.0, 3.0, 3.0]])
    rewards = np.array([[0.0, 10.0, 0.0], [0.0, 0.0, 20.0], [0.0, 30.0, 30.0], [0.0, 40.0, 1.0]])
    assert rank_agreement(policy, rewards) == pytest.approx(0.8)
    assert rank_agreement(np.zeros((4, 3)), rewards) == 0.0
