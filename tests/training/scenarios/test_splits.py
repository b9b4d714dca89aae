"""Splits: no training label overlaps a test label, groups are those that skfolio makes, errors are
one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skfolio.model_selection import CombinatorialPurgedCV

from training.scenarios.splits import (
    Fold,
    SplitError,
    backtest_paths,
    combinatorial_purged,
    overlapping,
    purged_kfold,
    walk_forward,
)

Times = NDArray[np.int64]


def windows(*pairs: tuple[int, int]) -> tuple[Times, Times]:
    as_of, ends_at = np.array(pairs, dtype=np.int64).T
    return as_of, ends_at


def plainly_overlapping(fold: Fold, as_of: Times, ends_at: Times, embargo: float) -> bool:
    """By the definition, pair by pair: (a, b] and (c, d] share an instant, or a lies within the
    embargo after d."""
    return any(
        as_of[i] < ends_at[j] + embargo and as_of[j] < ends_at[i]
        for i in fold.train
        for j in fold.test
    )


@st.composite
def labels(draw: st.DrawFn) -> tuple[Times, Times]:
    count = draw(st.integers(12, 60))
    as_of = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(1, 25), min_size=count, max_size=count))
    return np.array(as_of, dtype=np.int64), np.array(as_of, dtype=np.int64) + np.array(
        lengths, dtype=np.int64
    )


@settings(max_examples=80)
@given(labels(), st.integers(2, 5), st.integers(0, 30))
def test_no_training_window_overlaps_a_test_window(
    given: tuple[Times, Times], folds: int, embargo: int
) -> None:
    as_of, ends_at = given
    try:
        found = purged_kfold(as_of, ends_at, folds, embargo)
    except SplitError:
        return  # Everything was purged: an error, not a leak.
    for fold in found:
        assert not plainly_overlapping(fold, as_of, ends_at, embargo)
    assert sorted(np.concatenate([fold.test for fold in found])) == list(range(len(as_of)))


@settings(max_examples=60)
@given(labels(), st.integers(0, 30))
def test_what_is_purged_overlaps(given: tuple[Times, Times], embargo: int) -> None:
    """Nothing more than needed is thrown away."""
    as_of, ends_at = given
    try:
        found = purged_kfold(as_of, ends_at, 3, embargo)
    except SplitError:
        return
    for fold in found:
        for row in set(range(len(as_of))) - set(fold.train) - set(fold.test):
            assert plainly_overlapping(Fold(np.array([row]), fold.test), as_of, ends_at, embargo)


@settings(max_examples=60)
@given(labels(), st.integers(20, 90), st.integers(1, 150), st.integers(0, 30))
def test_walking_forward_trains_on_the_past_alone(
    given: tuple[Times, Times], test_len: int, min_train: int, embargo: int
) -> None:
    as_of, ends_at = given
    try:
        found = walk_forward(as_of, ends_at, test_len, min_train, embargo)
    except SplitError:
        return
    for fold in found:
        assert ends_at[fold.train].max() + embargo <= as_of[fold.test].min()
    tested = np.concatenate([fold.test for fold in found])
    assert sorted(tested) == list(np.flatnonzero(as_of >= as_of.min() + min_train))


def test_windows_that_touch_do_not_overlap_and_an_embargo_makes_them() -> None:
    as_of, ends_at = windows((0, 10), (10, 20), (20, 30))
    rows, test = np.array([0, 2]), np.array([1])
    assert overlapping(rows, test, as_of, ends_at).tolist() == [False, False]
    assert overlapping(rows, test, as_of, ends_at, 1).tolist() == [False, True]


def test_a_long_label_of_an_early_test_row_purges_beyond_later_short_ones() -> None:
    as_of, ends_at = windows((0, 100), (1, 2), (50, 60), (100, 110))
    assert overlapping(np.array([2, 3]), np.array([0, 1]), as_of, ends_at).tolist() == [True, False]


def test_the_classic_five_rows() -> None:
    """Labels of two steps, one per step: the neighbours of a test row are purged, and one more by
    the embargo."""
    as_of, ends_at = windows(*((t, t + 2) for t in range(8)))
    fold = purged_kfold(as_of, ends_at, 4, 0)[1]
    assert (fold.test.tolist(), fold.train.tolist()) == ([2, 3], [0, 5, 6, 7])
    fold = purged_kfold(as_of, ends_at, 4, 1)[1]
    assert (fold.test.tolist(), fold.train.tolist()) == ([2, 3], [0, 6, 7])


@pytest.mark.parametrize(("purged", "embargo"), [(0, 0), (1, 0), (2, 3)])
def test_combinatorial_splits_are_those_of_skfolio(purged: int, embargo: int) -> None:
    """Labels of `purged` + 1 steps at every step: purging by time is then purging by count.

    skfolio counts its embargo after the purge; so do windows that end later by it.
    """
    count, folds, test_folds = 60, 6, 2
    as_of = np.arange(count, dtype=np.int64) * 10
    ends_at = as_of + 10 * purged + 1
    rival = CombinatorialPurgedCV(folds, test_folds, purged_size=purged, embargo_size=embargo)
    ours = combinatorial_purged(as_of, ends_at, folds, test_folds, 10 * embargo)
    theirs = list(rival.split(np.zeros((count, 1))))
    assert len(ours) == len(theirs) == 15
    for fold, (train, tests) in zip(ours, theirs, strict=True):
        assert fold.train.tolist() == train.tolist()
        assert fold.test.tolist() == np.concatenate(tests).tolist()
    np.testing.assert_array_equal(backtest_paths(folds, test_folds), rival.recombined_paths.T)


def test_every_path_tests_every_group_once() -> None:
    splits = combinatorial_purged(*windows(*((t, t + 1) for t in range(24))), 4, 2, 0)
    paths = backtest_paths(4, 2)
    assert paths.shape == (3, 4)
    for path in paths:
        for group, split in enumerate(path):
            assert group in splits[split].groups


def test_rows_may_come_in_any_order() -> None:
    as_of, ends_at = windows(*((t, t + 2) for t in range(12)))
    shuffled = np.random.default_rng(0).permutation(12)
    straight = purged_kfold(as_of, ends_at, 3, 0)
    mixed = purged_kfold(as_of[shuffled], ends_at[shuffled], 3, 0)
    for one, other in zip(straight, mixed, strict=True):
        assert as_of[one.train].tolist() == as_of[shuffled][other.train].tolist()
        assert as_of[one.test].tolist() == as_of[shuffled][other.test].tolist()


@pytest.mark.parametrize(
    ("pairs", "folds", "test_folds", "embargo", "message"),
    [
        ([(0, 1), (1, 2)], 3, 1, 0.0, "2 rows cannot be split into 3 folds"),
        ([(0, 1), (1, 2)], 2, 2, 0.0, "at least one fold must train"),
        ([(0, 0), (1, 2)], 2, 1, 0.0, "row 0 ends before it begins"),
        ([(0, 1), (1, 2)], 2, 1, -1.0, "must be 0 or more"),
        ([(0, 1), (1, 2)], 2, 1, float("nan"), "must be 0 or more"),
        ([(0, 50), (1, 50)], 2, 1, 0.0, "nothing is left to train on"),
    ],
)
def test_what_cannot_be_split_is_one_line(
    pairs: list[tuple[int, int]], folds: int, test_folds: int, embargo: float, message: str
) -> None:
    with pytest.raises(SplitError, match=message):
        combinatorial_purged(*windows(*pairs), folds, test_folds, embargo)


def test_no_rows_and_no_test_period_are_one_line() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(SplitError, match="no rows"):
        purged_kfold(empty, empty, 2, 0)
    with pytest.raises(SplitError, match="nothing is left to test"):
        walk_forward(*windows((0, 1), (5, 6)), 10, 100, 0)
    with pytest.raises(SplitError, match="both must be positive"):
        walk_forward(*windows((0, 1), (5, 6)), 0, 1, 0)
