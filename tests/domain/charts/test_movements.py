"""Means and shares of windows, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.charts.indicators import _percentile
from app.domain.charts.movements import trailing_mean

VALUES = np.array([1.0, 3.0, 2.0, 6.0])


@pytest.mark.parametrize(
    ("window", "means"),
    [
        (1, [1.0, 3.0, 2.0, 6.0]),
        (2, [np.nan, 2.0, 2.5, 4.0]),
        (4, [np.nan, np.nan, np.nan, 3.0]),
        (5, [np.nan] * 4),
        (0, [np.nan] * 4),
    ],
)
def test_a_mean_needs_a_whole_window(window: int, means: list[float]) -> None:
    np.testing.assert_allclose(trailing_mean(VALUES, window), means)


@pytest.mark.parametrize(
    ("window", "shares"),
    [(2, [np.nan, 1.0, 0.0, 1.0]), (4, [np.nan] * 3 + [1.0]), (5, [np.nan] * 4)],
)
def test_a_share_counts_what_lies_below_in_a_whole_window(window: int, shares: list[float]) -> None:
    np.testing.assert_allclose(_percentile(VALUES, window), shares)
