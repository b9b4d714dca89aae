"""The flat table is what the tables say, in whatever order things arrive, and however many append
at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.canonical import decision_id
from app.domain.errors import AbstainReason
from app.domain.record.decision import Abstention
from app.domain.record.event import Event
from app.domain.record.link import Producer
from app.shadow_log.appending.batch import Batch, append
from app.shadow_log.comparisons import compare_all
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema import tables
from app.shadow_log.schema.migrate import downgrade, upgrade
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.running import until
from tests.service.shadow_log.test_log import rows

KEPT = "SELECT * FROM comparisons ORDER BY decision_id, ordinal, model_version"
SOURCE = "SELECT * FROM comparison_source ORDER BY decision_id, ordinal, model_version"


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    yield opened
    await opened.aclose()


def change(url: str, *statements: str) -> None:
    """As a superuser who knows how to get around triggers."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement)


def story(name: str) -> list[Event]:
    """All that can be said of one decision, with corrections, a late advice and a skip."""
    decided = build.decision(
        name, control=True, shadows=[("other", "A"), ("silent", Abstention(AbstainReason.DEADLINE))]
    )
    return [
        Event.of_decision(decided),
        build.action_event(name, build.agent_action(False, final_skip_reason="spread"), arrival=1),
        build.action_event(name, build.agent_action(True, llm_confidence=0.7), arrival=2),
        build.outcome_event(name, build.outcome(r=-1.0), arrival=1),
        build.outcome_event(name, build.outcome(r=0.5, source="simulated"), arrival=2),
        build.outcome_event(name, build.outcome("advice", r=0.4, model_version="other")),
        build.outcome_event(name, build.outcome("advice", r=0.0), arrival=1),
        build.outcome_event(
            name, build.outcome("advice", r=0.0, exogenous_skip=True), minutes=70, arrival=2
        ),
        build.late_advice_event(decided),
        build.outcome_event(name, build.outcome("advice", r=1.5, model_version="elsewhere-1")),
    ]


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[list[Event]]]:
    """Two writers, each with its batches: every event comes once or twice, in any order."""
    events = [event for number in range(2) for event in story(f"r-{number}")]
    again = draw(st.lists(st.sampled_from(events), max_size=4))
    order = draw(st.permutations(events + again))
    cuts = draw(st.lists(st.integers(0, len(order)), max_size=6).map(sorted))
    edges = [0, *cuts, len(order)]
    batches = [order[begin:end] for begin, end in pairwise(edges)]
    return [batches[0::2], batches[1::2]]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delivered=deliveries())
def test_any_order_of_arrival_with_two_writers_gives_what_the_tables_say(
    database_url: str, delivered: list[list[list[Event]]]
) -> None:
    names = ("decision_keys", "links", "agent_actions", "outcomes", "late_advices")
    days = (str(table.name) for table in tables.DAYS)
    change(database_url, f"TRUNCATE {', '.join([*names, *tables.PARTITIONED, *days])}")

    async def write(batches: Sequence[Sequence[Event]]) -> None:
        log = ShadowLog.connect(database_url)
        for batch in batches:
            await log.append(batch)
        await log.aclose()

    async def both() -> None:
        await asyncio.gather(*map(write, delivered))

    asyncio.run(both())
    kept = rows(database_url, KEPT)
    assert kept == rows(database_url, SOURCE)
    for view in ("agreement_daily", "veto_value"):
        asked = f"SELECT * FROM {view}{{}} ORDER BY 1, 2"
        whole = asked.format("_within('-infinity', 'infinity')")
        assert rows(database_url, asked.format("")) == rows(database_url, whole)
    by_version = {(row["request_id"], row["model_version"]): row for row in kept}
    assert len(by_version) == len(kept) == 8
    for request in ("r-0", "r-1"):
        primary = by_version[request, build.MODEL]
        assert (primary["agent_approve"], primary["llm_confidence"]) == (True, 0.7)
        assert (primary["agent_r"], primary["agent_outcome_source"]) == (0.5, "simulated")
        assert primary["advice_outcome"] is None, "the newest is a skip"
        assert by_version[request, "other"]["advice_r"] == 0.4
        assert by_version[request, "silent"]["agree"] is None
        late = by_version[request, "elsewhere-1"]
        assert (late["ordinal"], late["agree"], late["advice_r"]) == (-1, True, 1.5)


async def waits(url: str) -> bool:
    """Whether somebody waits for a lock."""
    waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    return rows(url, waiting) == [{"n": 1}]


async def test_a_report_waits_for_the_decision_that_another_writer_is_about_to_commit(
    log: ShadowLog, database_url: str
) -> None:
    await log.append([build.decision_event("makes the month")])
    report = build.outcome_event("r-1", build.outcome(r=-1.0))
    async with log.engine.begin() as connection:
        decision = Batch.of([build.decision_event("r-1", control=True)])
        await append(connection, decision, Producer())
        reporting = asyncio.create_task(log.append([report]))
        await until(lambda: waits(database_url))
    await reporting
    found = rows(database_url, "SELECT agent_r FROM comparisons WHERE request_id = 'r-1'")
    assert found == [{"agent_r": -1.0}]


async def test_a_decision_waits_for_the_report_that_came_before_it(
    log: ShadowLog, database_url: str
) -> None:
    await log.append([build.decision_event("makes the month")])
    async with log.engine.begin() as connection:
        report = Batch.of([build.outcome_event("r-1", build.outcome(r=-1.0))])
        await append(connection, report, Producer())
        deciding = asyncio.create_task(log.append([build.decision_event("r-1", control=True)]))
        await until(lambda: waits(database_url))
    await deciding
    found = rows(database_url, "SELECT agent_r FROM comparisons WHERE request_id = 'r-1'")
    assert found == [{"agent_r": -1.0}]


async def test_writers_of_decisions_do_not_wait_for_each_other(
    log: ShadowLog, database_url: str
) -> None:
    await log.append([build.decision_event("makes the month")])
    async with log.engine.begin() as connection:
        first = Batch.of([build.decision_event("r-1"), build.action_event("r-1")])
        await append(connection, first, Producer())
        both = [build.decision_event("r-2"), build.action_event("makes the month")]
        assert (await log.append(both)).inserted["decisions"] == 1


async def test_what_was_changed_past_the_writer_is_found_and_made_anew(
    log: ShadowLog, database_url: str, tmp_path: Path
) -> None:
    await log.append([*story("r-1"), *story("r-2")])
    right = rows(database_url, KEPT)
    change(
        database_url,
        "UPDATE comparisons SET agent_r = 9 WHERE request_id = 'r-1' AND ordinal = 0",
        "DELETE FROM comparisons WHERE request_id = 'r-2' AND ordinal = -1",
        "INSERT INTO comparisons SELECT (copy).* FROM (SELECT jsonb_populate_record("
        "c, jsonb_build_object('decision_id', gen_random_uuid())) AS copy"
        " FROM comparisons c WHERE ordinal = 1) copies",
    )
    wrong = (await verify_log(database_url)).findings
    days = [finding for finding in wrong if "_days of " in finding]
    assert (len(wrong), len(days)) == (4 + 3, 3), "two versions' rows are gone, or too many"
    assert all("`advisor compare` makes it anew" in finding for finding in wrong)
    variables = environment(tmp_path, database_url=database_url)
    for said in ("2 decisions, 4 rows changed\n", "2 decisions, 0 rows changed\n"):
        done = advisor(variables, "compare")
        assert done.stderr == said
        assert rows(database_url, KEPT) == right
    assert (await verify_log(database_url)).findings == []


async def test_decisions_of_a_month_that_was_dropped_are_not_looked_at(
    log: ShadowLog, database_url: str
) -> None:
    months = (datetime(2024, month, 5, tzinfo=UTC) for month in (1, 2, 2))
    await log.append([build.decision_event(f"r-{n}", at=at) for n, at in enumerate(months)])
    assert await log.drop_months_before(datetime(2024, 2, 1, tzinfo=UTC)) == {"202401": 1}
    told: list[tuple[int, int]] = []
    assert await compare_all(database_url, lambda *looked_at: told.append(looked_at)) == (2, 0)
    assert told == [(2, 2)]


async def test_a_month_can_be_made_and_dropped_while_everything_is_compared(
    log: ShadowLog, database_url: str
) -> None:
    at = datetime(2024, 1, 5, tzinfo=UTC)
    await log.append([build.decision_event("r-1", at=at)])
    loop = asyncio.get_running_loop()
    beside: list[asyncio.Task[Any]] = []

    async def drops() -> None:
        async with asyncio.timeout(20):
            await log.drop_months_before(datetime(2024, 2, 1, tzinfo=UTC))
            await log.append([build.decision_event("r-2", at=datetime(2024, 3, 5, tzinfo=UTC))])

    def looked_at(done: int, total: int) -> None:
        beside.append(loop.create_task(drops()))

    await compare_all(database_url, looked_at)
    await beside[0]
    assert [row["request_id"] for row in rows(database_url, KEPT)] == ["r-2"]


async def test_what_was_there_before_the_table_is_compared_when_it_is_made(
    log: ShadowLog, database_url: str
) -> None:
    early, late = datetime(1999, 1, 5, tzinfo=UTC), datetime(2024, 2, 29, 23, tzinfo=UTC)
    await log.append(
        [
            *story("r-1"),
            build.decision_event("early", at=early, control=True),
            build.decision_event("leap", at=late, control=False),
        ]
    )
    await log.aclose()
    comparing = ("shadow_comparison", "agreement_daily", "veto_value", "disagreements", "foretold")
    questions = [f"SELECT * FROM {view} ORDER BY 1, 2, 3" for view in comparing]
    kept = rows(database_url, KEPT)
    answers = [rows(database_url, question) for question in questions]
    downgrade(database_url, "0014")
    assert [rows(database_url, question) for question in questions] == answers
    upgrade(database_url)
    assert rows(database_url, KEPT) == kept
    assert [rows(database_url, question) for question in questions] == answers


async def test_a_question_about_a_span_reads_no_other_month(
    log: ShadowLog, database_url: str
) -> None:
    months = [datetime(2024, month, 3, tzinfo=UTC) for month in (1, 2, 3)]
    await log.append(
        [build.decision_event(f"r-{when:%m}", at=when, control=False) for when in months]
    )
    for view in ("agreement_daily", "veto_value"):
        within = f"{view}_within('2024-02-01', '2024-03-01')"
        plan = str(rows(database_url, f"EXPLAIN SELECT * FROM {within}"))
        assert "comparisons_202402" in plan
        assert "comparisons_202401" not in plan
        assert "comparisons_202403" not in plan
    found = rows(
        database_url,
        "SELECT day, decisions FROM agreement_daily_within('2024-02-01', '2024-03-01')",
    )
    assert found == [{"day": months[1].date(), "decisions": 1}]
    assert len(rows(database_url, "SELECT * FROM agreement_daily")) == 3


def actual_rows(plan: dict[str, Any]) -> float:
    """Rows that all nodes of a plan gave."""
    own = plan["Actual Rows"] * plan["Actual Loops"]
    return own + sum(map(actual_rows, plan.get("Plans", [])))


async def test_making_the_rows_of_one_decision_looks_at_no_other(
    log: ShadowLog, database_url: str
) -> None:
    """Also in tables of which Postgres has no statistics yet, as in a month that has just begun."""
    for part in range(0, 300, 100):
        await log.append(
            [event for number in range(part, part + 100) for event in story(f"r-{number}")]
        )
    [plan] = rows(
        database_url,
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM comparison_source"
        " WHERE decision_id = ANY (%s) AND as_of = ANY (%s)",
        [decision_id("r-7")],
        [build.AS_OF],
    )
    [query] = plan["QUERY PLAN"]
    assert 4 <= actual_rows(query["Plan"]) < 600, "its own ten events, and not those of 300"
