"""A replay against the real service: every candidate is on the record, with both answers and both
outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from rich.console import Console
from shadow_advisor_client import AdvisorClient, Document

from app.advising.serving import Models
from app.domain.model.prompt import Prompt
from app.domain.record.control import AgentAction
from app.local.servers import die_with_parent
from app.policy.scripted import ScriptedPolicy
from app.settings import Clock
from tests.service.running import Running, running, settings_for, until, writing
from tests.training.support.candles import HOUR, random_walk
from tests.training.support.exchange import Clock as FeedClock
from tests.training.support.exchange import Exchange
from training.agent.reference import Agent, Opportunity, chart, opportunities
from training.live.paper.books import Book, follow
from training.live.paper.feed import LiveFeed, Moment, replayed
from training.live.paper.resolver import Resolved, resolve
from training.live.paper.run import BadRunName, Judged, Paper
from training.live.paper.tables import print_result
from training.log import decisions_of_run, reading, without_outcome
from training.market.bars import Bars
from training.outcomes.orders import plan_order

CANDIDATES = 24


@pytest.fixture(scope="module")
def agent() -> Agent:
    return Agent(
        [
            chart(random_walk(1500, seed, symbol))
            for seed, symbol in ((1, "BTCUSDT"), (2, "ETHUSDT"))
        ]
    )


@pytest.fixture
async def service(
    database_url: str, valkey_url: str, tmp_path: Path, repository: Path
) -> AsyncIterator[Running]:
    """As in `make demo`: rules judge at the scenario's time, by the limits for replays. It approves
    two of three."""
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    settings = settings.model_copy(update={"limits": repository / "deploy" / "limits.replay.toml"})
    async with running(settings, Models(ScriptedPolicy(["H", "A", "I"]))) as api, writing(settings):
        yield api


async def replay(
    service: Running, agent: Agent, run: str, chosen: list[Opportunity]
) -> tuple[Paper, list[Judged]]:
    client = AdvisorClient(service.url, deadline_s=20)
    paper = Paper(client, run, 20.0)
    judged = await asyncio.to_thread(paper.trade, replayed(agent, chosen))
    await asyncio.to_thread(client.close, 20)
    assert client.stats().dropped == {}
    return paper, judged


def rows(service: Running, query: str) -> list[Any]:
    with psycopg.connect(str(service.settings.database_url).replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


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
        "SELECT request_id, agent_approve, advice_approve, agent_r, advice_r FROM shadow_comparison"
        " ORDER BY as_of",
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


async def test_a_replay_taken_up_again_decides_nothing_twice(
    service: Running, agent: Agent
) -> None:
    chosen = opportunities(agent.charts)[:8]
    _, first = await replay(service, agent, "again", chosen[:5])
    _, second = await replay(service, agent, "again", chosen)
    assert [one.advice["repeated"] for one in second if one.advice] == [True] * 5 + [False] * 3
    for before, after in zip(first, second, strict=False):
        assert before.advice is not None
        assert after.advice is not None
        assert before.advice["decision_id"] == after.advice["decision_id"]
    await recorded(service, 8, 16)


BOOKS = """
SELECT arm, model_version, trade, symbol, as_of, exit_time, outcome, r, net_pnl, equity,
       drawdown,
       drawdown_fraction
FROM paper_books WHERE run = '{run}' ORDER BY arm, model_version, trade
"""


async def test_the_view_of_the_books_is_what_the_replay_kept(
    service: Running, agent: Agent
) -> None:
    paper, judged = await replay(service, agent, "books", opportunities(agent.charts)[:CANDIDATES])
    await recorded(service, CANDIDATES, 2 * CANDIDATES)
    found = rows(service, BOOKS.format(run="books"))
    for arm, book in (("advice", paper.advice_book), ("agent", paper.agent_book)):
        shown = [row for row in found if row[0] == arm]
        assert [(row[3], row[8]) for row in shown] == [
            (t.order.symbol, pytest.approx(t.net)) for t in book.trades
        ]
        assert len(shown) > 2
        equity = peak = 10_000.0
        for number, row in enumerate(shown, start=1):
            equity += row[8]
            peak = max(peak, equity)
            assert row[2] == number
            assert row[9:] == pytest.approx((equity, peak - equity, 1 - equity / peak))
    assert {row[1] for row in found} == {None, "scripted-1"}
    approvals = sum(one.advice_trade is not None for one in judged)
    assert approvals > len(paper.advice_book.trades), (
        "some approvals came while a trade was open: not traded"
    )


async def test_a_run_that_is_killed_and_taken_up_again_ends_with_the_books_of_one_that_was_not(
    database_url: str, valkey_url: str, tmp_path: Path, repository: Path
) -> None:
    """kill -9 while a request is under way; the service decides it, nobody hears the answer."""
    for seed, symbol in ((1, "BTCUSDT"), (2, "ETHUSDT")):
        write(random_walk(1500, seed, symbol), tmp_path / f"{symbol}_1h.parquet")
    gate, half = asyncio.Event(), CANDIDATES // 2
    asked = itertools.count(1)

    def script(prompt: Prompt) -> str:
        # Half of the second run: the next request waits at the gate.
        if next(asked) == CANDIDATES + half:
            gate.clear()
        return "HAI"[int(prompt.hash[-4:], 16) % 3]

    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    settings = settings.model_copy(update={"limits": repository / "deploy" / "limits.replay.toml"})
    policy = ScriptedPolicy(script, gate=gate)
    async with running(settings, Models(policy)) as api, writing(settings):
        gate.set()
        await command(api, tmp_path, "whole")
        first = await start(api, tmp_path, "cut")

        async def halfway() -> bool:
            return not gate.is_set() and len(policy.prompts) == CANDIDATES + half + 1

        await until(halfway)
        first.kill()
        await first.wait()
        gate.set()
        said = await command(api, tmp_path, "cut")
        assert f"candidates {CANDIDATES}" in " ".join(said.split())
        await recorded(api, 2 * CANDIDATES, 4 * CANDIDATES)
        assert rows(api, BOOKS.format(run="cut")) == rows(api, BOOKS.format(run="whole"))
        assert len(rows(api, BOOKS.format(run="cut"))) > 4
    assert len(policy.prompts) == 2 * CANDIDATES, "nothing was decided twice"


def write(bars: Bars, path: Path) -> None:
    """Bars as a file of a data directory."""
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    closed = pl.Series("closed_at", bars.closed_at * 1000).cast(pl.Datetime("ms", "UTC"))
    pl.DataFrame({"closed_at": closed, **columns}).write_parquet(path)


async def start(service: Running, source: Path, run: str) -> asyncio.subprocess.Process:
    """`advisor-train paper` as a process of its own, which ends with this one."""
    parent = os.getpid()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "training", "paper", "--url", service.url, "--source", str(source)),
        *("--candidates", str(CANDIDATES), "--run", run),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=lambda: die_with_parent(parent, signal.SIGKILL),
    )


async def command(service: Running, source: Path, run: str) -> str:
    """What it says when it is left alone."""
    process = await start(service, source, run)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


@pytest.mark.parametrize("resolver_comes_first", [False, True])
async def test_a_live_run_that_is_cut_takes_itself_up_from_the_log(
    database_url: str, valkey_url: str, tmp_path: Path, repository: Path, resolver_comes_first: bool
) -> None:
    """One run without a break, one cut with a trade open and no report sent, on the same exchange:
    the same books.

    Also when `advisor-train resolve` fills the outcomes before the run is taken up again.
    """
    markets = [random_walk(1500, 1, "BTCUSDT"), random_walk(1500, 2, "ETHUSDT")]
    begin = int(markets[0].closed_at[1000])
    end = begin + 200 * HOUR
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    settings = settings.model_copy(update={"limits": repository / "deploy" / "limits.replay.toml"})
    policy = ScriptedPolicy(lambda prompt: "HAI"[int(prompt.hash[-4:], 16) % 3])
    async with running(settings, Models(policy)) as api, writing(settings):
        whole = await follow_live(api, markets, "whole", begin, end)
        # The instant after a decision whose trade is open in both books: its outcomes are known
        # hours later.
        both = [
            j
            for j in whole.judged
            if j.control.decision and j.advice_trade in whole.advice_book.trades
        ]
        cut_at = int(both[len(both) // 2].scenario.as_of.timestamp()) + 60
        before = await follow_live(api, markets, "cut", begin, cut_at, reports=False)
        assert not before.agent_book.flat
        assert not before.advice_book.flat
        if resolver_comes_first:
            await written(api)
            assert (await asyncio.to_thread(resolve_run, api, markets, "cut"))[
                Resolved.REPORTED
            ] > 4
        after = await follow_live(api, markets, "cut", cut_at + HOUR // 2, end)
        assert 0 < len(after.judged) < len(whole.judged)
        for cut, one in (
            (after.agent_book, whole.agent_book),
            (after.advice_book, whole.advice_book),
        ):
            assert [trade[:3] for trade in cut.trades] == [trade[:3] for trade in one.trades]
            assert cut.equity == one.equity
        await written(api)
        assert (await api.service.shadow_log.counts())["decisions"] == 2 * len(whole.judged)
        books = [rows(api, BOOKS.format(run=name)) for name in ("cut", "whole")]
        assert books[0] == books[1]
        assert len(books[0]) > 6


def resolve_run(service: Running, markets: list[Bars], run: str) -> Counter[Resolved]:
    """Fill the outcomes of a run from all of the market."""
    with (
        AdvisorClient(service.url) as client,
        reading(str(service.settings.database_url)) as connection,
    ):
        bars = {each.symbol: each for each in markets}
        fates = resolve(without_outcome(connection, f"{run}/"), bars, client, lambda seconds: None)
        client.close(20)
    return fates


async def written(service: Running) -> None:
    """Wait until everything that was answered is in Postgres."""

    async def nothing_waits() -> bool:
        return (await service.service.journal.backlog())[0] == 0

    await until(nothing_waits)


async def follow_live(
    service: Running,
    markets: list[Bars],
    run: str,
    begin: float,
    end: float,
    *,
    reports: bool = True,
) -> Paper:
    """A live run on an exchange that shows its bars by a clock. Without `reports` outcomes are
    lost, as in a crash."""
    await written(service)
    with reading(str(service.settings.database_url)) as connection:
        recalled = decisions_of_run(connection, run)
    clock = FeedClock(begin, end)
    asked = {one.scenario.candidate.symbol: int(one.scenario.as_of.timestamp()) for one in recalled}
    symbols = [bars.symbol for bars in markets]
    feed = LiveFeed(
        Exchange(markets, clock), symbols, "1h", asked=asked, now=clock.now, sleep=clock.sleep
    )
    client = AdvisorClient(service.url, deadline_s=20)
    paper = Paper(client if reports else Unreported(client), run, 20.0, recalled)

    def go() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            paper.trade(feed)

    await asyncio.to_thread(go)
    await asyncio.to_thread(client.close, 20)
    assert client.stats().dropped == {}
    return paper


class Unreported(AdvisorClient):
    """A client whose reports of outcomes never leave the process."""

    def __init__(self, client: AdvisorClient) -> None:
        self.advise = client.advise  # type: ignore[method-assign]
        self.stats = client.stats  # type: ignore[method-assign]
        self.outcomes: list[Document] = []

    def report_outcome(self, decision_id: str | None, outcome: Document) -> bool:
        self.outcomes.append(outcome)
        return True


async def test_a_live_run_without_the_log_is_one_clear_error(service: Running) -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "training",
            "paper",
            "--url",
            service.url,
            "--live",
            "--source",
            "ccxt:binance",
        ),
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert "a live run takes itself up from the shadow log" in stderr.decode()


@pytest.mark.parametrize("run", ["", "a/b", "a b", "x" * 81])
def test_a_runs_name_fits_a_request_id(run: str) -> None:
    with (
        AdvisorClient("http://127.0.0.1:9") as client,
        pytest.raises(BadRunName, match="letters, digits"),
    ):
        Paper(client, run, 1.0)


def test_sigterm_ends_a_run_and_what_the_bars_tell_is_reported(agent: Agent) -> None:
    """A container is stopped so."""
    chosen = opportunities(agent.charts)[:6]
    moments = list(replayed(agent, chosen))

    def feed() -> Iterator[Moment]:
        yield from moments[:3]
        os.kill(os.getpid(), signal.SIGTERM)
        yield from moments[3:]

    before = signal.getsignal(signal.SIGTERM)
    with AdvisorClient("http://127.0.0.1:9", deadline_s=0.01) as absent:
        client = Unreported(absent)
        judged = Paper(client, "stopped", 0.01).trade_until_stopped(feed())
    assert len(judged) == sum(len(moment.opportunities) for moment in moments[:3])
    assert len(client.outcomes) == len(judged), "the agent's plans; there was no advice"
    assert signal.getsignal(signal.SIGTERM) is before


async def test_the_agent_trades_its_own_decision_whatever_the_advice(
    service: Running, agent: Agent
) -> None:
    """Shadow mode: the agent's book is the same with a service that approves all, and without any
    service."""
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
    trade = follow(agent.charts[at.chart].bars, plan_order(scenario))
    judged = Judged(scenario, AgentAction(decision=False), None, None, trade, None)
    text = printed([judged], Book(), Book())
    assert "Cohen's kappa not defined" in " ".join(text.split())
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--url", "http://127.0.0.1:9"],
            "http://127.0.0.1:9 does not answer ([Errno 111] Connection refused): is the service"
            " running? start it with `advisor up`",
        ),
        (["--candidates", "0"], "Invalid value for '--candidates'"),
        (["--from", "soon"], "Invalid value for '--from'"),
        (["--exits", "limits.toml"], "limits.toml: it has no table [exits]"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "training", "paper", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


async def test_a_source_that_is_none_is_one_clear_error(service: Running, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "training",
            "paper",
            "--url",
            service.url,
            "--source",
            str(tmp_path / "absent"),
        ),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert stderr.decode().startswith("advisor-train: ")
    assert "absent is not a directory" in stderr.decode()
