"""A replay against the real service: every candidate is on the record, with both answers and both outcomes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from app.advise import Models
from app.client import AdvisorClient
from app.domain.agent_action import AgentAction
from app.policy.scripted import ScriptedPolicy
from app.settings import Clock
from tests.service.running import Running, running, settings_for, until, writing
from tests.training.candles import random_walk
from training.books import Book, follow
from training.feed import replayed
from training.paper import BadRunName, Judged, Paper, _order
from training.paper_tables import print_result
from training.reference_agent import Agent, Opportunity, chart, opportunities

CANDIDATES = 24


@pytest.fixture(scope="module")
def agent() -> Agent:
    return Agent([chart(random_walk(1500, seed, symbol)) for seed, symbol in ((1, "BTCUSDT"), (2, "ETHUSDT"))])


@pytest.fixture
async def service(database_url: str, valkey_url: str, tmp_path: Path, repository: Path) -> AsyncIterator[Running]:
    """As in `make demo`: rules judge at the scenario's time, by the limits for replays. It approves two of three."""
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    settings = settings.model_copy(update={"limits": repository / "deploy" / "limits.replay.toml"})
    async with running(settings, Models(ScriptedPolicy(["H", "A", "I"]))) as api, writing(settings):
        yield api


async def replay(service: Running, agent: Agent, run: str, chosen: list[Opportunity]) -> tuple[Paper, list[Judged]]:
    client = AdvisorClient(service.url, deadline_s=20)
    paper = Paper(client, run, 20.0)
    judged = await asyncio.to_thread(paper.trade, replayed(agent, chosen))
    await asyncio.to_thread(client.close, 20)
    assert client.stats().dropped == {}
    return paper, judged


def rows(service: Running, query: str) -> list[Any]:
    with psycopg.connect(str(service.settings.database_url).replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


async def recorded(service: Running, decisions: int, outcomes: int) -> None:
    async def all_there() -> bool:
        counts = await service.service.shadow_log.counts()
        return (counts["decisions"], counts["outcomes"]) == (decisions, outcomes)

    await until(all_there)


async def test_the_shadow_log_holds_what_the_replay_saw(service: Running, agent: Agent) -> None:
    paper, judged = await replay(service, agent, "first", opportunities(agent.charts)[:CANDIDATES])
    assert len(judged) == CANDIDATES
    await recorded(service, CANDIDATES, 2 * CANDIDATES)
    found = rows(
        service,
        "SELECT request_id, agent_approve, advice_approve, agent_r, advice_r FROM shadow_comparison ORDER BY as_of",
    )
    by_id = {row[0]: row[1:] for row in found}
    for one in judged:
        assert one.advice is not None
        agent_approve, advice_approve, agent_r, advice_r = by_id[one.advice["request_id"]]
        assert agent_approve is one.control.decision
        assert advice_approve is one.advice["approve"]
        assert agent_r == pytest.approx(one.agent_trade.r)
        assert advice_r == pytest.approx(one.advice_r)
    assert {one.control.decision for one in judged} == {True, False}
    assert {one.advice["status"] for one in judged if one.advice} >= {"advised"}
    total = sum(trade.net for trade in paper.agent_book.trades)
    paid = rows(service, "SELECT sum(agent_pnl) FROM shadow_comparison WHERE agent_approve")[0][0]
    assert paid == pytest.approx(total)


async def test_a_replay_taken_up_again_decides_nothing_twice(service: Running, agent: Agent) -> None:
    chosen = opportunities(agent.charts)[:8]
    _, first = await replay(service, agent, "again", chosen[:5])
    _, second = await replay(service, agent, "again", chosen)
    assert [one.advice["repeated"] for one in second if one.advice] == [True] * 5 + [False] * 3
    for before, after in zip(first, second, strict=False):
        assert before.advice is not None
        assert after.advice is not None
        assert before.advice["decision_id"] == after.advice["decision_id"]
    await recorded(service, 8, 16)


async def test_the_agent_trades_its_own_decision_whatever_the_advice(service: Running, agent: Agent) -> None:
    """Shadow mode: the agent's book is the same with a service that approves all, and without any service."""
    chosen = opportunities(agent.charts)[:CANDIDATES]
    advised, _ = await replay(service, agent, "harmless", chosen)
    absent = Paper(AdvisorClient("http://127.0.0.1:9", deadline_s=0.01), "absent", 0.01)
    alone = await asyncio.to_thread(absent.trade, replayed(agent, chosen))
    absent._client.close(0)
    assert [one.advice for one in alone] == [None] * CANDIDATES
    assert absent.agent_book.trades == advised.agent_book.trades
    assert absent.advice_book.trades == []


def printed(judged: list[Judged], agent: Book, advice: Book) -> str:
    out = StringIO()
    with AdvisorClient("http://127.0.0.1:9") as client:
        print_result(Console(file=out, width=100), judged, agent, advice, client.stats())
    return out.getvalue()


async def test_the_tables_count_what_happened(service: Running, agent: Agent) -> None:
    paper, judged = await replay(service, agent, "tables", opportunities(agent.charts)[:CANDIDATES])
    text = printed(judged, paper.agent_book, paper.advice_book)
    approved = sum(one.control.decision for one in judged)
    assert f"agent approves {approved}" in " ".join(text.split())
    differ = [one for one in judged if one.disagrees]
    assert f"Disagreements: {len(differ)}, " in text
    codes = {veto["code"] for one in judged if one.advice for veto in one.advice["vetoes"]}
    assert codes
    assert all(code in text for code in codes)


def test_tables_of_a_replay_without_answers_have_no_numbers_made_up(agent: Agent) -> None:
    at = opportunities(agent.charts)[0]
    scenario = agent.scenario(at, Book().account(at.as_of))
    trade = follow(agent.charts[at.chart].bars, _order(scenario))
    judged = Judged(scenario, AgentAction(decision=False), None, None, trade, None)
    text = printed([judged], Book(), Book())
    assert "Cohen's kappa not defined" in " ".join(text.split())
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--url", "http://127.0.0.1:9"],
            "no service at http://127.0.0.1:9 (ConnectError): start one with `advisor up`",
        ),
        (["--candidates", "0"], "Invalid value for '--candidates'"),
        (["--from", "soon"], "Invalid value for '--from'"),
        (["--live"], "no service at"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "training", "paper", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode != 0
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


async def test_a_source_that_is_none_is_one_clear_error(service: Running, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "training", "paper", "--url", service.url, "--source", str(tmp_path / "absent")),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().startswith("advisor-train: ")
    assert "absent is not a directory" in stderr.decode()
