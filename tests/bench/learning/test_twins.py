"""Masked twins: what is disguised and what stays, and what turned decisions are worth, by hand."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from app.domain.record.decision import prepare
from bench.learning.twins import AS_IT_IS, Judged, lines, twins
from tests.builders import AS_OF, scenario


def test_a_twin_lacks_what_it_disguises_and_nothing_else() -> None:
    subject = scenario(
        candidate__symbol="BTCUSDT",
        candidate__news_summary="bitcoin rallies",
        candidate__fear_greed=71.0,
    )
    prompts = {name: prepare(twin).user for name, twin in twins(subject).items()}
    own = prompts[AS_IT_IS]
    assert own == prepare(subject).user
    assert own.startswith("BTC ")
    assert prompts["symbol"] == own.replace("BTC ", "coin ", 1)
    assert "fear 71" in own
    assert "fear" not in prompts["date"]
    assert "rallies" not in prompts["date"]
    assert prompts["symbol and date"] == prompts["date"].replace("BTC ", "coin ", 1)


def test_turned_decisions_are_worth_the_difference_of_what_they_earn() -> None:
    scenarios = [scenario(as_of=AS_OF + timedelta(days=day)) for day in range(4)]
    rewards = np.zeros((4, 10))
    rewards[:, 9] = (1.0, -1.0, 0.5, 0.5)
    taken = {AS_IT_IS: np.array([9, 0, 9, 0]), "symbol": np.array([0, 0, 9, 9])}
    own, other = lines(taken, Judged(scenarios, rewards), draws=100)
    assert own[1:4] == ("0%", "50%", "+0.375")
    assert other[1:4] == ("50%", "50%", "+0.250")
    assert other[4].startswith("-0.125")
