"""What the documentation shows is executed: queries on a filled shadow log, the README's curl on a
live service."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.domain.errors import AbstainReason
from app.domain.record.decision import Abstention
from app.settings import Clock
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema import tables
from bench.record.answers import answered
from tests import builders as build
from tests.service.running import Running, running, settings_for, writing
from tests.service.shadow_log.schema.test_views import foretelling

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "shadow_log.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
OLD_RECORD = "timestamptz '2017-11-26 07:30+00'"
"""What the page has written for `now()` on the demo's record."""
CURLS = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
async def filled(database_url: str) -> str:
    """Agreements, disagreements with outcomes, a veto and an abstention, of this week."""
    at, sure = datetime.now(UTC) - timedelta(days=1), build.agent_action(llm_confidence=0.65)
    log = ShadowLog.connect(database_url)
    await log.append(
        [
            build.decision_event("both", label="H", control=True, at=at),
            build.decision_event("agent-only", label="A", control=sure, at=at),
            build.outcome_event("agent-only", build.outcome(r=-1.0)),
            build.decision_event(
                "vetoed", label="H", control=True, at=at, candidate__spread_bps=40.0
            ),
            build.outcome_event("vetoed", build.outcome(r=-0.8)),
            build.decision_event("run-1/BTCUSDT/20261101T0900", label="A", control=True, at=at),
            build.outcome_event(
                "run-1/BTCUSDT/20261101T0900",
                build.outcome(r=2.0, exit_time=at, extra={"traded": True}),
            ),
            build.late_advice_event(build.decision("both", control=True, at=at)),
            build.repetition_event(build.decision("both", control=True, at=at)),
            foretelling("foretold", 0.25, at=at),
            build.outcome_event("foretold", build.outcome(r=0.5)),
            build.decision_event(
                "silent", label=Abstention(AbstainReason.DEADLINE), control=True, at=at
            ),
        ]
    )
    await log.aclose()
    return database_url.replace("+psycopg", "")


def test_the_page_has_queries() -> None:
    assert len(QUERIES) >= 20
    assert f"write `{OLD_RECORD}` in its place" in PAGE


def test_the_page_draws_every_table() -> None:
    drawing = PAGE.split("erDiagram")[1].split("```")[0]
    drawn = set(re.findall(r"\b[a-z_]+(?= [|}{])|(?<=[|{] )[a-z_]+", drawing))
    assert drawn == set(tables.metadata.tables)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.split("FROM ")[1].split()[0])
async def test_a_documented_query_answers_from_a_filled_log(filled: str, query: str) -> None:
    with psycopg.connect(filled) as connection:
        role = "advisor_reader" if "FROM decisions" in query else "advisor_analyst"
        connection.execute(f"SET ROLE {role}")
        cursor = connection.execute(query)
        assert cursor.fetchall()
        columns = [column.name for column in cursor.description or ()]
        connection.execute(query.replace("now()", OLD_RECORD))
    answer = PAGE.split(query)[1].splitlines()[2]
    assert answer == f"| {' | '.join(columns)} |", (
        "python -m bench.record.answers writes the answers anew"
    )


async def test_answers_are_written_behind_their_questions_and_again_in_their_place(
    filled: str,
) -> None:
    sql = "SELECT count(*) AS n FROM decisions WHERE as_of < now()"
    question = f"How many?\n\n```sql\n{sql}\n```\n"
    page = f"{question}\nText.\n"
    later = datetime.now(UTC) + timedelta(days=400)
    with psycopg.connect(filled) as connection:
        before = answered(page, connection, datetime(2017, 1, 1, tzinfo=UTC))
        after = answered(before, connection, later)
    assert before == f"{question}\n| n |\n| --- |\n| 0 |\n\nText.\n"
    assert after == before.replace("| 0 |", "| 6 |")


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Judging at the scenario's time, as the demo does: the README's example is not of today."""
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    async with running(settings) as live, writing(settings):
        yield live


async def test_the_readmes_curl_commands_are_answered_as_it_says(api: Running) -> None:
    assert len(CURLS) == 3
    decision_id = ""
    for command in CURLS:
        method, path, body = parsed(command, decision_id)
        answer = await api.client.request(method, path, json=body)
        assert answer.is_success, answer.text
        decision_id = answer.json()["decision_id"]
    shown = json.loads(
        re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    )
    full = (await api.client.post("/advise", json=parsed(CURLS[0], "")[2])).json()
    assert shown.keys() <= full.keys()
    assert shown["decision_id"] == full["decision_id"]
    assert shown["control_vetoes"] == full["control_vetoes"]


def parsed(command: str, decision_id: str) -> tuple[str, str, Any]:
    """Method, path and JSON body of a curl command line."""
    words = shlex.split(command.replace("\\\n", " "))
    method = words[words.index("-X") + 1] if "-X" in words else "POST"
    url = next(word for word in words if "127.0.0.1" in word)
    path = "/" + url.split("/", 3)[3]
    body = json.loads(words[words.index("-d") + 1])
    return method, path.replace("$ID", decision_id), body
