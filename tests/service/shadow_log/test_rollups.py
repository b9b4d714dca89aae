"""What is asked over all time is added up by day, and is what the flat table says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
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
                         agent_r, agent_pnl)
VALUES (%(id)s, %(as_of)s, 0, %(version)s, 'r', %(as_of)s, 'BTCUSDT', 'Europe', 'trend', 'calm',
        'ACTIVE', %(role)s, %(codes)s, 'advised', '{}', %(agent)s::boolean, %(advice)s::boolean,
        %(agent)s::boolean = %(advice)s::boolean, %(outcome)s, %(r)s, %(pnl)s)
ON CONFLICT (decision_id, as_of, ordinal, model_version) DO UPDATE SET
    role = excluded.role, control_veto_codes = excluded.control_veto_codes,
    agent_approve = excluded.agent_approve, advice_approve = excluded.advice_approve,
    agree = excluded.agree, agent_outcome = excluded.agent_outcome, agent_r = excluded.agent_r,
    agent_pnl = excluded.agent_pnl
"""
GONE = "DELETE FROM comparisons WHERE decision_id = %(id)s AND model_version = %(version)s"
FLAGS = st.sampled_from([True, False, None])
NUMBERS = st.sampled_from([None, 0.0, 0.1, 0.2, 0.3, -0.7, 1 / 3, 1e15, 1e-15])
CHANGES = st.fixed_dictionaries(
    {
        "id": st.integers(0, 3).map(lambda number: f"00000000-0000-0000-0000-00000000000{number}"),
        "version": st.sampled_from(["a", "b"]),
        "role": st.sampled_from(["primary", "shadow"]),
        "codes": st.lists(st.sampled_from(["SPREAD", "STALE"]), max_size=2, unique=True),
        "agent": FLAGS,
        "advice": FLAGS,
        "outcome": st.sampled_from(["tp1", "not_traded", None]),
        "r": NUMBERS,
        "pnl": NUMBERS,
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
    assert rows(database_url, "SELECT * FROM veto_days WHERE refused = 0 AND r <> 0") == []


def test_two_that_append_at_once_do_not_wait_for_each_other_and_both_count(
    database_url: str,
) -> None:
    row = {
        "version": "a", "role": "primary", "codes": ["SPREAD"], "agent": True, "advice": False,
        "outcome": "tp1", "r": 0.1, "pnl": None, "as_of": DAY,
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
    change(database_url, "UPDATE agreement_days SET agreements = agreements + 1")
    assert rows(database_url, "SELECT * FROM agreement_daily") != right[0]
    findings = (await verify_log(database_url)).findings
    assert len(findings) == len(right[0])
    assert all(finding.startswith("agreement_days of ") for finding in findings)
    done = advisor(environment(tmp_path, database_url=database_url), "compare")
    assert done.stderr == "1 decision, 0 rows changed\n"
    assert both(database_url, "agreement_daily") == right
    assert (await verify_log(database_url)).findings == []
