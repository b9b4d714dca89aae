"""Records that an earlier release wrote stay verifiable, and the views of today read them.

`recordings/schema_0004.sql` is what the release at commit 6ee05bc wrote at revision 0004, dumped
with COPY: its service answered eight requests with two scripted versions, and took reports on them.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify
from app.shadow_log.schema.migrate import downgrade, upgrade
from tests.service.shadow_log.test_log import rows

RECORDING = Path(__file__).parent / "recordings" / "schema_0004.sql"
MONTHS = (("202610", "2026-10-01", "2026-11-01"), ("202611", "2026-11-01", "2026-12-01"))


@pytest.fixture
async def earlier_url(empty_database_url: str) -> str:
    """A database at revision 0004 with the recorded rows."""
    upgrade(empty_database_url, "0004")
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as connection:
        for month, first, end in MONTHS:
            for table in ("decisions", "advices"):
                connection.execute(
                    f"CREATE TABLE {table}_{month} PARTITION OF {table}"
                    f" FOR VALUES FROM ('{first} 00:00:00+00') TO ('{end} 00:00:00+00')"
                )
        for block in RECORDING.read_text().strip().split("\n\n"):
            statement, _, lines = block.removesuffix("\\.").partition("\n")
            with connection.cursor().copy(statement.encode()) as copy:
                copy.write(lines)
    return empty_database_url


async def verified(url: str) -> str:
    log = ShadowLog.connect(url)
    summary = (await verify(log.engine)).summary()
    await log.aclose()
    return summary


async def test_records_of_an_earlier_release_verify_after_migration(earlier_url: str) -> None:
    upgrade(earlier_url)
    assert await verified(earlier_url) == (
        "8 decisions, 17 reports: every hash matches, every decision replays, no gaps"
    )


R = pytest.approx
"""Every plan: 0.01 at 40,000 with the stop at 39,382, so one R is 6.18."""
EXPECTED = {
    # Advised 0.0025 at a stop of 39,382: own risk 1.545; net 9.39.
    ("old-quarter", "scripted-1"): (None, R(9.39 / 6.18)),
    ("old-quarter", "scripted-2"): (None, None),
    # The agent's net of -6.8 wins over the -1.1 that it reported over its own risk of 6.28.
    # Advised 0.00375 at 39,588: own risk 1.545, -1.2 of which was reported without money.
    ("old-half", "scripted-1"): (R(-6.8 / 6.18), R(-1.2 * 0.25)),
    ("old-half", "scripted-2"): (R(-6.8 / 6.18), R(-2.575 / 6.18)),
    # Corrected once: the newest outcome counts.
    ("old-reject", "scripted-1"): (R(1.0), 0.0),
    ("old-reject", "scripted-2"): (R(1.0), None),
    # No money was reported: over the plan's risk already.
    ("old-vetoed", "scripted-1"): (R(-0.5), None),
    ("old-vetoed", "scripted-2"): (R(-0.5), None),
    ("old-run/ETHUSDT/20261123T1200", "scripted-1"): (R(2.0), R(2.06 / 6.18)),
    ("old-run/ETHUSDT/20261123T1200", "scripted-2"): (R(2.0), None),
}


async def test_views_read_an_earlier_releases_outcomes_in_r_of_the_plan(earlier_url: str) -> None:
    upgrade(earlier_url)
    found = {
        (row["request_id"], row["model_version"]): (row["agent_r"], row["advice_r"])
        for row in rows(earlier_url, "SELECT * FROM shadow_comparison")
    }
    assert {key: found[key] for key in EXPECTED} == EXPECTED
    assert {found[key] for key in found.keys() - EXPECTED.keys()} == {(None, None)}
    (book,) = rows(earlier_url, "SELECT * FROM paper_books WHERE arm = 'advice'")
    assert (book["r"], book["return_on_own_risk"]) == (R(2.06 / 6.18), R(2.06 / 1.545))
    vetoed = rows(earlier_url, "SELECT code, r_saved FROM veto_value ORDER BY code")
    assert [tuple(row.values()) for row in vetoed] == [
        ("BTC_TREND_CONFLICT", 0.5),
        ("SPREAD", 0.5),
    ]


async def test_a_database_with_rows_goes_back_to_the_earlier_schema_and_up_again(
    earlier_url: str,
) -> None:
    before = rows(earlier_url, "SELECT * FROM disagreements ORDER BY request_id, model_version")
    upgrade(earlier_url)
    after = rows(earlier_url, "SELECT * FROM disagreements ORDER BY request_id, model_version")
    assert after != before
    downgrade(earlier_url, "0004")
    assert before == rows(
        earlier_url, "SELECT * FROM disagreements ORDER BY request_id, model_version"
    )
    with psycopg.connect(earlier_url.replace("+psycopg", "")) as connection:
        connection.execute("SET ROLE advisor_analyst")
        connection.execute("SELECT * FROM paper_books, veto_value, agreement_daily")
    upgrade(earlier_url)
    assert await verified(earlier_url) == (
        "8 decisions, 17 reports: every hash matches, every decision replays, no gaps"
    )
