"""How long people's questions take on a large shadow log: every query of docs/shadow_log.md, and
the explorer's pages, over decisions of four months.

Some hundred decisions are recorded as the service records them, with actions and outcomes, and
copied by Postgres to the number that is asked for. The first question is also asked of the tables
that the flat one follows from.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Annotated, NamedTuple

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from app.domain.record.control import AgentAction
from app.domain.record.event import AgentActionReport, Event, EventKind, OutcomeReport
from app.domain.record.outcome import Outcome
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.explore import Explorer, Filters
from app.shadow_log.schema import tables
from app.shadow_log.schema.migrate import upgrade
from bench.history import record, repeated
from bench.serving.service import ROOT, a_decision, servers

SEED, MONTHS = 500, 4
QUERY = re.compile(r"^(\S[^\n]*\?|The ten [^\n]*:)\n\n```sql\n(.*?)```", re.DOTALL | re.MULTILINE)
COPIED = ("decisions", "advices", "agent_actions", "outcomes", "comparisons")


class Timed(NamedTuple):
    """Seconds of one question, each time that it was asked."""

    seconds: list[float]

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.seconds)

    @property
    def worst_ms(self) -> float:
        return 1e3 * max(self.seconds)


def events(begin: datetime, step: timedelta, decisions: int) -> Iterator[Event]:
    """Decisions of one version, each with what the agent did and an outcome of both arms."""
    for number in range(decisions):
        made = a_decision(number)
        candidate = made.scenario.candidate.model_copy(update={"ts": begin + step * number})
        market = made.scenario.market.model_copy(update={"bar_closed_at": begin + step * number})
        scenario = made.scenario.model_copy(update={"candidate": candidate, "market": market})
        yield Event.of_decision(made.model_copy(update={"scenario": scenario}))
        common = {"decision_id": made.decision_id, "recorded_at": begin + step * (number + 1)}
        action = AgentAction.from_json({"decision": number % 3 > 0})
        yield Event.of_report(EventKind.AGENT_ACTION, AgentActionReport(**common, action=action))
        for arm in ("agent", "advice"):
            won = (number * 7 + len(arm)) % 5 > 2
            document = {
                "arm": arm,
                "outcome": "tp2" if won else "sl",
                "net_pnl": 9.0 if won else -7.0,
                "exit_price": made.scenario.plan.entry,
                "fees": 0.5,
                "slippage": 0.25,
                "exit_time": (begin + step * (number + 1)).isoformat(),
            }
            document |= {"model_version": "bench"} if arm == "advice" else {}
            outcome = Outcome.from_json(document)
            yield Event.of_report(EventKind.OUTCOME, OutcomeReport(**common, outcome=outcome))


def fill(url: str, decisions: int) -> None:
    """Record the first ones, and let Postgres copy their rows to all the others, evenly over the
    months that end now."""
    span = timedelta(days=30 * MONTHS)
    step = span / decisions
    begin = datetime.now(UTC) - span
    asyncio.run(_append(url, list(events(begin, step, SEED))))
    copies = decisions // SEED - 1
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for month in range(MONTHS + 1):
            at = begin + timedelta(days=30 * month)
            connection.execute("SELECT advisor_make_month(%s)", [f"{at:%Y%m}"])
        for name in COPIED:
            columns = tables.metadata.tables[name].columns.keys()
            values = ", ".join(_copied(column, SEED * step) for column in columns)
            connection.execute(
                f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM {name},"
                f" generate_series(1, {copies}) AS copy"
            )
            connection.execute(f"VACUUM ANALYZE {name}")


async def _append(url: str, batch: list[Event]) -> None:
    log = ShadowLog.connect(url)
    await log.append(batch)
    await log.aclose()


def _copied(column: str, apart: timedelta) -> str:
    """A column of a copy, which is so much later than the one before."""
    later = f"copy * interval '{apart.total_seconds()} s'"
    return {
        "decision_id": "md5(decision_id::text || copy)::uuid",
        "event_key": "event_key || '.' || copy",
        "as_of": f"as_of + {later}",
        "exit_time": f"exit_time + {later}",
        "scenario": f"""scenario || jsonb_build_object(
            'candidate', scenario -> 'candidate' || jsonb_build_object('ts', as_of + {later}),
            'market', scenario -> 'market' || jsonb_build_object('bar_closed_at', as_of + {later}))
        """,
    }.get(column, column)


def documented() -> dict[str, str]:
    """Queries of the page by the question above each."""
    page = (ROOT / "docs" / "shadow_log.md").read_text(encoding="utf-8")
    return dict(QUERY.findall(page))


def asked(url: str, query: str, repeats: int) -> Timed:
    """A query in a session like an analyst's, after a first time that warms it up."""
    samples = []
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for _ in range(repeats + 1):
            begin = perf_counter()
            connection.execute(query).fetchall()
            samples.append(perf_counter() - begin)
    return Timed(samples[1:])


async def explored(url: str, repeats: int) -> dict[str, Timed]:
    """What the explorer's pages ask, over the last month."""
    log = ShadowLog.connect(url)
    explorer, until = Explorer(log.engine), datetime.now(UTC)
    since = until - timedelta(days=30)
    pages: dict[str, Callable[[], object]] = {
        "newest decisions": lambda: explorer.page(Filters(), None, 50),
        "newest disagreements": lambda: explorer.page(Filters(disagree=True), None, 50),
        "days": lambda: explorer.days(since, until),
        "vetoes": lambda: explorer.vetoes(since, until),
        "agreement of versions": lambda: explorer.agreement_of_versions(since, until),
        "what can be chosen": explorer.choices,
    }
    times = {}
    for name, page in pages.items():
        samples = []
        for _ in range(repeats + 1):
            begin = perf_counter()
            await page()  # type: ignore[misc]
            samples.append(perf_counter() - begin)
        times[f"explorer: {name}"] = Timed(samples[1:])
    await log.aclose()
    return times


def main(
    decisions: Annotated[int, typer.Option(help="How many lie in the log.")] = 100_000,
    repeats: Annotated[int, typer.Option(help="Times that each question is asked.")] = 5,
) -> None:
    """Fill a log and ask."""
    with servers() as (_, postgres, _):
        upgrade(postgres.url)
        fill(postgres.url, decisions)
        times = {name: asked(postgres.url, query, repeats) for name, query in documented().items()}
        times |= asyncio.run(explored(postgres.url, repeats))
        question = next(query for query in documented().values() if "shadow_comparison" in query)
        joined = question.replace("shadow_comparison", "comparison_source")
        times["the same, joined from the tables"] = asked(postgres.url, joined, 1)
    table = Table(title=f"{decisions:,} decisions in {MONTHS} months", title_justify="left")
    for column in ("question", "median ms", "slowest ms"):
        table.add_column(column)
    for name, timed in times.items():
        table.add_row(name, f"{timed.median_ms:,.1f}", f"{timed.worst_ms:,.1f}")
    Console().print(table)
    figures: dict[str, float] = {"decisions": decisions}
    for name, timed in times.items():
        figure = re.sub("[^a-z]+", "_", name.lower()).strip("_")
        figures |= repeated(f"{figure}_ms", [1e3 * each for each in timed.seconds])
    record("questions", figures)


if __name__ == "__main__":
    typer.run(main)
