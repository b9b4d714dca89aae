"""Months of the shadow log: made when needed, dropped as a whole, and outages told from faults of
an event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest

from app.domain.canonical import decision_id
from app.domain.errors import ShadowLogUnavailable
from app.local.servers import EmbeddedPostgres
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema.migrate import downgrade, upgrade
from app.shadow_log.schema.tables import PARTITIONED
from tests import builders as build
from tests.conftest import open_directory
from tests.service.shadow_log.test_log import rows


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    yield opened
    await opened.aclose()


def partitions(url: str) -> list[str]:
    query = """
        SELECT inhrelid::regclass::text AS name
        FROM pg_inherits i JOIN pg_class c ON c.oid = inhparent
        WHERE c.relkind = 'p' AND inhrelid::regclass::text ~ '\\d{6}$' ORDER BY 1"""
    found = rows(url, query)
    return [row["name"] for row in found]


async def test_a_decision_lies_in_the_partition_of_its_month_in_utc(
    log: ShadowLog, database_url: str
) -> None:
    last_moment = datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
    next_month = datetime(2024, 3, 1, tzinfo=UTC)
    elsewhere = datetime(2024, 1, 1, 3, tzinfo=timezone(timedelta(hours=5)))
    await log.append(
        [
            build.decision_event("february", at=last_moment),
            build.decision_event("march", at=next_month),
            build.decision_event("december in UTC", at=elsewhere),
        ]
    )
    found = rows(
        database_url,
        "SELECT tableoid::regclass::text AS part, request_id FROM decisions ORDER BY 1",
    )
    assert [tuple(row.values()) for row in found] == [
        ("decisions_202312", "december in UTC"),
        ("decisions_202402", "february"),
        ("decisions_202403", "march"),
    ]
    assert partitions(database_url) == [
        f"{table}_{month}"
        for table in sorted(PARTITIONED)
        for month in ("202312", "202402", "202403")
    ]


async def test_one_partition_is_read_for_one_decision(log: ShadowLog, database_url: str) -> None:
    await log.append(
        [build.decision_event(f"r-{m}", at=datetime(2024, m, 3, tzinfo=UTC)) for m in (1, 2, 3)]
    )
    plan = rows(
        database_url,
        "EXPLAIN SELECT * FROM decisions WHERE decision_id = %s AND as_of = %s",
        decision_id("r-2"),
        datetime(2024, 2, 3, tzinfo=UTC),
    )
    assert {
        part
        for part in partitions(database_url)
        if any(part in line["QUERY PLAN"] for line in plan)
    } == {"decisions_202402"}


async def test_retention_drops_whole_months_and_notes_it_while_keys_stay(
    log: ShadowLog, database_url: str
) -> None:
    months = [datetime(2024, month, 15, tzinfo=UTC) for month in (1, 2, 3)]
    events = [build.decision_event(f"r-{when:%m}", at=when) for when in months]
    await log.append(events)
    march, old = datetime(2024, 3, 20, tzinfo=UTC), {"202401": 1, "202402": 1}
    assert await log.months_before(march) == old
    assert len(partitions(database_url)) == 9, "asking drops nothing"
    assert await log.drop_months_before(march) == old
    assert await log.months_before(march) == {}
    assert partitions(database_url) == [f"{table}_202403" for table in sorted(PARTITIONED)]
    noted = rows(database_url, "SELECT month, decisions FROM dropped_months ORDER BY month")
    assert [tuple(row.values()) for row in noted] == [("202401", 1), ("202402", 1)]
    assert await log.decision(decision_id("r-01")) is None
    assert await log.claim(decision_id("r-01")) is not None
    again = await log.append(events)
    assert (again.inserted, again.duplicates) == ({}, 3), "what was dropped does not come back"
    assert rows(database_url, "SELECT count(*) AS n FROM decisions") == [{"n": 1}]


async def test_a_month_that_another_process_dropped_is_made_again(
    log: ShadowLog, database_url: str
) -> None:
    await log.append([build.decision_event("r-1", at=datetime(2024, 1, 3, tzinfo=UTC))])
    other = ShadowLog.connect(database_url)
    await other.drop_months_before(datetime(2024, 6, 1, tzinfo=UTC))
    await other.aclose()
    late = await log.append([build.decision_event("r-2", at=datetime(2024, 1, 4, tzinfo=UTC))])
    assert late.inserted["decisions"] == 1


async def test_times_that_no_market_had_make_no_months_and_are_read_verified_and_dropped(
    log: ShadowLog, database_url: str
) -> None:
    moments = [datetime(year, 1 + year % 12, 5, tzinfo=UTC) for year in range(1, 2009, 11)]
    moments += [
        datetime(2009, 12, 31, 23, 59, tzinfo=UTC),
        datetime(2010, 1, 1, tzinfo=UTC),
        datetime(2039, 12, 31, 23, 59, tzinfo=UTC),
        datetime(2040, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, tzinfo=UTC),
    ]
    events = [build.decision_event(f"r-{n}", at=when) for n, when in enumerate(moments)]
    await log.append(events)
    assert partitions(database_url) == [
        f"{table}_{month}" for table in sorted(PARTITIONED) for month in ("201001", "203912")
    ]
    assert rows(database_url, "SELECT count(*) AS n FROM shadow_comparison") == [
        {"n": len(moments)}
    ]
    kept = await log.decision(decision_id("r-0"))
    assert kept is not None
    assert kept.scenario.as_of == moments[0]
    assert (await verify_log(database_url)).findings == []
    assert await log.months_before(datetime(2009, 6, 1, tzinfo=UTC)) == {}
    dropped = await log.drop_months_before(datetime(2010, 1, 1, tzinfo=UTC))
    assert sum(dropped.values()) == len(moments) - 4
    assert dropped[f"{moments[0]:%Y%m}".zfill(6)] == 1
    assert rows(database_url, "SELECT count(*) AS n FROM decisions") == [{"n": 4}]
    assert (await verify_log(database_url)).findings == []
    again = await log.append([build.decision_event("late", at=moments[0]), events[0]])
    assert again.inserted["decisions"] == 1
    assert (await verify_log(database_url)).findings == []


async def test_rows_outside_the_window_of_months_move_with_the_migration(
    log: ShadowLog, database_url: str
) -> None:
    downgrade(database_url, "0006")
    upgrade(database_url)
    moments = [datetime(year, 3, 5, tzinfo=UTC) for year in (1, 1999, 2024, 2077)]
    await log.append([build.decision_event(f"r-{n}", at=when) for n, when in enumerate(moments)])
    downgrade(database_url, "0006")
    assert [name for name in partitions(database_url) if name.startswith("decisions")] == [
        f"decisions_{month}" for month in ("000103", "199903", "202403", "207703")
    ]
    await log.engine.dispose()
    upgrade(database_url)
    assert partitions(database_url) == [f"{table}_202403" for table in sorted(PARTITIONED)]
    assert (await verify_log(database_url)).findings == []


async def test_months_are_dropped_while_writers_append_and_nobody_fails(log: ShadowLog) -> None:
    async def write(number: int) -> int:
        when = datetime(2020, 1 + number % 12, 1, tzinfo=UTC)
        return (await log.append([build.decision_event(f"r-{number}", at=when)])).inserted[
            "decisions"
        ]

    async def drop(_: int) -> None:
        await log.drop_months_before(datetime(2021, 1, 1, tzinfo=UTC))

    results = await asyncio.gather(*(drop(n) if n % 8 == 7 else write(n) for n in range(48)))
    assert sum(each for each in results if each) == 42


async def test_an_unmigrated_database_says_how_to_mend_it(empty_database_url: str) -> None:
    log = ShadowLog.connect(empty_database_url)
    for attempt in (
        log.ping(),
        log.append([build.decision_event()]),
        log.get(decision_id("r-1")),
        log.latest_state(),
    ):
        with pytest.raises(ShadowLogUnavailable, match="run `advisor migrate`"):
            await attempt
    await log.aclose()


async def test_a_schema_of_another_release_is_not_ready(database_url: str) -> None:
    log = ShadowLog.connect(database_url)
    await log.ping()
    downgrade(database_url, "0001")
    with pytest.raises(ShadowLogUnavailable, match=r"at 0001, this release needs \d+"):
        await log.ping()
    await log.engine.dispose()  # Nobody is connected while the schema changes.
    upgrade(database_url)
    await log.ping()
    await log.aclose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("advisor:", "advisor:wrong"), "password authentication failed"),
        (lambda url: url.rsplit("/", 1)[0] + "/absent", 'database "absent" does not exist'),
        (lambda url: "postgresql://advisor:x@127.0.0.1:1/advisor", "[Cc]onnection refused"),
        (lambda url: "mysql://u:p@host/db", "names mysql, not Postgres"),
        (lambda url: "not a url", "cannot be read; write postgresql://"),
    ],
)
async def test_a_wrong_database_url_is_one_line_without_the_password(
    database_url: str, change: object, message: str
) -> None:
    assert callable(change)
    wrong = change(database_url)

    async def attempt() -> None:
        log = ShadowLog.connect(wrong)
        try:
            await log.ping()
        finally:
            await log.aclose()

    with pytest.raises(ShadowLogUnavailable, match=message) as caught:
        await attempt()
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)
    with pytest.raises(ShadowLogUnavailable, match=message):
        upgrade(wrong)


async def test_missing_rights_and_a_read_only_server_are_no_events_fault(
    log: ShadowLog, database_url: str
) -> None:
    name = database_url.rsplit("/", 1)[1]
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(ShadowLogUnavailable, match="read-only transaction"):
        await log.append([build.decision_event()])


async def test_an_outage_is_unavailable_and_the_log_heals_by_itself() -> None:
    with open_directory() as directory, EmbeddedPostgres(directory, fsync=False) as server:
        upgrade(server.url)
        log = ShadowLog.connect(server.url)
        await log.append([build.decision_event("r-1")])
        server.kill()
        with pytest.raises(ShadowLogUnavailable):
            await log.append([build.decision_event("r-2")])
        with pytest.raises(ShadowLogUnavailable):
            await log.ping()
        server.start()
        again = await log.append([build.decision_event("r-1"), build.decision_event("r-2")])
        assert (again.inserted["decisions"], again.duplicates) == (1, 1)
        await log.aclose()
