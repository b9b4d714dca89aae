"""The reference agent sees nothing later than its decision, and follows the gates in their
order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from app.domain.charts.computed import SETTLED_BARS, hole
from app.domain.charts.indicators import indicators
from app.domain.charts.series import DAY_S
from app.domain.features import features
from app.domain.model.prompt import render
from app.domain.scenario import Account, Scenario
from tests.training.support.candles import (
    HOUR,
    START,
    emptied,
    holed,
    random_walk,
    with_corrupt_future,
)
from training.agent.reference import (
    ASSUMED_SPREAD_BPS,
    COOL_DOWN_S,
    Agent,
    chart,
    opportunities,
    passes,
    sessions,
    stand_in_approval,
)
from training.market.bars import MarketDataError

CALM = Account(
    equity=10_000.0, day_pnl_fraction=0.0, drawdown_fraction=0.0, consecutive_losses=0, positions=()
)


@pytest.fixture(scope="module")
def markets() -> Any:
    return [random_walk(3000, 1), random_walk(3000, 2, "ETHUSDT")]


@pytest.fixture(scope="module")
def agent(markets: Any) -> Agent:
    return Agent([chart(bars) for bars in markets])


def test_future_bars_change_no_indicator(markets: Any) -> None:
    """Cut and corrupt: every value up to a bar is the same bytes whatever follows."""
    bars = markets[0]
    whole = indicators(bars)
    for end in (900, 1777, 2500):
        as_of = int(bars.closed_at[end - 1])
        for other in (indicators(bars.part(0, end)), indicators(with_corrupt_future(bars, as_of))):
            for name, values in vars(whole).items():
                np.testing.assert_array_equal(
                    getattr(other, name)[:end], values[:end], err_msg=name
                )


def test_future_bars_change_no_candidate_no_prompt_no_feature(markets: Any, agent: Agent) -> None:
    found = opportunities(agent.charts)
    for at in found[:: max(len(found) // 12, 1)]:
        blind = Agent([chart(with_corrupt_future(bars, at.as_of)) for bars in markets])
        assert [o for o in opportunities(blind.charts) if o.as_of <= at.as_of] == [
            o for o in found if o.as_of <= at.as_of
        ]
        seen, blinded = agent.scenario(at, CALM), blind.scenario(at, CALM)
        assert blinded.hash() == seen.hash()
        assert render(blinded).hash == render(seen).hash
        assert np.array(features(blinded)).tobytes() == np.array(features(seen)).tobytes()


def test_candidates_pass_the_gates_and_leave_six_hours_between_them(agent: Agent) -> None:
    found = opportunities(agent.charts)
    assert len(found) > 50
    assert [o.as_of for o in found] == sorted(o.as_of for o in found)
    for number, each in enumerate(agent.charts):
        mine = [o for o in found if o.chart == number]
        assert np.diff([o.as_of for o in mine]).min() >= COOL_DOWN_S
        at = [o.bar for o in mine]
        assert (each.score[at] >= each.threshold[at]).all()
        assert (each.confidence[at] >= 4).all()
        assert (each.signs.volume_24h[at] >= 2e6).all()
        assert (each.signs.resistance_gap[at] > 0.3).all()


def test_no_candidate_while_a_bar_of_the_last_day_is_missing_or_empty(markets: Any) -> None:
    bars = markets[0]
    at = opportunities([chart(bars)])[3]
    for broken in (emptied(bars, at.bar - 20), holed(bars, at.bar - 20)):
        assert at.as_of not in {other.as_of for other in opportunities([chart(broken)])}


def test_the_plan_follows_the_agents_rules(agent: Agent) -> None:
    for at in opportunities(agent.charts)[:40]:
        s = agent.scenario(at, CALM)
        atr, close = s.candidate.atr, s.market.last_close
        assert atr is not None
        assert close is not None
        assert s.candidate.confidence is not None
        assert s.plan.entry == close
        assert s.plan.stop == pytest.approx(close - 1.5 * atr)
        assert s.plan.targets == pytest.approx([close + 3 * atr, close + 4 * atr, close + 5 * atr])
        size = 400
        if s.candidate.confidence >= 8.5:
            size = 500
        elif s.candidate.confidence >= 6.5:
            size = 450
        assert s.plan.notional == pytest.approx(size)
        assert s.candidate.spread_bps == ASSUMED_SPREAD_BPS
        assert s.candidate.extra == {"assumed": ["spread_bps"]}
        assert s.candidate.news_severity is None


def test_a_hole_that_the_service_would_not_look_across_makes_no_candidate(markets: Any) -> None:
    """Indicators remember 300 bars: with more than a tenth of them missing, `hole` calls what they
    say of a sent candidate not known."""
    for missing, kept in ((30, True), (31, False)):
        bars = holed(markets[0], np.arange(1500, 1500 + missing))
        after = bars.closed_at[1500] + DAY_S
        found = passes(chart(bars)) & (bars.closed_at >= after)
        within = bars.closed_at <= bars.closed_at[1500] + (SETTLED_BARS - 31 - missing) * HOUR
        assert (found & within).any() == kept
        assert (found & ~within).any()
        for at in np.flatnonzero(found):
            assert hole(bars.closed_at[at + 1 - SETTLED_BARS : at + 1], HOUR) is None


@pytest.mark.parametrize("length", [7, 48, 168])
def test_bars_that_make_no_whole_day_are_refused(length: int) -> None:
    with pytest.raises(MarketDataError, match=rf"bars of {length * HOUR} s make no whole one"):
        chart(random_walk(600, 1, seconds=length * HOUR))


@pytest.mark.parametrize(
    ("hour", "session"),
    [(18, "US"), (19, "Asia"), (0, "Asia"), (2, "Asia"), (3, "Europe"), (10, "Europe"), (11, "US")],
)
def test_sessions_follow_the_clock_of_karachi(hour: int, session: str) -> None:
    at = np.array([int(datetime(2024, 5, 1, hour, tzinfo=UTC).timestamp())])
    assert ("Asia", "Europe", "US")[sessions(at)[0]] == session


def scenario(agent: Agent, account: Account = CALM, **candidate: Any) -> Scenario:
    document = agent.scenario(opportunities(agent.charts)[0], account).as_json()
    calm = {
        "rsi": 55,
        "macd": 1.0,
        "di_plus": 30,
        "di_minus": 10,
        "volume_ratio": 0.2,
        "volatility_pct": 0.5,
    }
    document["candidate"] |= calm | {"btc_trend": "up", "setup_type": "trend"} | candidate
    return Scenario.from_json(document)


@pytest.mark.parametrize(
    ("account", "candidate", "skip"),
    [
        ({}, {}, None),
        (
            {"day_pnl_fraction": -0.03, "consecutive_losses": 3, "seconds_since_loss": 60},
            {},
            "drawdown_guard_day",
        ),
        ({"consecutive_losses": 2, "seconds_since_loss": 3600}, {}, "drawdown_guard_losses"),
        ({"consecutive_losses": 2, "seconds_since_loss": 90_000}, {}, None),
        ({"drawdown_fraction": 0.25}, {}, "drawdown_guard"),
        ({"positions": [{"symbol": "ETHUSDT", "quantity": 1, "entry": 100}]}, {}, "max_trades"),
        ({}, {"rsi": 75, "macd": -1.0}, "llm_veto"),
        ({}, {"btc_trend": "down"}, "risk_btc_trend"),
        ({}, {"volatility_pct": 0.9}, "risk_volatility"),
        ({}, {"rsi": 75, "macd": -1.0, "volatility_pct": 0.95}, "llm_veto"),
    ],
)
def test_the_first_gate_that_closes_names_the_reason(
    agent: Agent, account: dict[str, Any], candidate: dict[str, Any], skip: str | None
) -> None:
    action = agent.decide(
        scenario(agent, Account.from_json(CALM.as_json() | account), **candidate), correlated=False
    )
    assert action.final_skip_reason == skip
    assert action.decision is (skip is None)
    assert (action.entry is None) is (skip is not None)


def test_a_counter_trend_setup_may_go_against_btc(agent: Agent) -> None:
    chosen = scenario(agent, btc_trend="down", setup_type="counter_trend", rsi=25)
    assert agent.decide(chosen, correlated=False).decision


def test_the_stand_in_counts_four_votes(agent: Agent) -> None:
    assert stand_in_approval(scenario(agent)) == (True, 1.0)
    assert stand_in_approval(scenario(agent, volume_ratio=-0.5)) == (True, 0.75)
    assert stand_in_approval(scenario(agent, volume_ratio=-0.5, rsi=70)) == (False, 0.5)


def test_of_two_that_move_alike_the_better_scored_is_kept(markets: Any) -> None:
    twin = random_walk(3000, 1, "ETHUSDT")
    agent = Agent([chart(markets[0]), chart(twin)])
    first, second = opportunities(agent.charts)[:2]
    assert first.as_of == second.as_of
    agent.charts[1].score[:] += 0.1
    assert agent.correlated(first, [first, second])
    assert not agent.correlated(second, [first, second])
    stranger = Agent([chart(markets[0]), chart(markets[1])])
    assert not stranger.correlated(first, [first, second])


def test_both_answers_occur(agent: Agent) -> None:
    decisions = {
        agent.decide(agent.scenario(at, CALM), False).decision for at in opportunities(agent.charts)
    }
    assert decisions == {True, False}


def test_the_trend_of_bitcoin_is_unknown_without_its_bars(markets: Any) -> None:
    alone = Agent([chart(markets[1])])
    at = opportunities(alone.charts)[0]
    assert alone.scenario(at, CALM).candidate.btc_trend is None


def test_a_context_adds_what_bars_do_not_carry(markets: Any) -> None:
    asked: list[tuple[str, datetime]] = []

    def context(symbol: str, as_of: datetime) -> dict[str, Any]:
        asked.append((symbol, as_of))
        return {"fear_greed": 20, "news_severity": 1}

    agent = Agent([chart(markets[0])], context)
    at = opportunities(agent.charts)[0]
    assert agent.scenario(at, CALM).candidate.fear_greed == 20
    assert asked == [("BTCUSDT", datetime.fromtimestamp(at.as_of, UTC))]


def test_a_short_history_is_refused() -> None:
    with pytest.raises(MarketDataError, match="BTCUSDT: 399 bars are too few, 400 are needed"):
        chart(random_walk(399))


def test_indicators_of_a_long_flat_market_give_no_candidate() -> None:
    bars = random_walk(1000)
    flat = np.full(1000, 20_000.0)
    still = type(bars)(
        bars.symbol, bars.seconds, bars.closed_at, flat, flat, flat, flat, bars.volume
    )
    assert opportunities([chart(still)]) == []
    assert still.closed_at[0] == START + 3600
