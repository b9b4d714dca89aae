"""The runbook covers every alert, and what it tells people to do works on real servers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app.domain.canonical import decision_id
from app.journal.keys import DEAD, EVENTS
from app.journal.segment import Segment, encode
from app.journal.stream import bury_command
from app.local.servers import EmbeddedPostgres
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from tests import builders as build
from tests.deploy.monitoring import alerts
from tests.deploy.prometheus_tool import ROOT
from tests.service.journal.journal_events import client, dead_letters
from tests.service.processes import advisor
from tests.service.running import drained, running, settings_for, until

RUNBOOK = ROOT / "docs" / "runbook.md"


def anchor(heading: str) -> str:
    """What a heading is linked by: lower case, words joined by hyphens, without punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections() -> dict[str, str]:
    """Text by heading, of level three."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(heading: str, language: str) -> str:
    """The block of code in a section."""
    (block,) = re.findall(
        rf"^```{language}\n(.*?)^```$", sections()[heading], re.MULTILINE | re.DOTALL
    )
    return str(block)


def test_every_alert_leads_to_a_section_that_says_what_it_means_how_to_look_and_how_to_mend() -> (
    None
):
    chapter = RUNBOOK.read_text().split("\n## ")[1]
    described = re.findall(r"^### (.+)$", chapter, re.MULTILINE)
    assert described == [rule["alert"] for rule in alerts()], (
        "one section for each alert, in the rules' order"
    )
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{anchor(rule['alert'])}"
        for part in ("Means", "Look", "Mend"):
            assert f"- **{part}**: " in sections()[rule["alert"]], f"{rule['alert']} lacks {part}"


def test_links_within_the_runbook_lead_to_its_sections() -> None:
    links = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text()))
    assert links
    assert links - {anchor(heading) for heading in sections()} == set()


async def test_what_postgres_refused_is_put_back_and_second_answers_stay(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    refused, second = build.decision_event("r-1"), build.decision_event("r-2")
    with client(valkey_url) as valkey:
        for event, reason in (
            (refused, "DataError: bad row"),
            (second, "decision r-2 was answered twice"),
        ):
            fields = {
                "kind": event.kind.value,
                "key": event.key,
                "claim": event.claim,
                "payload": event.payload,
            }
            valkey.execute_command(*bury_command(fields, reason))
        moved = valkey.eval(code("The dead-letter stream", "lua"), 2, DEAD, EVENTS)
    assert moved == 1
    assert [letter["key"] for letter in dead_letters(valkey_url)] == [second.key]
    assert await drained(settings_for(database_url, valkey_url, tmp_path)) == 1
    log = ShadowLog.connect(database_url)
    stored = await log.decision(decision_id("r-1"))
    await log.aclose()
    assert stored == refused.record()


async def test_the_command_that_drops_old_months_shows_them_and_drops_them(
    database_url: str,
) -> None:
    log = ShadowLog.connect(database_url)
    for month in (11, 12):
        await log.append(
            [build.decision_event(f"r-{month}", at=datetime(2025, month, 3, tzinfo=UTC))]
        )
    await log.append([build.decision_event("r-1", at=datetime(2026, 1, 3, tzinfo=UTC))])
    show, drop = code("Dropping old months", "").splitlines()
    for line, says, left in ((show, "nothing is dropped", 3), (drop, "dropped 2 months", 1)):
        name, *arguments = line.split()
        assert name == "advisor"
        done = advisor({**os.environ, "DATABASE_URL": database_url}, *arguments)
        assert done.returncode == 0, done.stderr
        first, second, summary = done.stderr.splitlines()
        assert (first[:7], second[:7]) == ("2025-11", "2025-12")
        assert summary.startswith(says)
        assert (await log.counts())["decisions"] == left
    await log.aclose()
    assert (await verify_log(database_url)).findings == []


async def test_a_spool_that_is_copied_into_a_running_service_reaches_the_stream(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    event = build.decision_event("r-1")
    (tmp_path / "gone").mkdir()
    segment = Segment.create(tmp_path / "gone")
    segment.append([encode(event)])
    segment.close()
    async with running(settings_for(database_url, valkey_url, tmp_path / "home")) as service:
        shutil.copy(segment.path, service.settings.spool_dir)

        async def recorded() -> bool:
            return (await service.client.get(f"/decisions/{decision_id('r-1')}")).status_code == 200

        await until(recorded)
        copied = service.settings.spool_dir / segment.path.name

        async def deleted() -> bool:
            return not copied.exists()

        await until(deleted)
    assert await drained(service.settings) == 1


LEFT = "SELECT count(*) FROM pg_database WHERE datname LIKE 'advisor_drill_%'"


class Drill:
    """Drills of one database with a few records, as somebody with Postgres' programs makes them."""

    def __init__(self, postgres: EmbeddedPostgres, database_url: str, folder: Path) -> None:
        self.url = database_url
        self.dump = folder / "advisor.dump"
        self.environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "PATH": f"{postgres.tools}:{os.environ['PATH']}",
        }

    def __call__(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return advisor(self.environment | environment, "drill", str(self.dump), *options)

    def owner(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True)


@pytest.fixture
async def drill(postgres: EmbeddedPostgres, database_url: str, tmp_path: Path) -> Drill:
    log = ShadowLog.connect(database_url)
    await log.append(
        [
            build.decision_event("r-1", control=True),
            build.decision_event("r-2"),
            build.state_event(),
        ]
    )
    await log.aclose()
    return Drill(postgres, database_url, tmp_path)


def test_the_drill_restores_verifies_and_leaves_nothing_behind(drill: Drill) -> None:
    assert "\nadvisor drill advisor.dump " in sections()["Backing up"]
    done = drill("--keep")
    assert done.returncode == 0, done.stderr
    assert "verified 2 decisions" in done.stderr
    assert drill.dump.stat().st_size > 0
    (kept,) = re.findall(r"^(advisor_drill_\d+) stays$", done.stderr, re.MULTILINE)
    restored = make_url(drill.url).set(drivername="postgresql", database=kept)
    with (
        psycopg.connect(restored.render_as_string(hide_password=False)) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="append-only"),
    ):
        connection.execute("DELETE FROM decisions")
    with drill.owner() as owner:
        owner.execute(f"DROP DATABASE {kept}".encode())
        owner.execute("ALTER TABLE decisions DISABLE TRIGGER USER")
        owner.execute("UPDATE decisions SET symbol = 'XRPUSDT' WHERE request_id = 'r-1'")
        done = drill()
        assert (done.returncode, "wrong: " in done.stderr) == (1, True)
        assert owner.execute(LEFT).fetchone() == (0,)


def test_a_drill_beside_a_running_service_needs_no_more_than_that_has(
    drill: Drill, tmp_path: Path
) -> None:
    (tmp_path / "addresses").write_text(f"OWNER_DATABASE_URL={drill.url}\n")
    beside = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    beside |= {"ADVISOR_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert advisor(beside, "drill", str(drill.dump)).returncode == 0
    with drill.owner() as owner:
        assert owner.execute(LEFT).fetchone() == (0,)


def test_a_drill_that_cannot_be_made_says_why(drill: Drill) -> None:
    for odd in ("no address", "postgresql://127.0.0.1:1/nowhere"):
        refused = drill("--server", odd)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 2 if "//" in odd else 1)
    assert "pg_dump is not installed" in drill(PATH="/nowhere").stderr
