"""Splits by time that do not leak: purging and embargo (López de Prado 2018, "Advances in Financial
Machine Learning").

Row i is decided at `as_of[i]`, and its label looks at bars that close in (as_of[i], ends_at[i]].
Two rows overlap when these windows share an instant; windows that only touch do not. Rows of
different symbols at one time overlap as well: markets move together. Times are seconds since 1970
UTC. Pass real rows only: a synthetic variant follows its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import AdvisorError
from training.arrays import Rows, Times
from training.config.data import ScenariosConfig


class SplitError(AdvisorError):
    """Rows cannot be split as asked, or a split leaks."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Index arrays into the rows that were split, each in order of time.

    groups : which of the consecutive groups of rows are tested; () where rows are not grouped.
    """

    train: Rows
    test: Rows
    groups: tuple[int, ...] = ()


def overlapping(
    rows: Rows, others: Rows, as_of: Times, ends_at: Times, embargo_s: float = 0.0
) -> NDArray[np.bool_]:
    """Which of `rows` overlap any of `others`, whose windows are first lengthened by the embargo.
    Shape of `rows`.

    López de Prado 2018, section 7.4.1-7.4.2: with the embargo, a row that begins less than
    `embargo_s` after the end of another's label counts as overlapping, since prices are serially
    correlated.
    """
    if not len(others):
        return np.zeros(len(rows), dtype=bool)
    order = others[np.argsort(as_of[others], kind="stable")]
    latest = np.maximum.accumulate(ends_at[order].astype(np.float64) + embargo_s)
    begun = np.searchsorted(as_of[order], ends_at[rows], side="left")
    last = np.where(begun > 0, latest[np.maximum(begun - 1, 0)], -np.inf)
    return np.asarray(last > as_of[rows])


def purged_kfold(as_of: Times, ends_at: Times, folds: int, embargo_s: float) -> list[Fold]:
    """Each of `folds` consecutive groups is tested once; all other rows train, but for purged and
    embargoed ones.

    López de Prado 2018, section 7.4.3. Raises `SplitError` when a fold would have nothing to train
    on.
    """
    return combinatorial_purged(as_of, ends_at, folds, 1, embargo_s)


def combinatorial_purged(
    as_of: Times, ends_at: Times, folds: int, test_folds: int, embargo_s: float
) -> list[Fold]:
    """Every choice of `test_folds` out of `folds` consecutive groups is tested, in lexicographic
    order.

    López de Prado 2018, section 12.4. `backtest_paths` says which test belongs to which path.
    Groups have N // folds rows, the last one the rest too.

    Raises
    ------
    SplitError : fewer rows than folds, a window that ends before it begins, or a fold with nothing
        to train on.
    """
    _check(as_of, ends_at, embargo_s)
    if not 1 <= test_folds < folds or len(as_of) < folds:
        raise SplitError(
            f"{len(as_of)} rows cannot be split into {folds} folds with {test_folds} tested: "
            "at least one fold must train and every fold needs a row"
        )
    order = np.argsort(as_of, kind="stable")
    size = len(order) // folds
    groups = np.split(order, size * np.arange(1, folds))
    splits = []
    for chosen in combinations(range(folds), test_folds):
        test = np.concatenate([groups[number] for number in chosen])
        rest = np.concatenate([groups[number] for number in range(folds) if number not in chosen])
        train = rest[~overlapping(rest, test, as_of, ends_at, embargo_s)]
        splits.append(_fold(train, test, chosen))
    return splits


def backtest_paths(folds: int, test_folds: int) -> NDArray[np.int64]:
    """Which split of `combinatorial_purged` tests group g on path p; (paths, folds).

    López de Prado 2018, section 12.4.1: C(folds - 1, test_folds - 1) paths; along each, every group
    is tested once.
    """
    splits = list(combinations(range(folds), test_folds))
    return np.array(
        [
            [number for number, chosen in enumerate(splits) if group in chosen]
            for group in range(folds)
        ]
    ).T


def walk_forward(
    as_of: Times, ends_at: Times, test_len_s: float, min_train_s: float, embargo_s: float
) -> list[Fold]:
    """Consecutive test periods of `test_len_s`, each after everything that it was trained on;
    training grows.

    The first test period begins `min_train_s` after the first row. A row trains when its label
    ended `embargo_s` or more before the test period begins: nothing later ever trains, so the
    embargo is a gap. Periods without rows are left out.

    Raises
    ------
    SplitError : no test period has rows, or one has nothing to train on.
    """
    _check(as_of, ends_at, embargo_s)
    if test_len_s <= 0 or min_train_s <= 0:
        raise SplitError(
            f"a test period of {test_len_s} s after {min_train_s} s of training: both must be"
            " positive"
        )
    order = np.argsort(as_of, kind="stable")
    first, last = int(as_of[order[0]]), int(as_of[order[-1]])
    periods = []
    begin = first + min_train_s
    while begin <= last:
        test = order[(as_of[order] >= begin) & (as_of[order] < begin + test_len_s)]
        if len(test):
            periods.append(_fold(order[ends_at[order] + embargo_s <= begin], test, ()))
        begin += test_len_s
    if not periods:
        raise SplitError(
            f"rows span {last - first} s: nothing is left to test after {min_train_s:.0f} s of"
            " training"
        )
    return periods


def _fold(train: Rows, test: Rows, groups: Sequence[int]) -> Fold:
    if not len(train):
        raise SplitError(
            f"nothing is left to train on for a test of {len(test)} rows: fewer folds, a shorter"
            " embargo, or more rows"
        )
    return Fold(train, test, tuple(groups))


def _check(as_of: Times, ends_at: Times, embargo_s: float) -> None:
    if as_of.shape != ends_at.shape or as_of.ndim != 1:
        raise SplitError(
            f"as_of {as_of.shape} and ends_at {ends_at.shape} must be two lists of one length"
        )
    if not len(as_of):
        raise SplitError("there are no rows to split")
    if (ends_at <= as_of).any():
        raise SplitError(f"row {int(np.argmax(ends_at <= as_of))} ends before it begins")
    if not embargo_s >= 0:
        raise SplitError(f"an embargo of {embargo_s} s: it must be 0 or more")


def embargo_s(config: ScenariosConfig) -> float:
    """Seconds between the end of a label that trains and the first decision that judges."""
    return config.embargo_hours * 3600
