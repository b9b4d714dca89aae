"""`advisor what-if` on rows of a real log."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.advising.hindsight import Hindsight
from app.domain.errors import AbstainReason, InvalidRecord, UnknownVersion
from app.domain.record.decision import Abstention
from app.domain.record.event import Event
from app.domain.what_if.judge import Judge
from app.domain.what_if.past import ADVICE, AGENT, Grade, Past, Said, Traded
from app.policy.options import BackendOptions
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.what_if import Asked, Missing, pasts, tallied
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.running import ROOT, rival_version

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


async def test_what_the_agent_traded_of_its_plan_is_read_beside_it(database_url: str) -> None:
    half = build.action_event("w0", build.agent_action(quantity=0.125, stop=1970.0))
    lost = build.outcome_event("w0", build.outcome("agent", net_pnl=-3.75))
    log = ShadowLog.connect(database_url)
    try:
        await log.append([build.decision_event("w0"), half, lost])
    finally:
        await log.aclose()
    [it] = await read(database_url)
    assert (it.agent_quantity, it.agent_r) == (0.125, -0.5)


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


OTHER, ELSEWHERE = "other-1", "elsewhere-1"


async def recorded_by_versions(database_url: str) -> None:
    """Four decisions that the primary approves and the agent trades: one has the other version's
    rejection beside it, one its abstention, one came to it later, one it never read. RSI 60 to
    63."""
    log = ShadowLog.connect(database_url)
    shadows: list[list[tuple[str, Any]]] = [
        [(OTHER, "A")], [(OTHER, Abstention(AbstainReason.DEADLINE))], [], []
    ]  # fmt: skip
    made = [
        build.decision(
            f"v{i}", label="I", shadows=each, at=build.AS_OF + timedelta(hours=i), control=True,
            candidate__rsi=60.0 + i,
        )
        for i, each in enumerate(shadows)
    ]  # fmt: skip
    events = [Event.of_decision(each) for each in made]
    events.append(build.late_advice_event(made[2], "A", OTHER))
    # 36 more on 0.25 are 9, less 1 of fees and 0.5 of slippage: 1 R.
    told = {"net_pnl": 7.5, "exit_price": 2036.0, "fees": 1.0, "slippage": 0.5}
    lost = {"net_pnl": -7.5, "exit_price": 1976.0, "fees": 1.0, "slippage": 0.5}
    events += [
        build.outcome_event("v0", build.outcome("agent", exit_time=build.AS_OF, **lost)),
        build.outcome_event("v2", build.outcome("agent", exit_time=build.AS_OF, **told)),
        build.outcome_event("v3", build.outcome("agent", net_pnl=7.5)),
    ]
    try:
        await log.append(events)
    finally:
        await log.aclose()


async def test_what_another_version_said_is_found_beside_the_decision_and_later(
    database_url: str,
) -> None:
    await recorded_by_versions(database_url)
    found = [past async for past in pasts(database_url, Asked(), version=OTHER, trades=True)]
    assert [past.other is None for past in found] == [True, True, False, False]
    late = found[2].other
    assert isinstance(late, Said)
    assert late.advice is not None
    assert (late.version.model_version, late.advice.action) == (OTHER, "reject")
    assert found[3].other == "other-1 has not read it"
    assert found[0].trades[AGENT] == Traded(0.25, 1970.0, -7.5, 1976.0, 1.0, 0.5)
    assert found[3].trades[AGENT] == Traded(0.25, 1970.0, 7.5, None, None, None)
    with pytest.raises(UnknownVersion, match="nobody ever heard of a version 'othre'"):
        _ = [past async for past in pasts(database_url, Asked(), version="othre")]


async def test_a_version_from_disk_reads_what_it_has_not_read_evenly_and_no_more(
    database_url: str, tmp_path: Path
) -> None:
    await recorded_by_versions(database_url)
    rival_version(tmp_path, "bold-1", 62.5)
    for most, read in ((0, 0), (2, 2), (9, 4)):
        reader = Hindsight("bold-1", BackendOptions(roots=(tmp_path,)))
        told = pasts(database_url, Asked(), version="bold-1", missing=Missing(reader, most))
        others = [past.other async for past in told]
        assert [isinstance(each, Said) for each in others].count(True) == read
        await reader.aclose()
    assert isinstance(others[0], Said)
    judge = Judge(version="bold-1")
    reader = Hindsight("bold-1", BackendOptions(roots=(tmp_path,)))
    tally = await tallied(database_url, judge, Asked(), missing=Missing(reader, 9))
    advice = tally.arms[ADVICE]
    assert (advice.approved_before, advice.approved_after) == (4, 1)
    # v0 lost 1 R and v2 gained 1: both are refused now. v3 is approved either way. Of v1 no end
    # is known.
    assert (advice.judged, advice.r_before, advice.r_after) == (3, 1.0, 1.0)
    assert advice.grades == {Grade.ASSUMED: 3, Grade.UNDETERMINED: 1}
    absent = Hindsight(OTHER, BackendOptions(roots=(tmp_path,)))
    tally = await tallied(database_url, Judge(version=OTHER), Asked(), missing=Missing(absent, 9))
    whys = " ".join(tally.arms[ADVICE].whys)
    assert "other-1 has not read it, and cannot now: no directory under" in whys


async def test_the_command_asks_another_version_and_other_costs(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    await recorded_by_versions(database_url)
    variables = environment(tmp_path, database_url=database_url, redis_url=valkey_url)

    def told(*arguments: str) -> dict[str, Any]:
        done = advisor(variables, "what-if", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    document = told("--version", OTHER)
    assert document["version"] == OTHER
    advice = document["arms"]["advice"]
    assert advice["r"] == {"before": 0.0, "after": 0.0, "judged": 2}
    assert advice["approved"] == {"before": 2, "after": 0}
    assert advice["why"] == {"other-1 abstained": 1, "other-1 has not read it": 1}
    costless = told("--fee", "0", "--slippage", "0")
    assert (costless["fee"], costless["slippage"]) == (0.0, 0.0)
    agent = costless["arms"]["agent"]
    assert agent["r"]["judged"] == 2
    # -6 and 9 of prices alone, over the plan's risk of 7.5.
    assert agent["r"]["after"] == pytest.approx((-6.0 + 9.0) / 7.5)
    assert agent["grades"]["undetermined"] == 2
    assert "not told of its trade: exit price, fees, slippage" in agent["why"]
    tables = advisor(variables, "what-if", "--version", OTHER)
    assert "advice: other-1 has not read it (1 decision)" in tables.stdout + tables.stderr
    assert "UNREAD" not in tables.stdout
    for arguments, why in (
        ((), "say what would be otherwise"),
        (("--fee", "0.1"), "should be less than or equal to 0.01"),
        (("--read", "5", "--fee", "0"), "it needs --version"),
        (("--version", "nobody-1"), "nobody ever heard of a version 'nobody-1'"),
        (("--version", "nobody-1", "--read", "3"), "nobody ever heard of a version 'nobody-1'"),
    ):
        refused = advisor(variables, "what-if", *arguments)
        assert refused.returncode == 2
        assert why in " ".join(refused.stderr.split())
