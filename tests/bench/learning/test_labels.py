"""The bench of labels measures what it says."""

from __future__ import annotations

import pytest

from bench.learning.labels import labels_bench


def test_every_candidate_is_labelled_and_the_ratio_is_that_of_the_rates() -> None:
    measured = labels_bench(hours=1500, symbols=2)
    assert measured["scenarios"] > 60
    assert measured["ratio"] == pytest.approx(
        measured["scenarios_per_s"] / measured["plain_scenarios_per_s"]
    )
