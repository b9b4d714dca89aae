"""Synthetic variants keep a scenario's guarantees, change what they say they change, and nothing
else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.domain.candidate import session_at
from app.domain.scenario import Scenario
from tests.builders import AS_OF
from tests.builders import scenario as plain
from tests.domain.scenarios import scenarios
from training.scenarios.variants import Kind, dropped, news_order, noise, shift, variants

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def made(document: Any) -> Scenario:
    assume(document is not None)
    return Scenario.from_json(document)


@given(scenarios(), seeds)
def test_noise_stays_within_the_spread_and_moves_all_prices_alike(
    scenario: Scenario, source: Any
) -> None:
    other = made(noise(scenario, source))
    half = (
        min(
            scenario.candidate.spread_bps if scenario.candidate.spread_bps is not None else 2.0,
            100.0,
        )
        / 20_000
    )
    assert scenario.market.last_close is not None
    assert other.market.last_close is not None
    factor = other.market.last_close / scenario.market.last_close
    assert abs(factor - 1) <= half * (1 + 1e-9) + 1e-12
    assert other.plan.entry == pytest.approx(scenario.plan.entry * factor)
    assert other.plan.stop == pytest.approx(scenario.plan.stop * factor)
    assert other.plan.targets == pytest.approx(
        [target * factor for target in scenario.plan.targets]
    )
    assert other.candidate == scenario.candidate
    assert other.plan.quantity == scenario.plan.quantity


@given(scenarios(), seeds)
def test_a_shift_stays_inside_the_bar_and_time_moves_on_for_everything(
    scenario: Scenario, source: Any
) -> None:
    other = made(shift(scenario, source))
    seconds = (other.as_of - scenario.as_of).total_seconds()
    assert scenario.market.bar_seconds is not None
    assert 0 < seconds < scenario.market.bar_seconds
    assert other.market == scenario.market
    assert other.plan == scenario.plan
    assert other.candidate.session == session_at(other.as_of)
    same = {"ts", "session", "fear_greed_age_s", "btc_dominance_age_s", "time_to_news_minutes"}
    assert other.candidate.model_dump(exclude=same) == scenario.candidate.model_dump(exclude=same)
    if scenario.account.seconds_since_loss is not None:
        assert other.account.seconds_since_loss == pytest.approx(
            scenario.account.seconds_since_loss + seconds
        )


@given(scenarios(), seeds)
def test_dropped_fields_were_optional_and_the_others_stay(scenario: Scenario, source: Any) -> None:
    other = made(dropped(scenario, source))
    before, after = scenario.candidate.model_dump(), other.candidate.model_dump()
    gone = {name for name in before if before[name] != after[name]}
    assert gone
    assert all(after[name] is None for name in gone)
    assert other.plan == scenario.plan
    assert (other.account, other.market) == (scenario.account, scenario.market)


def test_headlines_change_places_and_nothing_else_changes() -> None:
    scenario = plain(
        candidate__news_summary="One / Two / Three", candidate__symbol_news_summary="Alone"
    )
    other = Scenario.from_json(news_order(scenario, np.random.default_rng(0)))
    headlines = (other.candidate.news_summary or "").split(" / ")
    assert headlines != ["One", "Two", "Three"]
    assert sorted(headlines) == ["One", "Three", "Two"]
    assert other.candidate.symbol_news_summary == "Alone"


@pytest.mark.parametrize("text", [None, "Alone", "Twice / Twice"])
def test_news_without_an_order_has_no_such_variant(text: str | None) -> None:
    assert news_order(plain(candidate__news_summary=text), np.random.default_rng(0)) is None


def test_time_that_moves_on_ages_what_was_known() -> None:
    scenario = plain(
        candidate__fear_greed=30,
        candidate__fear_greed_age_s=100.0,
        candidate__time_to_news_minutes=0.5,
    )
    other = Scenario.from_json(shift(scenario, np.random.default_rng(1)))
    seconds = (other.as_of - AS_OF) / timedelta(seconds=1)
    assert other.candidate.fear_greed_age_s == 100 + seconds
    assert other.candidate.time_to_news_minutes == max(0.5 - seconds / 60, 0)


@given(scenarios(), seeds, st.integers(0, 4))
def test_variants_are_of_different_kinds_and_the_same_for_a_seed(
    scenario: Scenario, source: Any, count: int
) -> None:
    state = source.bit_generator.state
    found = variants(scenario, count, source)
    assert len(found) <= count
    assert len({kind for kind, _ in found}) == len(found)
    assert [kind for kind, _ in found] == sorted((kind for kind, _ in found), key=list(Kind).index)
    assert all(other.hash() != scenario.hash() for kind, other in found if kind is not Kind.NOISE)
    source.bit_generator.state = state
    assert variants(scenario, count, source) == found
