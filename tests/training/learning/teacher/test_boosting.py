"""Trees as arrays say what scikit-learn's say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.config.learning import TeacherConfig
from training.learning.teacher.boosting import Boosting, fitted, varying

CONFIG = TeacherConfig(trees=30, least_rows=10)


def inputs(rows: int, seed: int = 0) -> NDArray[Any]:
    """Normal numbers with holes, a column that is never known and one that never varies."""
    source = np.random.default_rng(seed)
    values = source.normal(size=(rows, 6))
    values[source.random(values.shape) < 0.15] = np.nan
    values[:, 2], values[:, 4] = np.nan, 7.0
    return values


@pytest.mark.parametrize("chance", [False, True])
def test_predictions_of_the_arrays_are_the_librarys_on_rows_with_holes(chance: bool) -> None:
    x = inputs(3000)
    signal = np.nan_to_num(x[:, 0]) + np.isnan(x[:, 1])
    answer = (signal > 0.3).astype(float) if chance else signal + np.sin(3 * signal)
    weight = np.random.default_rng(1).uniform(0.2, 1, len(x))
    ours = Boosting.fit(x, answer, weight, CONFIG, chance)
    theirs = fitted(x[:, varying(x)], answer, weight, CONFIG, chance)
    later = inputs(5000, seed=2)
    seen = later[:, varying(x)]
    expected = theirs.predict_proba(seen)[:, 1] if chance else theirs.predict(seen)
    np.testing.assert_allclose(ours.predict(later), expected, rtol=0, atol=1e-12)
    assert np.ptp(expected) > 0.2


def test_what_never_varies_is_left_out() -> None:
    assert varying(inputs(100)).tolist() == [0, 1, 3, 5]


def test_a_chance_that_always_came_is_said_to_come() -> None:
    x = inputs(200)
    taught = Boosting.fit(x, np.ones(200), np.ones(200), CONFIG, chance=True)
    assert taught.predict(x).tolist() == [1.0] * 200
