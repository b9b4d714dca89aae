"""The published claim's strategy, by hand: when it holds, what it pays, what it may learn from."""

from __future__ import annotations

import numpy as np
import pytest

from bench.judging.claim import FOLDS, features_of, folds, positions, strategy, table
from tests.training.support.candles import random_walk, with_corrupt_future


def test_a_position_is_kept_until_a_forecast_clears_the_threshold_the_other_way() -> None:
    forecast = np.array([0.0, 0.3, 0.1, -0.1, -0.3, 0.1, 0.4, -0.2])
    assert positions(forecast, 0.2).tolist() == [0, 1, 1, 1, 0, 0, 1, 1]
    assert positions(forecast, 0.0).tolist() == [0, 1, 1, 0, 0, 1, 1, 0]


def test_each_change_of_position_costs() -> None:
    """Long for two hours of 1 % and -2 %, then in cash: in at 10 bps, out at 10 bps."""
    done = strategy(np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.5, 0.01, -0.02, 0.5]), 0.001)
    assert done.returns == pytest.approx([0.0, 1.01 * 0.999 - 1, -0.02, -0.001])
    assert done.held == 0.5
    total = 1.01 * 0.999 * 0.98 * 0.999
    assert done.yearly == pytest.approx(total ** (8760 / 4) - 1)


def test_folds_foretell_what_lies_behind_everything_that_they_learned_from() -> None:
    bars = random_walk(20_000, 3)
    parts = folds(bars)
    assert len(parts) == FOLDS
    assert (np.diff(np.concatenate([test for _, test in parts])) == 1).all()
    for train, test in parts:
        # The last training row's answer is the close of the bar after it.
        assert train[-1] + 1 < test[0]


def test_features_know_nothing_of_later_bars() -> None:
    bars = random_walk(900, 4)
    at = 700
    known = features_of(with_corrupt_future(bars, int(bars.closed_at[at])))[: at + 1]
    np.testing.assert_array_equal(known, features_of(bars)[: at + 1])


def test_the_table_has_a_line_for_everything_that_was_tried() -> None:
    comes = np.random.default_rng(0).normal(0, 0.01, 500)
    done = {
        "buy and hold": strategy(np.ones(500), comes),
        "threshold 0 of the cost, seed 0": strategy(np.where(comes > 0, 1.0, 0.0), comes),
        "threshold 1 of the cost, seed 0": strategy(np.zeros(500), comes),
    }
    lines = list(table(done))
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(done)
    assert lines[-1].endswith("none |")
