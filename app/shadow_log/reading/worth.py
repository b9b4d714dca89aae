"""What the newest month of the record was worth, summed up for gauges: what both arms earned, what
refusals saved, and whether what was told in chances came true."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.intervals import Day, mean_of_days
from app.shadow_log.database import translated_errors
from app.shadow_log.reading.explore import EARNED, Explorer
from app.shadow_log.rows import Row, plain
from app.telemetry import Apart, Earned, Foretold, Saved, Worth

NEWEST = timedelta(days=30)
MOMENT = timedelta(microseconds=1)
LAST = datetime.max.replace(tzinfo=UTC) - MOMENT
"""Of the calendar."""
MOST_SYMBOLS = 64
"""Symbols that are told apart, those with the most decisions; the others are `other`."""
OTHER = "other"
_DAYS = f"""
    WITH judged AS (SELECT *, {EARNED} FROM shadow_comparison
                    WHERE as_of >= :since AND as_of < :until)
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, symbol, count(*) AS decisions,
           count(advice_earned_r - agent_earned_r) AS judged,
           coalesce(sum(agent_earned_r) FILTER (WHERE advice_earned_r IS NOT NULL), 0) AS agent_r,
           coalesce(sum(advice_earned_r) FILTER (WHERE agent_earned_r IS NOT NULL), 0) AS advice_r,
           coalesce(sum(agent_pnl) FILTER (WHERE agent_approve), 0) AS agent_pnl,
           coalesce(sum(advice_pnl) FILTER (WHERE advice_approve), 0) AS advice_pnl
    FROM judged GROUP BY day, model_version, symbol
"""
_REFUSALS = """
    SELECT code, symbol, count(*) AS refused, coalesce(-sum(r), 0) AS r_saved
    FROM (
        SELECT unnest(control_veto_codes) AS code, symbol,
               CASE WHEN agent_outcome <> 'not_traded' THEN agent_r END AS r
        FROM shadow_comparison
        WHERE role = 'primary' AND as_of >= :since AND as_of < :until
    ) refusals
    GROUP BY code, symbol
"""
"""As the view `veto_value`, by symbol."""


async def newest_worth(engine: AsyncEngine) -> Worth:
    """Of the 30 days that end with the newest decision. Raises `ShadowLogUnavailable`."""
    explorer = Explorer(engine)
    stored = await explorer.span()
    if stored is None:
        return Worth()
    until = min(stored[1], LAST) + MOMENT
    since = until - NEWEST
    with translated_errors():
        async with engine.connect() as connection:
            days = await _rows(connection, _DAYS, {"since": since, "until": until})
            refusals = await _rows(connection, _REFUSALS, {"since": since, "until": until})
    chances = await explorer.chances(since, until)
    return Worth(
        earned=_earned(days, _frequent(days)),
        apart=_apart(days),
        saved=_saved(refusals, _frequent(days)),
        foretold=[
            Foretold(
                row["model_version"],
                row["what"],
                f"{row['fifth'] * 20}-{row['fifth'] * 20 + 20} %",
                row["decisions"],
                float(row["told"]),
                float(row["won"]),
            )
            for row in chances
        ],
    )


async def _rows(connection: AsyncConnection, sql: str, values: dict[str, Any]) -> list[Row]:
    return [plain(row) for row in await connection.execute(text(sql), values)]


def _frequent(days: Iterable[Row]) -> set[str]:
    decisions: Counter[str] = Counter()
    for row in days:
        decisions[row["symbol"]] += row["decisions"]
    return {symbol for symbol, _ in decisions.most_common(MOST_SYMBOLS)}


def _earned(days: Iterable[Row], frequent: set[str]) -> list[Earned]:
    sums: dict[tuple[str, str], Earned] = {}
    for row in days:
        key = row["model_version"], row["symbol"] if row["symbol"] in frequent else OTHER
        sums[key] = sums.get(key, Earned(*key, 0, 0.0, 0.0, 0.0, 0.0)).plus(row)
    return list(sums.values())


def _apart(days: Iterable[Row]) -> list[Apart]:
    """The mean difference of each version, with its interval over days."""
    by_day: defaultdict[str, dict[object, Day]] = defaultdict(dict)
    for row in days:
        version = by_day[row["model_version"]]
        values, total = version.get(row["day"], Day(0, 0.0))
        gained = row["advice_r"] - row["agent_r"]
        version[row["day"]] = Day(values + row["judged"], total + gained)
    means = {version: mean_of_days(held.values()) for version, held in by_day.items()}
    return [Apart(version, mean) for version, mean in means.items() if mean is not None]


def _saved(refusals: Iterable[Row], frequent: set[str]) -> list[Saved]:
    sums: dict[tuple[str, str], Saved] = {}
    for row in refusals:
        key = row["code"], row["symbol"] if row["symbol"] in frequent else OTHER
        before = sums.get(key, Saved(*key, 0, 0.0))
        sums[key] = Saved(*key, before.refused + row["refused"], before.r + row["r_saved"])
    return list(sums.values())
