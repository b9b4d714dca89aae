"""How long people's questions take on a large shadow log: every query of docs/shadow_log.md, what
the explorer's pages ask over a month and over everything, and what the service asks by itself.

Some hundred decisions are recorded as the service records them, every fourth read by a second
version, with actions and outcomes, and copied by Postgres to the number that is asked for; sums by
day are made of the copies. Only the newest `--whole` ones are copied with their tables, of older
ones the flat rows: ten million whole decisions are 67 GB. The first question is also asked of the
tables that the flat one follows from.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from app.domain.model.manifest import Calibration
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision, Role, Version, conclude
from app.domain.record.event import AgentActionReport, Event, EventKind, OutcomeReport
from app.domain.record.outcome import Outcome
from app.policy.scripted import reading_of
from app.shadow_log.appending.links import Watch
from app.shadow_log.comparisons import sums_anew
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.explore import Explorer, Filters
from app.shadow_log.reading.worth import newest_worth
from app.shadow_log.schema import tables
from app.shadow_log.schema.migrate import upgrade
from bench.history import record, repeated
from bench.serving.service import ROOT, a_decision, servers

SEED, MONTHS, WHOLE = 500, 4, 1_000_000
SHADOW = Version("other", "sha256:" + "1" * 64, Calibration(), Role.SHADOW)
AT_ONCE = 1_000
"""Copies of all seeds that one statement makes."""
QUERY = re.compile(r"^(\S[^\n]*[?:)])\n\n```sql\n(.*?)```", re.DOTALL | re.MULTILINE)
COPIED = (
    "decision_keys", "decisions", "advices", "agent_actions", "outcomes", "comparisons", "links",
)  # fmt: skip
QUICKLY = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "'8GB'"}
"""While the log is filled."""


Questions = dict[str, Callable[[], Awaitable[object]]]


class Timed(NamedTuple):
    """Seconds of one question, each time that it was asked."""

    seconds: list[float]

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.seconds)

    @property
    def worst_ms(self) -> float:
        return 1e3 * max(self.seconds)


def events(
    begin: datetime, step: timedelta, decisions: int, shadow_every: int = 0
) -> Iterator[Event]:
    """Decisions of one version, each with what the agent did and an outcome of both arms; another
    version reads every so many as well."""
    for number in range(decisions):
        made = a_decision(number)
        if shadow_every and number % shadow_every == 0:
            made = made.model_copy(update={"advices": (*made.advices, _other(made))})
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


def _other(made: Decision) -> Advice:
    reading = reading_of("HA"[made.decision_id.int % 2])
    return conclude(
        made.scenario, reading, SHADOW, made.limits, state=made.state, now=made.evaluated_at
    )


def fill(
    url: str, decisions: int, months: int = MONTHS, whole: int = WHOLE, shadow_every: int = 0
) -> None:
    """Record the first ones, and let Postgres copy their rows to all the others, evenly over the
    months that end now; of all but the newest `whole` ones the flat rows alone."""
    span = timedelta(days=30 * months)
    step = span / decisions
    begin = datetime.now(UTC) - span
    asyncio.run(_append(url, list(events(begin, step, SEED, shadow_every))))
    copies = decisions // SEED - 1
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for name, value in QUICKLY.items():
            connection.execute(f"ALTER SYSTEM SET {name} TO {value}")
        connection.execute("SELECT pg_reload_conf()")
        for day in (*range(0, 30 * months, 28), 30 * months):  # No month is shorter.
            at = begin + timedelta(days=day)
            connection.execute("SELECT advisor_make_month(%s)", [f"{at:%Y%m}"])
        # Rows are copied as they are, and sums made of all of them below: no trigger.
        connection.execute("SET session_replication_role = replica")
        for name in COPIED:
            first = 1 if name == "comparisons" else max(copies - whole // SEED, 0) + 1
            _copy(connection, name, range(first, copies + 1), SEED * step)
            connection.execute(f"VACUUM ANALYZE {name}")
        for days in tables.DAYS:
            connection.execute(f"TRUNCATE {days.name}")
            connection.execute(str(sums_anew(days)))
            connection.execute(f"VACUUM ANALYZE {days.name}")
        for name in QUICKLY:
            connection.execute(f"ALTER SYSTEM RESET {name}")
        connection.execute("CHECKPOINT")
        connection.execute("SELECT pg_reload_conf()")


def _copy(connection: psycopg.Connection[Any], name: str, copies: range, apart: timedelta) -> None:
    """Copies of the rows of a table, the oldest first; of links those of decisions alone."""
    columns = [c.name for c in tables.metadata.tables[name].columns if c.identity is None]
    values = ", ".join(_copied(column, copies.start, apart) for column in columns)
    seeds = "WHERE kind = 'decision'" if name == "links" else ""
    connection.execute(f"CREATE TEMP TABLE seeds AS SELECT * FROM {name} {seeds}")
    for first in copies[::AT_ONCE]:
        last = min(first + AT_ONCE, copies.stop) - 1
        connection.execute(
            f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values}"
            f" FROM generate_series({first}, {last}) AS copy, LATERAL (SELECT * FROM seeds"
            " OFFSET 0) seed"
        )
    connection.execute("DROP TABLE seeds")


async def _append(url: str, batch: list[Event]) -> None:
    log = ShadowLog.connect(url)
    await log.append(batch)
    await log.aclose()


def _copied(column: str, first: int, apart: timedelta) -> str:
    """A column of a copy, which is so much later than the one before."""
    later = f"copy * interval '{apart.total_seconds()} s'"
    if column in ("as_of", "exit_time", "market_bar_closed_at", "received_at", "recorded_at"):
        return f"{column} + {later}"
    id = "md5({} || '.' || copy)::uuid"
    return {
        "decision_id": id.format("decision_id::text"),
        "event_key": "event_key || '.' || copy",
        "request_id": "request_id || '.' || copy",
        "key": f"{id.format('key')}::text",
        "seq": f"seq + (copy - {first} + 4) * {SEED}",  # Those of decisions come first: no gap.
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
    """What the explorer's pages ask, over the last month and over everything, and what writer and
    API ask by themselves."""
    log = ShadowLog.connect(url)
    explorer, until = Explorer(log.engine), datetime.now(UTC)
    [newest] = (await explorer.page(Filters(), None, 1)).rows
    asked = {
        **_of_spans(explorer, until),
        **_of_lists(explorer),
        **_of_a_decision(explorer, log, newest),
        **_of_processes(log, until),
    }
    times = {}
    for name, question in asked.items():
        samples = []
        for _ in range(repeats + 1):
            begin = perf_counter()
            await question()
            samples.append(perf_counter() - begin)
        times[name] = Timed(samples[1:])
    await log.aclose()
    return times


def _of_spans(explorer: Explorer, until: datetime) -> Questions:
    spans = {"": until - timedelta(days=30), ", all time": datetime(2010, 1, 1, tzinfo=UTC)}
    return {
        f"explorer: {name}{span}": partial(question, since, until)
        for name, question in (
            ("days", explorer.days),
            ("vetoes", explorer.vetoes),
            ("chances", explorer.chances),
            ("agreement of versions", explorer.agreement_of_versions),
        )
        for span, since in spans.items()
    }


def _of_lists(explorer: Explorer) -> Questions:
    lists: Questions = {
        f"explorer: {name}": partial(explorer.page, filters, None, 50)
        for name, filters in (
            ("newest decisions", Filters()),
            ("newest disagreements", Filters(disagree=True)),
            ("a symbol that is not there", Filters(symbol="NONEUSDT")),
            ("a veto that never was", Filters(veto="STALE_SNAPSHOT")),
            ("words that nobody said", Filters(words="no such words")),
        )
    }
    return lists | {
        "explorer: times of the record": explorer.span,
        "explorer: what can be chosen": explorer.choices,
        "explorer: a request that is not there": partial(explorer.asked_as, "no such request"),
    }


def _of_a_decision(explorer: Explorer, log: ShadowLog, one: Mapping[str, Any]) -> Questions:
    id, as_of = one["decision_id"], one["as_of"]
    numbers = {"rsi": 50.0, "score": 7.0, "confidence": 0.5}
    return {
        "explorer: a decision, its record": partial(log.get, id),
        "explorer: a decision, compared": partial(explorer.comparison, id, as_of),
        "explorer: a decision, its links": partial(explorer.links, id),
        "explorer: a decision, the nearest": partial(explorer.alike, id, as_of, numbers, 8),
    }


def _of_processes(log: ShadowLog, until: datetime) -> Questions:
    return {
        "writer: what the month was worth": partial(newest_worth, log.engine),
        "writer: events missing, first look": partial(_first_look, log),
        "writer: events missing, next look": partial(log.missing_events, {}),
        "writer: accepted requests": log.undecided,
        "API: reports of the last day": partial(log.reported_trades, until, timedelta(days=1)),
    }


async def _first_look(log: ShadowLog) -> int:
    """What a writer that begins counts."""
    async with log.engine.connect() as connection:
        return await Watch().missing(connection, {})


def main(
    decisions: Annotated[int, typer.Option(min=1, help="How many lie in the log.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each question is asked.")] = 5,
    months: Annotated[int, typer.Option(min=1, help="Months that they are spread over.")] = MONTHS,
    whole: Annotated[int, typer.Option(min=0, help="Newest decisions with all tables.")] = WHOLE,
) -> None:
    """Fill a log and ask."""
    with servers() as (_, postgres, _):
        upgrade(postgres.url)
        fill(postgres.url, decisions, months, whole, shadow_every=4)
        times = {name: asked(postgres.url, query, repeats) for name, query in documented().items()}
        times |= asyncio.run(explored(postgres.url, repeats))
        question = next(query for query in documented().values() if "shadow_comparison" in query)
        joined = question.replace("shadow_comparison", "comparison_source")
        times["the same, joined from the tables"] = asked(postgres.url, joined, 1)
    table = Table(title=f"{decisions:,} decisions in {months} months", title_justify="left")
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
