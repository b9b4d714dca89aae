"""Answers the questions of docs/shadow_log.md from the demo's record, and writes them there.

It asks the log of a running service: in the demo's place `advisor up --exit --then "sh -c
'advisor-train paper --candidates 150 && python -m bench.record.answers'"`, with the variables that
the Makefile sets for the demo. That record is of 2017, so it is asked as if it were the day after
its last candidate.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import typer

from app.settings import read_settings
from bench.serving.service import ROOT

PAGE = ROOT / "docs" / "shadow_log.md"
QUERY = re.compile(r"```sql\n(.*?)```\n(?:\n\|.*?\n(?=\n))?", re.DOTALL)
"""A query, and the table of an answer behind it."""
MOST = 8
"""Rows that are shown."""


def shown(value: Any) -> str:
    """A value as a cell."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")


def table(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    """An answer in Markdown, its first rows."""
    lines = [names, ["---"] * len(names), *([shown(value) for value in row] for row in rows[:MOST])]
    if not rows:
        lines.append(["nothing", *[""] * (len(names) - 1)])
    elif len(rows) > MOST:
        lines.append([f"... {len(rows) - MOST} more", *[""] * (len(names) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def answered(page: str, connection: psycopg.Connection, now: datetime) -> str:
    """The page with every answer anew, asked as if it were `now`."""

    def answer(found: re.Match[str]) -> str:
        sql = found[1]
        moment = f"timestamptz '{now.isoformat()}'"
        cursor = connection.execute(sql.replace("now()", moment).encode())
        names = [column.name for column in cursor.description or ()]
        return f"```sql\n{sql}```\n\n{table(names, cursor.fetchall())}"

    return QUERY.sub(answer, page)


def main(page: Path = PAGE) -> None:
    """Ask the shadow log that the settings name."""
    url = (read_settings().database_url or "").replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        [last] = connection.execute("SELECT max(as_of) FROM decisions").fetchone() or (None,)
        if last is None:
            raise typer.BadParameter("the shadow log is empty: run the demo first")
        written = answered(page.read_text(encoding="utf-8"), connection, last + timedelta(days=1))
    page.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
