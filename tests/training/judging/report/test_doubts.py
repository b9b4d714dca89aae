"""The simple rivals on combinatorial paths: five of them, each over all rows, and a planted signal
is found on each."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.features import FEATURE_NAMES
from training.arrays import DAY_S, Floats
from training.judging.contest.arms import HEURISTICS, MIN_APPROVAL_RATE, Past
from training.judging.report.document import Cell
from training.judging.report.doubts import GROUPS, TESTED, combinatorial_paths
from training.judging.report.findings import cell, maybe
from training.scenarios.splits import backtest_paths, combinatorial_purged
from training.statistics.bootstrap import Estimate, none

MARGIN, RSI = FEATURE_NAMES.index("score_over_threshold"), FEATURE_NAMES.index("rsi")


def known(features: Floats, rewards: Floats) -> Past:
    """One scenario a day, whose label ends after six hours; an embargo of a day."""
    as_of = np.arange(len(rewards), dtype=np.int64) * DAY_S
    return Past(features, rewards, as_of, as_of + DAY_S // 4, np.ones(len(rewards)), float(DAY_S))


def readings(rows: int, source: np.random.Generator) -> Floats:
    """Rounded to a tenth within -3..3: as few values as boosting has bins, which spares it the
    search for them."""
    return np.asarray(source.normal(size=(rows, len(FEATURE_NAMES))).clip(-3, 3).round(1))


def planted(rows: int, seed: int) -> Past:
    """The sign of one feature is worth 0.8 R; the agent's own score says nothing."""
    source = np.random.default_rng(seed)
    features = readings(rows, source)
    return known(features, 0.8 * np.sign(features[:, RSI]) - 0.2 + source.normal(size=rows))


def test_a_planted_signal_beats_the_threshold_on_every_path() -> None:
    given = planted(900, 1)
    found = combinatorial_paths(given)
    assert list(found) == list(HEURISTICS)
    threshold, logistic, boosting = (
        found[name] for name in ("score threshold", "logistic regression", "gradient boosting")
    )
    assert len(threshold) == len(logistic) == len(boosting) == 5
    for learned in (logistic, boosting):
        assert all(
            mine.mean > other.mean + 0.1 for mine, other in zip(learned, threshold, strict=True)
        )
    # Half of the rows earn 0.6 R on average, the others lose: nobody can do better than 0.3, but
    # for luck.
    assert all(0.25 < path.mean < 0.35 for path in boosting)
    assert all(MIN_APPROVAL_RATE / 2 < path.rate <= 1 for paths in found.values() for path in paths)
    assert len({path.mean for path in logistic}) == 5, (
        "paths differ by what each group's answers were learned from"
    )


def test_each_path_answers_every_row_once() -> None:
    """A score that is the same everywhere lets everything through: each path then earns the mean of
    all rows."""
    given = planted(130, 2)
    given.features[:, MARGIN] = 1.0
    threshold = combinatorial_paths(given)["score threshold"]
    assert [path.rate for path in threshold] == [1.0] * 5
    assert [path.mean for path in threshold] == pytest.approx([given.rewards.mean()] * 5)


def test_rows_need_not_come_in_order_of_time() -> None:
    """The threshold's path is made of the answers of the split that tests each row's group."""
    given = planted(130, 3)
    order = np.random.default_rng(0).permutation(130)
    ours, theirs = (
        combinatorial_paths(each)["score threshold"] for each in (given, given.at(order))
    )
    assert [path.mean for path in ours] == pytest.approx([path.mean for path in theirs])
    assert [path.rate for path in ours] == pytest.approx([path.rate for path in theirs])


def test_what_a_path_answers_was_learned_from_other_groups() -> None:
    """Where the score pays in all groups but one, no path learns from that one what it is tested on
    there."""
    source = np.random.default_rng(4)
    features = readings(600, source)
    group = np.minimum(np.arange(600) // 100, GROUPS - 1)
    pays = np.where(group == 2, -1.0, 1.0)
    given = known(features, pays * np.sign(features[:, MARGIN]))
    for path in combinatorial_paths(given)["score threshold"]:
        # Five groups earn 0.5 R a row, one loses 0.5 R: (5 - 1) / 6 x 0.5.
        assert path.mean == pytest.approx(1 / 3, abs=0.07)
    for fold in combinatorial_purged(given.as_of, given.ends_at, GROUPS, TESTED, given.embargo_s):
        assert not set(fold.train) & set(fold.test)
    assert backtest_paths(GROUPS, TESTED).shape == (5, GROUPS)


def test_a_cell_tells_a_number_or_why_there_is_none() -> None:
    estimate = Estimate(0.25, 0.1, 0.4, 12)
    assert cell(estimate)[:5] == (0.25, 0.1, 0.4, 12, 3)
    assert cell(estimate, 2).text == "0.25 [0.10, 0.40]"
    assert cell(none("no trades", 4)).text == "none: no trades"
    assert cell(Estimate(None)).text == "none: not defined"
    assert maybe(0.5) == Cell(0.5)
    assert maybe(0.0) == Cell(0.0)
    assert (maybe(None).text, maybe(None, "constant difference").text) == (
        "-",
        "constant difference",
    )
