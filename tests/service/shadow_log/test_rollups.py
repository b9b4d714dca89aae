"""What is asked over all time is added up by day, and is what the flat table says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.reading.explore import EARNED, Explorer
from app.shadow_log.schema.migrate import downgrade, upgrade
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.shadow_log.test_comparisons import change, story
from tests.service.shadow_log.test_log import rows

VIEWS = ("agreement_daily", "veto_value")
DAY = datetime(2026, 11, 2, tzinfo=UTC)
ROW = """
INSERT INTO comparisons (decision_id, as_of, ordinal, model_version, request_id, received_at,
                         symbol, session, setup_type, regime, state, role, control_veto_codes,
                         status, veto_codes, agent_approve, advice_approve, agree, agent_outcome,
                         agent_r, agent_pnl, advice_r, approve_probability, win_probability)
VALUES (%(id)s, %(as_of)s, strpos('xab', %(version)s) - 2, %(version)s, 'r', %(as_of)s,
        'BTCUSDT', 'Europe', 'trend', 'calm', 'ACTIVE', %(role)s, %(codes)s, %(status)s, '{}',
        %(agent)s::boolean, %(advice)s::boolean,
        %(agent)s::boolean = %(advice)s::boolean, %(outcome)s, %(r)s, %(pnl)s, %(advice_r)s,
        %(approve)s, %(win)s)
ON CONFLICT (decision_id, as_of, ordinal, model_version) DO UPDATE SET
    role = excluded.role, control_veto_codes = excluded.control_veto_codes,
    agent_approve = excluded.agent_approve, advice_approve = excluded.advice_approve,
    agree = excluded.agree, agent_outcome = excluded.agent_outcome, agent_r = excluded.agent_r,
    agent_pnl = excluded.agent_pnl, status = excluded.status, advice_r = excluded.advice_r,
    approve_probability = excluded.approve_probability, win_probability = excluded.win_probability
"""
"""Version a decides, b is in shadow, and x is elsewhere and told later (ordinal -1)."""
GONE = "DELETE FROM comparisons WHERE decision_id = %(id)s AND model_version = %(version)s"
SUMS = "SELECT day, one, other, sum(decisions) AS decisions, sum(agreements) AS agreements"
PAIRS = [
    f"{SUMS} FROM pair_days GROUP BY 1, 2, 3 HAVING sum(decisions) > 0 ORDER BY 1",
    f"{SUMS} FROM pair_source GROUP BY 1, 2, 3 ORDER BY 1",
]
FLAGS = st.sampled_from([True, False, None])
NUMBERS = st.sampled_from([None, 0.0, 0.1, 0.2, 0.3, -0.7, 1 / 3, 1e15, 1e-15])
CHANCES = st.sampled_from([None, 0.0, 0.2, 0.5999999999999999, 0.6, 1.0])
CHANGES = st.fixed_dictionaries(
    {
        "id": st.integers(0, 3).map(lambda number: f"00000000-0000-0000-0000-00000000000{number}"),
        "version": st.sampled_from(["a", "b", "x"]),
        "role": st.sampled_from(["primary", "shadow"]),
        "codes": st.lists(st.sampled_from(["SPREAD", "STALE"]), max_size=2, unique=True),
        "agent": FLAGS,
        "advice": FLAGS,
        "outcome": st.sampled_from(["tp1", "not_traded", None]),
        "r": NUMBERS,
        "pnl": NUMBERS,
        "advice_r": NUMBERS,
        "status": st.sampled_from(["advised", "abstained"]),
        "approve": CHANCES,
        "win": CHANCES,
        "gone": st.booleans(),
    }
)


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""))


def both(url: str, view: str) -> list[list[dict[str, Any]]]:
    """The view as it adds up days, and as it reads every comparison."""
    order = "ORDER BY 1, 2"
    whole = f"SELECT * FROM {view}_within('-infinity', 'infinity') {order}"
    return [rows(url, f"SELECT * FROM {view} {order}"), rows(url, whole)]


EDGES = [DAY + timedelta(hours=hour) for hour in (-1, 0, 0.5, 19, 20, 24, 41)]
HOURS = st.sampled_from([0.01, 1, 4, 24, 29.5, 48, 100])
JUDGED = f"(SELECT *, {EARNED} FROM shadow_comparison WHERE {{span}}) judged"
OF_ROWS = (
    f"""
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, role, count(*) AS decisions,
           count(*) FILTER (WHERE status = 'abstained') AS abstained,
           count(agree) AS compared, count(*) FILTER (WHERE agree) AS agreements,
           count(*) FILTER (WHERE agree IS NOT NULL AND agent_approve) AS agent_approvals,
           count(*) FILTER (WHERE agree IS NOT NULL AND advice_approve) AS advice_approvals,
           count(advice_earned_r - agent_earned_r) AS judged,
           coalesce(sum(agent_earned_r) FILTER (WHERE advice_earned_r IS NOT NULL), 0) AS agent_r,
           coalesce(sum(advice_earned_r) FILTER (WHERE agent_earned_r IS NOT NULL), 0) AS advice_r
    FROM {JUDGED} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    """,
    """
    SELECT code, count(*) AS refused, count(r) AS judged, -sum(r) AS r_saved,
           count(*) FILTER (WHERE r < 0) AS losers_avoided,
           count(*) FILTER (WHERE r > 0) AS winners_missed
    FROM (
        SELECT unnest(control_veto_codes) AS code,
               CASE WHEN agent_outcome <> 'not_traded' THEN agent_r END AS r
        FROM shadow_comparison WHERE role = 'primary' AND {span}
    ) refusals GROUP BY code ORDER BY refused DESC, code
    """,
    """
    SELECT model_version, what, least(floor(5 * chance), 4)::int AS fifth, count(*) AS decisions,
           avg(chance) AS told, avg((agent_r > 0)::int)::float8 AS won
    FROM comparisons, LATERAL (
        VALUES ('approve', approve_probability), ('win', win_probability)
    ) AS told (what, chance)
    WHERE {span} AND ordinal >= 0 AND chance IS NOT NULL AND agent_r IS NOT NULL
      AND agent_outcome <> 'not_traded'
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    """,
    """
    SELECT 'a' AS one, 'b' AS other, count(*) AS decisions,
           count(*) FILTER (WHERE same) AS agreements
    FROM (
        SELECT count(DISTINCT advice_approve) = 1 AS same FROM comparisons
        WHERE {span} AND model_version <> 'x' AND advice_approve IS NOT NULL
        GROUP BY decision_id HAVING count(*) = 2
    ) both_said HAVING count(*) > 0
    """,
)
"""What a page asks, of every row: days, vetoes, chances, pairs of versions."""


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    yield opened
    await opened.aclose()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(CHANGES, max_size=12))
def test_whatever_changes_a_comparison_its_day_adds_up_to_what_the_rows_say(
    database_url: str, changes: list[dict[str, Any]]
) -> None:
    with connect(database_url) as connection:
        connection.execute("SELECT advisor_make_month('202611')")
        connection.execute("DELETE FROM comparisons")
        for number, each in enumerate(changes):
            at = {"as_of": DAY + timedelta(hours=20 * int(each["id"][-1]))}
            connection.execute(GONE if each["gone"] else ROW, each | at)
            if number % 3 == 0:
                connection.commit()
    for view in VIEWS:
        added, read = both(database_url, view)
        assert added == [
            {
                name: pytest.approx(value, rel=1e-9, abs=1e-9) if type(value) is float else value
                for name, value in row.items()
            }
            for row in read
        ]
    added, read = (rows(database_url, query) for query in PAIRS)
    assert added == read
    assert rows(database_url, "SELECT * FROM veto_days WHERE refused = 0 AND r <> 0") == []
    assert (
        rows(database_url, "SELECT * FROM advice_days WHERE decisions = 0 AND agent_r <> 0") == []
    )


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(CHANGES, max_size=12), since=st.sampled_from(EDGES), hours=HOURS)
def test_pages_read_of_any_span_what_its_comparisons_say(
    database_url: str, changes: list[dict[str, Any]], since: datetime, hours: float
) -> None:
    """Whole days as they were added up, and what is before and behind them."""
    until = since + timedelta(hours=hours)
    with connect(database_url) as connection:
        connection.execute("SELECT advisor_make_month('202611')")
        connection.execute("DELETE FROM comparisons")
        for each in changes:
            at = {"as_of": DAY + timedelta(hours=20 * int(each["id"][-1]))}
            connection.execute(GONE if each["gone"] else ROW, each | at)

    async def asked() -> list[list[dict[str, Any]]]:
        opened = ShadowLog.connect(database_url)
        explorer = Explorer(opened.engine)
        questions = (
            explorer.days,
            explorer.vetoes,
            explorer.chances,
            explorer.agreement_of_versions,
        )
        answers = [await question(since, until) for question in questions]
        await opened.aclose()
        return answers

    span = f"as_of >= '{since.isoformat()}' AND as_of < '{until.isoformat()}'"
    for answer, whole in zip(asyncio.run(asked()), OF_ROWS, strict=True):
        read = rows(database_url, whole.format(span=span))
        assert answer == [
            {name: pytest.approx(v, rel=1e-9) if type(v) is float else v for name, v in row.items()}
            for row in read
        ]


async def test_a_span_at_the_end_of_the_calendar_is_asked_for(log: ShadowLog) -> None:
    end = datetime.max.replace(tzinfo=UTC)
    for since in (end - timedelta(hours=1), end - timedelta(days=1, hours=1), end):
        assert await Explorer(log.engine).days(since, end) == []


def test_two_that_append_at_once_do_not_wait_for_each_other_and_both_count(
    database_url: str,
) -> None:
    row = {
        "version": "a", "role": "primary", "codes": ["SPREAD"], "agent": True, "advice": False,
        "outcome": "tp1", "r": 0.1, "pnl": None, "as_of": DAY, "advice_r": None,
        "status": "advised", "approve": 0.6, "win": None,
    }  # fmt: skip
    with connect(database_url) as connection:
        connection.execute("SELECT advisor_make_month('202611')")
    with connect(database_url) as first, connect(database_url) as second:
        first.execute(ROW, row | {"id": "00000000-0000-0000-0000-000000000001"})
        second.execute(ROW, row | {"id": "00000000-0000-0000-0000-000000000002"})
        second.execute(ROW, row | {"id": "00000000-0000-0000-0000-000000000003", "r": 0.2})
    kept = rows(database_url, "SELECT slot, refused, r::text FROM veto_days ORDER BY slot")
    assert kept == [
        {"slot": 0, "refused": 1, "r": "0.1"},
        {"slot": 1, "refused": 2, "r": "0.3"},
    ]
    assert rows(database_url, "SELECT * FROM veto_value") == [
        {
            "code": "SPREAD", "refused": 3, "with_outcome": 3, "r_saved": -0.4,
            "mean_r_saved": pytest.approx(-0.4 / 3), "pnl_saved": None, "losers_avoided": 0,
            "winners_missed": 3, "r_saved_alone": -0.4,
        }
    ]  # fmt: skip
    assert rows(database_url, "SELECT * FROM agreement_daily") == [
        {
            "day": DAY.date(), "model_version": "a", "decisions": 3, "agreements": 0,
            "agent_approvals": 3, "advice_approvals": 0, "agreement": 0.0, "kappa": 0.0,
        }
    ]  # fmt: skip


async def test_a_question_over_all_time_reads_no_comparison(database_url: str) -> None:
    for view in VIEWS:
        assert "comparisons" not in str(rows(database_url, f"EXPLAIN SELECT * FROM {view}"))


async def test_what_the_service_looks_up_is_found_by_an_index(
    log: ShadowLog, database_url: str
) -> None:
    """Of ten million rows nobody reads all for one decision, or for the reports of a day."""
    asked: list[tuple[str, Any]] = []

    @event.listens_for(log.engine.sync_engine, "before_cursor_execute")
    def keep(*given: Any) -> None:
        asked.append((given[2], given[3]))

    await log.append(story("r-1"))
    asked.clear()
    assert len(await Explorer(log.engine).asked_as("r-1")) == 1
    await log.reported_trades(DAY, timedelta(hours=1))
    with connect(database_url) as connection:
        connection.execute("SET enable_seqscan = off")
        for query, values in asked:
            plan = str(connection.execute(f"EXPLAIN {query}".encode(), values).fetchall())
            assert "Seq Scan" not in plan, query
    assert len(asked) == 2


async def test_days_of_before_are_added_up_by_the_migration_and_dropped_with_their_month(
    log: ShadowLog, database_url: str
) -> None:
    old = datetime(2024, 1, 31, 23, tzinfo=UTC)
    late = old + timedelta(hours=1)
    await log.append([*story("r-1"), build.decision_event("old", at=old, control=True)])
    await log.append([build.decision_event("late", at=late, control=True)])
    before = [both(database_url, view) for view in VIEWS]
    assert len(before[0][0]) > 3
    assert all(added == read for added, read in before)
    downgrade(database_url, "0021")
    await log.engine.dispose()
    upgrade(database_url)
    assert [both(database_url, view) for view in VIEWS] == before
    assert await log.drop_months_before(datetime(2024, 2, 20, tzinfo=UTC)) == {"202401": 1}
    for view in VIEWS:
        added, read = both(database_url, view)
        assert added == read
    days = {row["day"] for row in rows(database_url, "SELECT day FROM agreement_daily")}
    assert old.date() not in days
    assert date(2024, 2, 1) in days
    assert (await verify_log(database_url)).findings == []


async def test_sums_that_somebody_changed_are_found_and_made_anew(
    log: ShadowLog, database_url: str, tmp_path: Path
) -> None:
    await log.append(story("r-1"))
    right = both(database_url, "agreement_daily")
    change(database_url, "UPDATE advice_days SET agreements = agreements + 1")
    assert rows(database_url, "SELECT * FROM agreement_daily") != right[0]
    findings = (await verify_log(database_url)).findings
    kept = rows(database_url, "SELECT * FROM advice_days")
    assert len(findings) == len(kept) > len(right[0])
    assert all(finding.startswith("advice_days of ") for finding in findings)
    done = advisor(environment(tmp_path, database_url=database_url), "compare")
    assert done.stderr == "1 decision, 0 rows changed\n"
    assert both(database_url, "agreement_daily") == right
    assert (await verify_log(database_url)).findings == []
