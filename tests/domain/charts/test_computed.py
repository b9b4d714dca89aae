"""What bars say is the same whether the service is sent the last of them or training has them
all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.domain.charts.computed import (
    ENOUGH_BARS,
    OF_MOVES,
    SETTLED_BARS,
    SETTLED_TREND_BARS,
    candidate_fields,
    fault_of,
    of_bars,
)
from app.domain.charts.indicators import indicators
from app.domain.charts.movements import OWN
from app.domain.features import features
from app.domain.model.prompt import render
from app.domain.scenario import Account, Bar, Scenario
from app.schemas import AdviseRequest, bar_doubts
from tests.domain.scenarios import AS_OF
from tests.training.support.candles import random_walk
from training.agent.reference import Agent, Opportunity, chart
from training.market.bars import Bars

HISTORY = random_walk(6000, 7)


def sent(bars: Bars, end: int, count: int = ENOUGH_BARS) -> list[Bar]:
    """The last bars, as an agent sends them."""
    return [
        Bar(
            closed_at=datetime.fromtimestamp(int(bars.closed_at[i]), UTC),
            open=bars.open[i],
            high=bars.high[i],
            low=bars.low[i],
            close=bars.close[i],
            volume=bars.volume[i],
        )
        for i in range(max(end - count, 0), end)
    ]


@pytest.mark.parametrize("end", [2000, 3456, 4801, 6000])
def test_the_last_bars_alone_say_what_all_of_them_do(end: int) -> None:
    agent = Agent([chart(HISTORY)])
    at = Opportunity(0, end - 1, int(HISTORY.closed_at[end - 1]))
    whole = agent.scenario(at, Account())
    candidate, market = of_bars(sent(HISTORY, end))
    told = {name: getattr(whole.candidate, name) for name in candidate}
    assert len(candidate) >= 12
    for name, value in candidate.items():
        if isinstance(value, float):
            assert value == pytest.approx(told[name], rel=1e-4, abs=2e-3), name
        else:
            assert value == told[name], name
    assert market["last_close"] == whole.market.last_close
    assert market["bar_closed_at"] == whole.market.bar_closed_at
    assert market["bar_seconds"] == whole.market.bar_seconds
    assert market["volume_24h"] == pytest.approx(whole.market.volume_24h)
    around = whole.market.surroundings
    assert around is not None
    assert set(market["surroundings"]) == set(OWN)
    for name, value in market["surroundings"].items():
        assert value == pytest.approx(getattr(around, name), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(
    ("count", "missing"), [(SETTLED_BARS, "htf_trend_pct"), (999, "htf_trend_pct")]
)
def test_what_too_few_bars_would_say_otherwise_is_not_said(count: int, missing: str) -> None:
    candidate, market = of_bars(sent(HISTORY, 3000, count))
    assert missing not in candidate
    whole = candidate_fields(indicators(HISTORY), 2999)
    for name, value in candidate.items():
        if isinstance(value, float):
            assert value == pytest.approx(whole[name], rel=1e-4, abs=2e-3), name
    few, market = of_bars(sent(HISTORY, 3000, SETTLED_BARS - 1))
    assert few == {}
    assert market["last_close"] == HISTORY.close[2999]


def bar(hours: float, **values: float) -> Bar:
    prices = {"open": 2.0, "high": 3.0, "low": 1.0, "close": 2.0, "volume": 1.0} | values
    return Bar(closed_at=AS_OF + timedelta(hours=hours), **prices)


@pytest.mark.parametrize(
    ("bars", "says"),
    [
        ([bar(0)], "too few"),
        ([bar(0), bar(0)], "order of time"),
        ([bar(0), bar(-1)], "order of time"),
        ([bar(-2.5), bar(-1), bar(0)], "one length"),
        ([bar(-1), bar(0, high=1.5)], "does not enclose"),
    ],
)
def test_bars_that_no_exchange_reports_are_named(bars: list[Bar], says: str) -> None:
    assert says in (fault_of(bars) or "")


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (range(3, 5), None),  # 22 of the day's 24
        (range(3, 6), "3 of the last 24 bars are missing"),
        (range(40, 69), None),  # 271 of the last 300
        (range(40, 71), "31 of the last 300 bars are missing"),
        (range(310, 390), None),  # Wilder's means have forgotten them.
    ],
)
def test_nothing_is_computed_across_a_hole(gone: range, says: str | None) -> None:
    """Bars by the hour, numbered from the newest: indicators would take a hole for one step."""
    fault = fault_of([bar(-hour) for hour in reversed(range(400)) if hour not in gone])
    assert (fault is None) if says is None else (fault or "").startswith(says)


@pytest.mark.parametrize(
    ("hours", "says"), [((-48, -24, 0), None), ((-14 * 24, -7 * 24, 0), "longer than a day")]
)
def test_days_may_end_at_any_hour_and_weeks_are_told(hours: list[int], says: str | None) -> None:
    """OKX ends its days at 16:00 UTC; `AS_OF` is 10:00."""
    assert fault_of([bar(hour) for hour in hours]) == (says and f"they are {says}")


def test_a_bar_that_is_stamped_at_its_last_millisecond_closes_with_it() -> None:
    """Binance's close times."""
    request = flat_request(1.0)
    assert request.bars is not None
    document = request.model_dump(mode="json")
    document["bars"] = [
        [int(1000 * each.closed_at.timestamp()) - 1, 1.0, 1.0, 1.0, 1.0, 0.0]
        for each in request.bars
    ]
    assert AdviseRequest.model_validate(document).bars == request.bars
    assert bar_doubts(AdviseRequest.model_validate(document)) == []


def asked(end: int, **candidate: Any) -> AdviseRequest:
    bars = sent(HISTORY, end)
    price = bars[-1].close
    return AdviseRequest.model_validate(
        {
            "candidate": {"symbol": "BTCUSDT", "direction": "long", "ts": bars[-1].closed_at}
            | candidate,
            "plan": {
                "entry": price,
                "stop": 0.98 * price,
                "targets": [1.05 * price],
                "notional": 500.0,
            },
            "bars": [[*each.as_json().values()] for each in bars],
        }
    )


def test_what_an_agent_sends_wins_and_what_was_computed_is_named() -> None:
    request = asked(3000, rsi=12.5)
    scenario = request.scenario()
    assert scenario.candidate.rsi == 12.5
    assert scenario.candidate.atr == pytest.approx(indicators(HISTORY).atr[2999], rel=1e-4)
    assert "candidate.rsi" not in scenario.computed
    assert {"candidate.atr", "market.last_close", "market.surroundings"} <= set(scenario.computed)
    assert type(scenario).from_json(scenario.as_json()) == scenario
    assert request.claim() != asked(2999).claim()
    assert request.claim() == asked(3000, rsi=12.5).claim()


def test_what_was_sent_and_left_out_is_not_replaced_by_what_bars_say() -> None:
    gone = {"field": "candidate.atr", "value": "'?'", "why": "no number", "fault": "type"}
    request = asked(3000).model_copy(update={"left_out": ()})
    document = request.model_dump() | {"left_out": [gone]}
    scenario = AdviseRequest.model_validate(document).scenario()
    assert scenario.candidate.atr is None
    assert scenario.candidate.rsi is not None


def test_a_bar_of_the_future_is_no_bar() -> None:
    request = asked(3000)
    earlier = request.model_copy(
        update={
            "candidate": request.candidate.model_copy(
                update={"ts": request.as_of - timedelta(seconds=1)}
            )
        }
    )
    assert bar_doubts(request) == []
    [doubt] = bar_doubts(earlier)
    assert doubt.path == ("bars",)


def test_indicators_see_no_bar_of_later() -> None:
    broken = Bars(
        HISTORY.symbol,
        HISTORY.seconds,
        HISTORY.closed_at,
        *(
            np.concatenate([getattr(HISTORY, name)[:3000], getattr(HISTORY, name)[3000:] * 7])
            for name in ("open", "high", "low", "close", "volume")
        ),
    )
    assert candidate_fields(indicators(broken), 2999) == candidate_fields(indicators(HISTORY), 2999)


def flat_request(price: float, **columns: Any) -> AdviseRequest:
    """A request with as many bars as tell all, of a market that does not move."""
    hours = range(SETTLED_TREND_BARS)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    bars = [
        {"closed_at": (began + timedelta(hours=hour)).isoformat(), "volume": 0.0}
        | {name: columns.get(name, price) for name in ("open", "high", "low", "close")}
        for hour in hours
    ]
    return AdviseRequest.model_validate(
        {
            "candidate": {"symbol": "USDCUSDT", "direction": "long", "ts": bars[-1]["closed_at"]},
            "plan": {"entry": 1.0, "stop": 0.99, "targets": [1.02], "quantity": 10.0},
            "bars": bars,
        }
    )


@pytest.mark.parametrize("price", [1.0, 5e-324, 1e308])
def test_a_market_that_does_not_move_has_no_atr_and_is_advised_on(price: float) -> None:
    """A stable coin, or a market that is halted."""
    scenario = flat_request(price).scenario()
    for name in ("atr", *OF_MOVES):
        assert getattr(scenario.candidate, name) is None
        assert f"candidate.{name}" not in scenario.computed
    assert scenario.market.last_close == price
    assert Scenario.from_json(scenario.as_json()) == scenario
    render(scenario)
    features(scenario)


def test_bars_are_read_as_exchanges_write_them() -> None:
    """Prices as texts, times without an offset."""
    request = flat_request(1.0)
    assert request.bars is not None
    document = request.model_dump(mode="json")
    document["bars"] = [
        [bar.closed_at.replace(tzinfo=None).isoformat(), "1.0", "1.0", "1.0", "1.0", "0"]
        for bar in request.bars
    ]
    assert AdviseRequest.model_validate(document).bars == request.bars
    document["bars"][0][1] = "one"
    with pytest.raises(ValidationError, match="valid number"):
        AdviseRequest.model_validate(document)
