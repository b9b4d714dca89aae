"""What each role of the database can do, tried as who logs in as it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from app.domain.rules.case import TradingState
from app.shadow_log.database import connect
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify
from app.shadow_log.schema.logins import (
    ANALYST,
    MOST_CONNECTIONS,
    MOST_DISK,
    READER,
    WRITER,
    give_logins,
    url_as,
)
from app.shadow_log.schema.migrate import downgrade, upgrade
from tests import builders as build
from tests.service.processes import advisor, environment

REFUSED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def url(empty_database_url: str) -> Iterator[str]:
    """Migrated here: what belongs to a database is not copied from a template."""
    upgrade(empty_database_url)
    give_logins(empty_database_url, {WRITER: "w'\\", READER: "r@:/", ANALYST: "a"})
    yield empty_database_url
    with psycopg.connect(plain(empty_database_url), autocommit=True) as connection:
        for role in (WRITER, READER, ANALYST):
            connection.execute(f"ALTER ROLE {role} NOLOGIN PASSWORD NULL")


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def login(url: str, role: str) -> psycopg.Connection:
    password = {WRITER: "w'\\", READER: "r@:/", ANALYST: "a"}[role]
    return psycopg.connect(plain(url_as(url, role, password)), autocommit=True)


LOCKS = [
    f"SELECT pg_{attempt}advisory_{scope}lock{kind}({key})"
    for attempt in ("", "try_")
    for scope in ("", "xact_")
    for kind in ("", "_shared")
    for key in ("1", "1, 2")
]
NO_ANALYST = [
    *LOCKS,
    "SELECT pg_notify('x', 'y')",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT pg_logical_emit_message(false, 'x', 'y')",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE TABLE mine (id int)",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
    "LOCK TABLE decisions IN SHARE MODE",
    "LOCK TABLE shadow_comparison IN ACCESS EXCLUSIVE MODE",
    "SELECT * FROM decisions",
    "SELECT * FROM decision_keys",
    "SELECT * FROM put_aside",
    "SELECT * FROM decisions_before",
    "SELECT * FROM pg_authid",
    "SELECT advisor_make_month('202001')",
    "SELECT advisor_make_partition('decisions', 'x', 'DEFAULT')",
    "INSERT INTO chain_heads (producer, seq) VALUES ('x', 1)",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SET ROLE advisor_writer",
    "SET SESSION AUTHORIZATION advisor",
    "ALTER ROLE advisor_writer PASSWORD 'x'",
]


@pytest.mark.parametrize("read_only", [True, False])
def test_an_analyst_looks_at_views_and_can_neither_write_nor_lock(
    url: str, read_only: bool
) -> None:
    with login(url, ANALYST) as connection:
        settings = "default_transaction_read_only", "statement_timeout", "lock_timeout"
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in settings]
        assert shown == [("on",), ("1min",), ("5s",)]
        if not read_only:
            connection.execute("SET default_transaction_read_only = off")
        for view in ("shadow_comparison", "disagreements", "agreement_daily", "veto_value"):
            assert connection.execute(f"SELECT count(*) FROM {view}").fetchone() == (0,)
        for statement in NO_ANALYST:
            refusals = (REFUSED, psycopg.errors.ReadOnlySqlTransaction)
            with pytest.raises(refusals), connection.transaction():
                connection.execute(statement)
        if not read_only:  # The privileges refuse, not the setting.
            for statement in NO_ANALYST:
                with pytest.raises(REFUSED), connection.transaction():
                    connection.execute(statement)


def test_a_reader_reads_everything_and_changes_nothing(url: str) -> None:
    tables = ("decisions", "decision_keys", "event_links", "put_aside", "shadow_comparison")
    with login(url, READER) as connection:
        for table in tables:
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        for statement in NO_ANALYST:
            if not statement.startswith("SELECT * FROM") or "pg_authid" in statement:
                with pytest.raises(REFUSED), connection.transaction():
                    connection.execute(statement)


@pytest.mark.parametrize("role", [READER, ANALYST])
def test_who_only_reads_takes_neither_all_connections_nor_the_disk(url: str, role: str) -> None:
    with ExitStack() as held:
        for _ in range(MOST_CONNECTIONS[role]):
            connection = held.enter_context(login(url, role))
        assert connection.execute("SHOW temp_file_limit").fetchone() == (MOST_DISK,)
        with pytest.raises(REFUSED):
            connection.execute("SET temp_file_limit = -1")
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            login(url, role)
        with login(url, WRITER) as writer:
            assert writer.execute("SHOW temp_file_limit").fetchone() == ("-1",)


async def test_the_writer_records_whatever_the_service_records_and_makes_months(url: str) -> None:
    log = ShadowLog.connect(url_as(url, WRITER, "w'\\"))
    appended = await log.append(
        [
            build.decision_event("r-1", control=True),
            build.action_event("r-1", build.agent_action(True)),
            build.outcome_event("r-1", build.outcome(r=1.0)),
            build.rationale_event("r-1"),
            build.state_event(TradingState.HALTED),
        ]
    )
    assert appended.inserted["decisions"] == 1
    await log.register_model(build.manifest("m-1"))
    await log.set_alias("champion", "m-1", reason="test", by="tests")
    await log.note_head("producer", 1)
    await log.ping()
    await log.aclose()
    reader = ShadowLog.connect(url_as(url, READER, "r@:/"))
    report = await verify(reader.engine)
    await reader.aclose()
    assert report.decisions == 1
    assert [str(finding) for finding in report.findings if "producer" not in str(finding)] == []


def test_the_writer_neither_changes_nor_removes_nor_makes_anything_else(url: str) -> None:
    with login(url, WRITER) as connection:
        for statement in (
            "UPDATE decisions SET symbol = 'X'",
            "DELETE FROM decision_keys",
            "TRUNCATE outcomes",
            "DROP TABLE outcomes",
            "ALTER TABLE decisions DISABLE TRIGGER ALL",
            "ALTER TABLE decisions DETACH PARTITION decisions_before",
            "INSERT INTO dropped_months (month, decisions) VALUES ('202001', 1)",
            "CREATE TABLE mine (id int)",
            "CREATE TEMPORARY TABLE mine (id int)",
            "SELECT advisor_make_partition('decisions', 'x', 'DEFAULT')",
            "UPDATE alembic_version SET version_num = '1'",
            "SELECT lo_create(0)",
            "COPY (SELECT 1) TO PROGRAM 'true'",
        ):
            with pytest.raises(REFUSED), connection.transaction():
                connection.execute(statement)
        for month in ("200912", "204001", "202013", "2020-1", "202001'; DROP TABLE outcomes; --"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                connection.execute("SELECT advisor_make_month(%s)", [month])
        for _ in range(2):
            connection.execute("SELECT advisor_make_month('202012')")
        bounds = connection.execute(
            "SELECT pg_get_expr(relpartbound, oid), relowner::regrole::text FROM pg_class"
            " WHERE relname = 'advices_202012'"
        ).fetchone()
        assert bounds is not None
        assert bounds[1] == "advisor"
        connection.execute("SET TimeZone = 'America/New_York'")
        connection.execute("SELECT advisor_make_month('202011')")


def test_migrate_lets_roles_log_in_and_says_no_password(url: str, tmp_path: Path) -> None:
    passwords = {"ADVISOR_WRITER_PASSWORD": "w2-secret", "ADVISOR_ANALYST_PASSWORD": "a2-secret"}
    done = advisor(environment(tmp_path, database_url=url) | passwords, "migrate")
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    for role, password in ((WRITER, "w2-secret"), (ANALYST, "a2-secret"), (READER, "r@:/")):
        with psycopg.connect(plain(url_as(url, role, password))) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (role,)


async def test_a_role_in_the_connection_string_is_kept(url: str) -> None:
    engine = connect(f"{url}?options=-crole%3Dadvisor_reader")
    async with engine.connect() as connection:
        row = await connection.exec_driver_sql("SELECT current_user")
        assert row.scalar() == "advisor_reader"
    await engine.dispose()


def test_the_way_back_leaves_everything_as_it_was(url: str) -> None:
    downgrade(url, "0008")
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("SET ROLE advisor_analyst")
        connection.execute("SELECT pg_advisory_lock(1)")
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (0,)
        connection.execute("CREATE TEMPORARY TABLE mine (id int)")
    upgrade(url)
