"""The report's words: what a trader reads first, checked by hand."""

from __future__ import annotations

import pytest

from training.judging.gate.verdict import RefusalCode
from training.judging.report.words import EVIDENCE, REASONS, opening
from training.statistics.bootstrap import Estimate, none

BEGIN = (
    "On 1,499 opportunities of 700 days that it had not learnt from, a hundred of them would have"
    " earned -1.2 R with it, -3.9 R with the agent alone and 0 R without trading, after costs (1 R"
    " is what the agent's plan risks)"
)
PARTS = "(+3.0 R by declining the agent's trades, -0.3 R by its other answers)"


@pytest.mark.parametrize(
    ("gap", "end"),
    [
        (
            Estimate(0.027, 0.01),
            f": better than the agent by 2.7 R, surely by 1.0 R {PARTS}.",
        ),
        (
            Estimate(0.027, -0.004),
            f": better than the agent by 2.7 R {PARTS}, which may be luck: it could as well be"
            " -0.4 R.",
        ),
        (none("too few days"), "; how sure that is cannot be said: too few days."),
    ],
)
def test_it_says_what_a_hundred_would_have_earned_and_how_sure_that_is(
    gap: Estimate, end: str
) -> None:
    assert opening(-0.012, -0.039, 0.030, gap, 1499, 700) == BEGIN + end


def test_worse_is_by_how_much_less_it_earned() -> None:
    said = opening(-0.066, -0.039, 0.0, Estimate(-0.03, -0.05), 1499, 700)
    parts = "(+0.0 R by declining the agent's trades, -2.7 R by its other answers)"
    assert said.endswith(f"risks): worse than the agent by 2.7 R {parts}."), "gap is clipped"


def test_every_reason_has_its_own_words() -> None:
    assert set(REASONS) == set(RefusalCode)
    assert len(set(REASONS.values())) == len(REASONS)


def test_every_reason_leads_to_what_is_behind_it_but_those_of_broken_evidence() -> None:
    assert set(RefusalCode) - set(EVIDENCE) == {
        RefusalCode.NOT_FINITE,
        RefusalCode.OUT_OF_BOUNDS,
        RefusalCode.NOT_IN_ORDER,
        RefusalCode.SPLIT_OVERLAPS,
    }


def test_what_would_be_told_as_nothing_is_no_difference() -> None:
    said = opening(0.0003, 0.0, 0.0, Estimate(0.0003, 0.0001), 1499, 700)
    assert said.endswith(": no difference from the agent that one would notice.")
