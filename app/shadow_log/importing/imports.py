"""One import: files in, rows of `imported_trades` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.progress import Progress
from shadow_advisor_client.adapters.freqtrade.request import Exits

from app.domain.errors import InvalidRecord
from app.shadow_log.importing.bars import BarsFolder
from app.shadow_log.importing.coverage import Coverage
from app.shadow_log.importing.freqtrade import freqtrade
from app.shadow_log.importing.mapped import Mapped
from app.shadow_log.importing.rows import ImportFault, rows_of
from app.shadow_log.importing.spot_agent import SPOT_AGENT
from app.shadow_log.importing.trade import ImportedTrade, Source, imported
from app.shadow_log.log import ShadowLog

CHUNK = 500
AHEAD = timedelta(days=1)
"""A time further ahead was read wrongly, or written so."""


def source_named(words: str, exits: Exits | None = None) -> Source:
    """A source by its name, or by the path of a mapping file. Raises `ImportFault`."""
    named = {source.name: source for source in (freqtrade(exits), SPOT_AGENT)}
    if words in named:
        return named[words]
    mapped = Mapped(Path(words))
    return Source(mapped.source, rows_of, mapped.told)


def read_trades(
    source: Source, path: Path, bars: BarsFolder | None, coverage: Coverage
) -> Iterator[ImportedTrade]:
    """The trades of a file, counted in `coverage` as they pass, as are rows that cannot be read.
    Raises `ImportFault`."""
    latest = datetime.now(UTC) + AHEAD
    for place, row in enumerate(_rows(source, path), 1):
        coverage.rows += 1
        try:
            told = source.told(row)
            if told is None:
                coverage.passed_over += 1
                continue
            if told.as_of > latest:
                raise InvalidRecord(f"ts: {told.as_of.isoformat()} is in the future")
            if bars is not None:
                told = bars.completed(told, own_rules=source is SPOT_AGENT)
            trade = imported(told)
        except InvalidRecord as error:
            coverage.refuse(str(error), f"{path.name}, row {place}")
            continue
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Anybody may have written the row: what a field's own reader did not foresee.
            coverage.refuse(f"{type(error).__name__}: {error}", f"{path.name}, row {place}")
            continue
        coverage.add(trade)
        yield trade


def _rows(source: Source, path: Path) -> Iterator[Any]:
    """Rows of a file. Whatever a library raises on its bytes is an `ImportFault`."""
    try:
        yield from source.rows(path)
    except ImportFault:
        raise
    except Exception as error:
        raise ImportFault(f"{path} cannot be read: {type(error).__name__}: {error}") from error


async def add(
    url: str | None,
    source: Source,
    files: Sequence[Path],
    bars: Path | None,
    progress: Progress,
) -> tuple[Coverage, int]:
    """Read files and add their trades; without `url` nothing is added. What they hold, and how many
    trades were new.

    Raises
    ------
    ImportFault : a file cannot be read.
    ShadowLogUnavailable : Postgres does not answer, or is not migrated.
    """
    coverage, new = Coverage(), 0
    folder = None if bars is None else BarsFolder(bars)
    log = None if url is None else ShadowLog.connect(url)
    task = progress.add_task("trades", total=None)
    try:
        for path in files:
            trades = read_trades(source, path, folder, coverage)
            for chunk in _chunks(trades):
                if log is not None:
                    rows = [row_of(source.name, each) for each in chunk]
                    new += await log.add_once("imported_trade", rows)
                progress.advance(task, len(chunk))
    finally:
        if log is not None:
            await log.aclose()
    return coverage, new


def _chunks(trades: Iterator[ImportedTrade]) -> Iterator[list[ImportedTrade]]:
    chunk: list[ImportedTrade] = []
    for trade in trades:
        chunk.append(trade)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def row_of(source: str, trade: ImportedTrade) -> dict[str, Any]:
    """Columns of `imported_trades`."""
    outcome, scenario = trade.outcome, trade.scenario
    return {
        "import_id": trade.import_id,
        "source": source,
        "symbol": trade.symbol,
        "direction": trade.direction,
        "as_of": trade.as_of,
        "decision": trade.action.decision,
        "outcome": None if outcome is None else outcome.outcome.value,
        "net_pnl": None if outcome is None else outcome.net_pnl,
        "missing": list(trade.missing),
        "scenario": None if scenario is None else scenario.as_json(),
        "action": trade.action.as_json(),
        "outcome_record": None if outcome is None else outcome.as_json(),
    }


def exits_told(stoploss: float | None, roi: float | None) -> Exits | None:
    """Exits of a freqtrade strategy as a person tells them. Raises `ImportFault` for one without
    the other."""
    if stoploss is None and roi is None:
        return None
    if stoploss is None or roi is None:
        raise ImportFault("--stoploss and --roi go together: a plan has a stop and a target")
    return Exits(stoploss, {0: roi})
