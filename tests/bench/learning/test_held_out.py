"""What is printed of the held-out period, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Outlook
from bench.learning.held_out import HeldOut, choices, figures, own_shares, questions, ranks, tails
from training.learning.model.answers import Answers
from training.learning.teacher.accuracy import RangeControls
from training.learning.teacher.predictions import Predictions

COUNT = 40
WHOLE = next(n for n, action in enumerate(ACTIONS) if action.name == "approve_r1.00_s1.5")


def knowing() -> HeldOut:
    """A policy that approves whole what wins +1 R and rejects what loses 1 R: half of 40, one a
    day."""
    won = np.arange(COUNT) % 2 == 0
    plan = np.where(won, 1.0, -1.0)
    raw = np.full((COUNT, len(ACTIONS)), -6.0)
    raw[:, 0], raw[:, WHOLE] = np.where(won, -3.0, -0.1), np.where(won, -0.1, -3.0)
    rewards = np.zeros((COUNT, len(ACTIONS)))
    rewards[:, WHOLE] = plan
    chance = np.where(won, 0.9, 0.1)
    said: dict[str, Any] = {
        "expected": rewards * 0.5,
        "sd": np.ones_like(rewards),
        "doubt": np.ones_like(rewards),
        "stake": np.full(COUNT, 0.01),
        "win": chance,
        "stopped": 1 - chance,
        "range_atr": np.full(COUNT, 2.0),
    }
    outlooks = [
        Outlook(win_probability=p, stopped_probability=1 - p, range_atr=2.0, expected_r=2 * p - 1)
        for p in chance.tolist()
    ]
    features = np.zeros((COUNT, len(FEATURE_NAMES)))
    features[:, FEATURE_NAMES.index("atr_fraction")] = 0.01
    return HeldOut(
        as_of=np.arange(COUNT) * 86_400,
        features=features,
        stake=np.full(COUNT, 0.01),
        costs=np.full(COUNT, 0.1),
        stop_atr=np.full(COUNT, 1.5),
        rewards=rewards,
        plan=plan,
        stopped=1.0 - won,
        range_atr=np.full(COUNT, 4.0),
        answers=Answers(raw, Calibration()),
        outlooks=outlooks,
        teacher=Predictions(**said),
        shuffled=Predictions(**said | {"expected": np.zeros_like(rewards)}),
        ranges=RangeControls(np.full(COUNT, np.log(1.0)), np.full(COUNT, np.log(4.0 / 3.0))),
    )


def cells(lines: Iterator[str]) -> dict[str, list[str]]:
    """Rows of tables by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in "\n".join(lines).splitlines() if line]
    return {first: others for first, *others in rows}


def test_the_better_half_of_a_policy_that_knows_adds_half_an_r() -> None:
    rows = cells(ranks(knowing()))
    assert "40 candidates, mean R of taking all +0.000" in rows
    assert rows["policy, approval"][0].startswith("+0.500 [")
    assert rows["ATR alone (a cost filter)"][0].startswith("0.000 [")
    assert "Spearman's correlation with the teacher: 1.00 (what approving is worth)" in rows


def test_its_own_choices_earn_what_they_took_and_not_trading_is_beside_them() -> None:
    rows = cells(choices(knowing()))
    for who, share, mean in (
        ("policy", "50.0%", "+0.500 ["),
        ("agent, every candidate", "100.0%", "0.000 ["),
        ("random veto of the agent's plans, same rate", "50.0%", "0.000 ["),
        ("the policy's own actions dealt at random", "50.0%", "0.000 ["),
        ("not trading", "0.0%", "0.000 [0.000, 0.000]"),
    ):
        assert rows[who][0] == share
        assert rows[who][1].startswith(mean)
    assert rows["not trading"][2].startswith("+0.500 ["), "the policy's lead over it"


def test_chances_range_and_expectation_are_held_against_what_came() -> None:
    rows = [line.split(" | ") for line in questions(knowing())]
    told = {(row[0].strip("| "), row[1]): row[2] for row in rows[2:]}
    assert told[("win", "AUC")] == told[("stopped", "AUC")] == "1.000"
    assert told[("win", "calibration error")] == "0.100"
    assert told[("range", "squared error of its logarithm")] == f"{np.log(2) ** 2:.4f}"
    gain = 1 - np.log(2) ** 2 / np.log(4) ** 2
    assert told[("range", f"below ATR alone, {np.log(4) ** 2:.4f}")] == f"{gain:.1%}"
    assert told[("expected R", "slope of realised on it")] == "1.25"


def test_sizes_are_compared_at_one_mean_notional() -> None:
    rows = cells(tails(knowing(), 0.1))
    assert rows["agent's"] == rows["1/ATR"] == ["1.000%", "0.0% [0.0%, 0.0%]"]
    assert rows["inverse to the range that the policy foretells"] == rows["agent's"]
    assert rows["the teacher's range, limit of 0.08%"] == rows["agent's"]
    assert figures(knowing()) == {"candidates": 40.0, "rank": 1.0, "approves": 0.5}


def test_sizes_inverse_to_a_range_that_comes_halve_the_tail() -> None:
    """A day in four moves three times as far as it usually does, and is foretold: at one mean
    notional its plans have 0.4 of the size, 1.2 instead of 3 % of equity."""
    wild = np.arange(COUNT) % 4 == 1
    far = np.where(wild, 6.0, 2.0)
    lost = np.where(wild, -3.0, 0.5)
    told = [Outlook(range_atr=each) for each in far.tolist()]
    rows = cells(tails(knowing()._replace(plan=lost, outlooks=told), 0.1))
    assert rows["agent's"][0] == "3.000%"
    assert rows["inverse to the range that the policy foretells"][0] == "1.200%"
    # A limit of 0.08 % is far below the 1.33 % and 4 % that these plans move: the same sizes.
    assert rows["the policy's range, limit of 0.08%"][0] == "1.200%"


def test_a_share_follows_from_what_the_scores_say_of_risk_whatever_they_say_of_profit() -> None:
    """With m f - r f^2 for shares f of 1/4, 1/2 and 1, over a beta of 0.1: risk of 0.05 is taken
    whole, of 0.15 by half (0.15 / 2 / 0.15), of 0.3 by a quarter."""
    risk, mean = np.array([0.05, 0.15, 0.3, 0.3]), np.array([0.2, -0.3, 0.0, 0.5])
    raw = np.zeros((4, len(ACTIONS)))
    for number, action in enumerate(ACTIONS):
        share = action.risk_fraction
        raw[:, number] = (mean * share - risk * share**2) / 0.1
    assert own_shares(Answers(raw, Calibration()), 0.1).tolist() == pytest.approx(
        [1.0, 0.5, 0.25, 0.25]
    )
