"""One import: files in, rows of `imported_trades` out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from shadow_advisor_client.adapters.freqtrade.request import Exits

from app.domain.errors import InvalidRecord
from app.shadow_log.importing import freqtrade, spot_agent
from app.shadow_log.importing.bars import BarsFolder
from app.shadow_log.importing.coverage import Coverage
from app.shadow_log.importing.mapped import Mapped
from app.shadow_log.importing.rows import ImportFault
from app.shadow_log.importing.table import add_imported
from app.shadow_log.importing.trade import ImportedTrade, Told, imported
from app.shadow_log.log import ShadowLog

CHUNK = 500
FREQTRADE = "freqtrade"
SPOT_AGENT = "spot-ai-agent"
MAX_REASON = 160


def source_named(
    words: str, exits: Exits | None = None
) -> tuple[str, Callable[[Path], Iterator[Told | None]]]:
    """A source by its name, or by the path of a mapping file: the name its rows get, and what reads
    a file of it. Raises `ImportFault`."""
    if words == FREQTRADE:
        return FREQTRADE, lambda path: freqtrade.trades_of(path, exits)
    if words == SPOT_AGENT:
        return SPOT_AGENT, spot_agent.trades_of
    mapped = Mapped(Path(words))
    return mapped.source, mapped.trades_of


def read_trades(
    source: str,
    trades_of: Callable[[Path], Iterator[Told | None]],
    path: Path,
    bars: BarsFolder | None,
    coverage: Coverage,
) -> Iterator[ImportedTrade]:
    """The trades of a file, counted in `coverage` as they pass."""
    for told in trades_of(path):
        coverage.rows += 1
        if told is None:
            coverage.passed_over += 1
            continue
        if bars is not None:
            told = bars.completed(told, own_rules=source == SPOT_AGENT)
        try:
            trade = imported(told)
        except InvalidRecord as error:
            coverage.unreadable[str(error)[:MAX_REASON]] += 1
            continue
        coverage.add(trade)
        yield trade


async def add(
    url: str | None,
    source: str,
    trades_of: Callable[[Path], Iterator[Told | None]],
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
            trades = read_trades(source, trades_of, path, folder, coverage)
            for chunk in _chunks(trades):
                if log is not None:
                    new += await add_imported(log.engine, [row_of(source, each) for each in chunk])
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
