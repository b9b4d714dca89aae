"""What benches that read bars share: the period that is asked about, and how a command ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from training.arrays import HELD_OUT_FROM, HELD_OUT_UNTIL, instant
from training.cli.options import expected_failures
from training.config.data import HeldOutConfig, MarketConfig
from training.config.section import ConfigError
from training.judging.gate.looks import Look
from training.scenarios.history import History

SINCE, UNTIL = HELD_OUT_FROM.isoformat(), HELD_OUT_UNTIL.isoformat()
Since = Annotated[str, typer.Option(help="first day that is asked about; what trains lies before")]
Until = Annotated[str, typer.Option(help="no decision on or after this day")]


def period_of(since: str, until: str) -> HeldOutConfig:
    """Days that nothing was trained on. Raises `ConfigError`: they are no days, follow in another
    order, or begin before the held-out period."""
    try:
        first, last = date.fromisoformat(since), date.fromisoformat(until)
    except ValueError as error:
        raise ConfigError(f"--since {since} --until {until}: write days as 2025-01-01") from error
    if not HELD_OUT_FROM <= first < last:
        raise ConfigError(
            f"--since {since} --until {until}: must follow each other, and what lies before"
            f" {HELD_OUT_FROM} trains"
        )
    return HeldOutConfig(since=first, until=last)


def tell_beyond(period: HeldOutConfig, history: History) -> None:
    """Say on stderr that there are bars after the period: they were not asked about."""
    last = max(int(bars.closed_at[-1]) for bars in history.bars)
    if period.until is not None and last > instant(period.until):
        ends = datetime.fromtimestamp(last, UTC)
        typer.echo(
            f"bars go on to {ends:%Y-%m-%d}: --since {period.until} --until ... asks about them",
            err=True,
        )


def looked(version: str, market: MarketConfig, period: HeldOutConfig, models: Path) -> None:
    """Count a look at a version, as an evaluation does: what is read off a bench can be chosen by
    as well. `models` is where versions are published."""
    Look(models, version, market, period, datetime.now(UTC)).count()


def entry(main: Callable[..., Any]) -> None:
    """A bench's entry point: a failure that is no defect is one line, with status 2."""
    with expected_failures("bench"):
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(main)
        app()
