"""`advisor what-if` on rows of a real log."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from app.domain.errors import InvalidRecord
from app.domain.what_if import Past
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.what_if import Asked, pasts
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.running import ROOT

TIMES = [build.AS_OF + timedelta(hours=i) for i in range(3)]


async def recorded(database_url: str) -> None:
    """Three decisions: a trade that lost 1 R, one that the agent rejected, one without a word."""
    log = ShadowLog.connect(database_url)
    events = [
        build.decision_event(f"w{i}", at=at, control=control, candidate__volatility_pct=0.8)
        for i, (at, control) in enumerate(zip(TIMES, (True, False, None), strict=True))
    ]
    lost = build.outcome("agent", net_pnl=-build.PLAN_RISK, exit_time=TIMES[1])
    events.append(build.outcome_event("w0", lost))
    try:
        await log.append(events)
    finally:
        await log.aclose()


async def read(database_url: str) -> list[Past]:
    return [past async for past in pasts(database_url, Asked())]


async def test_the_past_is_read_in_order_with_what_came_of_it(database_url: str) -> None:
    await recorded(database_url)
    first, second, third = await read(database_url)
    assert [past.decision.scenario.as_of for past in (first, second, third)] == TIMES
    assert (first.agent_approves, first.agent_r, first.closed_at) == (True, -1.0, TIMES[1])
    assert first.net_pnl == -build.PLAN_RISK
    assert (second.agent_approves, second.agent_r) == (False, None)
    assert (third.agent_approves, third.agent_r) == (None, None)
    assert [len([p async for p in pasts(database_url, Asked(TIMES[1], TIMES[2]))])] == [1]
    assert await read(database_url) == [first, second, third]


async def test_a_row_that_is_no_decision_is_named(database_url: str) -> None:
    await recorded(database_url)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM advices WHERE as_of = %s", [TIMES[1]])
    with pytest.raises(InvalidRecord, match="has no advices"):
        await read(database_url)


async def test_the_command_prints_tables_or_a_document(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    await recorded(database_url)
    variables = environment(tmp_path, database_url=database_url, redis_url=valkey_url)
    limits = tmp_path / "tight.toml"
    text = (ROOT / "limits.toml").read_text()
    assert "max_percentile = 0.9" in text
    limits.write_text(text.replace("max_percentile = 0.9", "max_percentile = 0.5"))
    told = advisor(variables, "what-if", "--limits", str(limits))
    assert told.returncode == 0, told.stderr
    assert "VOLATILITY_SPIKE" in told.stdout
    assert "1 -> 0" in told.stdout
    document = json.loads(advisor(variables, "what-if", "--limits", str(limits), "--json").stdout)
    agent = document["arms"]["agent"]
    assert agent["approved"] == {"before": 1, "after": 0}
    assert agent["r"] == {"before": -1.0, "after": 0.0, "judged": 2}
    assert agent["grades"]["undetermined"] == 1
    other = tmp_path / "other.toml"
    other.write_text(text.replace("min_ratio = 1.0", "min_ratio = 90.0"))
    still = advisor(variables, "what-if", "--limits", str(other), "--against", str(limits))
    assert "more refused before and after, by other rules" in still.stdout + still.stderr
    assert "time" not in still.stdout, "no decision changes"
    empty = advisor(variables, "what-if", "--limits", str(limits), "--until", "2001-01-01")
    assert "no decision is recorded" in empty.stdout + empty.stderr
    missing = advisor(variables, "what-if", "--limits", str(tmp_path / "none.toml"))
    assert missing.returncode == 2
    assert "none.toml" in missing.stderr
