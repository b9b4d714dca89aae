"""Every process and server is killed in the middle of a load: what was answered is in Postgres,
once, as answered.

Real processes on a Postgres and a Valkey of their own, which sync what they write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.domain.canonical import decision_id
from app.domain.record.decision import Decision
from app.journal.drain import GROUP
from app.journal.keys import EVENTS
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.schemas import response
from app.shadow_log.proof.verify import verify_log
from tests.chaos.stack import Stack
from tests.conftest import open_directory
from tests.service.journal.journal_events import dead_letters
from tests.service.processes import losses
from tests.service.running import request, running, settings_for, until

AGENTS = 8
RETRY_S = 0.02


@pytest.fixture(scope="module")
def durable_postgres() -> Iterator[EmbeddedPostgres]:
    with open_directory() as directory, EmbeddedPostgres(directory) as server:
        yield server


@pytest.fixture
async def stack(durable_postgres: EmbeddedPostgres) -> AsyncIterator[Stack]:
    with open_directory() as home, EmbeddedValkey(home / "valkey") as valkey:
        async with Stack(durable_postgres, valkey, home, pairs=1) as stack:
            yield stack


class Load:
    """Agents that ask and report without a pause, and repeat a request until it is answered."""

    def __init__(self, url: str) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.actions: dict[str, bool] = {}
        self.refused = 0
        self._numbers = count()
        self._stop = False
        self._http = httpx.AsyncClient(base_url=url, timeout=30)

    async def agent(self) -> None:
        while not self._stop:
            number = next(self._numbers)
            key, traded = f"r-{number}", number % 3 == 0
            document = self.documents[key] = request(key, candidate__rsi=number % 100)
            self.answers[key] = (await self._insist("POST", "/advise", document)).json()
            if number % 2:
                path = f"/decisions/{decision_id(key)}/agent-action"
                await self._insist("PUT", path, {"decision": traded})
                self.actions[key] = traded

    async def _insist(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send until it succeeds; only an outage may refuse."""
        while True:
            try:
                reply = await self._http.request(method, path, json=body)
            except httpx.TransportError:
                await asyncio.sleep(RETRY_S)
                continue
            if reply.is_success:
                return reply
            assert reply.status_code == 503, reply.text
            self.refused += 1
            await asyncio.sleep(RETRY_S)

    async def more(self, number: int) -> None:
        """Wait for so many further answers."""
        target = len(self.answers) + number

        async def answered() -> bool:
            return len(self.answers) >= target

        await until(answered)

    async def ask_again(self, keys: list[str]) -> list[dict[str, Any]]:
        """The answers to repeats."""
        return [(await self._insist("POST", "/advise", self.documents[key])).json() for key in keys]

    async def finish(self) -> None:
        self._stop = True

    async def aclose(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def under_load(stack: Stack) -> AsyncIterator[Load]:
    """Agents ask while the block runs; after it each of them gets its last answer."""
    load = Load(stack.replicas[0].url)
    agents = [asyncio.create_task(load.agent()) for _ in range(AGENTS)]
    try:
        yield load
        await load.finish()
        await asyncio.gather(*agents)
    finally:
        for task in agents:
            task.cancel()
        await asyncio.gather(*agents, return_exceptions=True)
        await load.aclose()


async def faults(stack: Stack, load: Load) -> list[str]:
    """What is not as it should be: every answer in Postgres exactly once, as it was given, and
    nothing lost or put aside."""
    await stack.quiet()
    lost = sum((await losses(*(child.url for child in stack.children))).values())
    report = await verify_log(stack.database_url)
    async with stack.shadow_log() as log:
        counts = await log.counts()
        stored = {key: await log.get(decision_id(key)) for key in load.answers}
    expected = {
        "events lost": (lost, 0),
        "dead letters": (dead_letters(stack.valkey.url), []),
        "decisions": (counts["decisions"], len(load.answers)),
        "advices": (counts["advices"], len(load.answers)),
        "agent's actions": (counts["agent_actions"], len(load.actions)),
        "findings": (report.findings, []),
        "verified": ((report.decisions, report.reports), (len(load.answers), len(load.actions))),
    }
    wrong = [f"{what}: {told}" for what, (told, right) in expected.items() if told != right]
    return wrong + [key for key in load.answers if not as_given(stored[key], load, key)]


def as_given(document: dict[str, Any] | None, load: Load, key: str) -> bool:
    """Whether a decision is stored as it was answered, with what was reported on it."""
    if document is None:
        return False
    stored = Decision.from_json(document["decision"])
    given = load.answers[key] | {"repeated": False, "recorded": ""}
    reported = [load.actions[key]] if key in load.actions else []
    return (
        response(stored, repeated=False, recorded="") == given
        and document["record_hash"] == stored.hash()
        and [action["decision"] for action in document["agent_actions"]] == reported
    )


async def test_a_writer_killed_with_a_batch_in_its_hands(stack: Stack) -> None:
    [writer] = stack.writers
    async with under_load(stack) as load:
        for _ in range(2):
            await load.more(50)
            with stack.connection() as blocker:
                blocker.execute(
                    "LOCK TABLE decision_keys"
                )  # The writer waits in the middle of its transaction.

                async def in_its_hands() -> bool:
                    return bool(stack.begun())

                await until(in_its_hands)
                writer.kill()
            assert stack.hand_over(EVENTS, GROUP) > 0
            await load.more(50)
            await writer.restart()
    assert load.refused == 0, "the agents notice nothing"
    assert await faults(stack, load) == []


async def test_an_api_killed_in_the_middle_of_requests(stack: Stack) -> None:
    async with under_load(stack) as load:
        for _ in range(2):
            await load.more(60)
            await stack.replicas[0].restart()
        early = list(load.answers)[:20]
        again = await load.ask_again(early)
    given = [load.answers[key] | {"repeated": True, "recorded": "shadow_log"} for key in early]
    assert again == given, "an answer that was lost on its way is given again"
    assert await faults(stack, load) == []


async def test_a_postgres_that_stops_and_one_that_crashes(stack: Stack) -> None:
    async with under_load(stack) as load:
        for fault in (stack.postgres.stop, stack.postgres.kill):
            await load.more(60)
            await asyncio.to_thread(fault)
            await load.more(60)
            stack.postgres.start()
    assert load.refused == 0, "the agents notice nothing"
    assert await faults(stack, load) == []


async def test_a_valkey_killed_and_an_api_killed_while_it_is_away(stack: Stack) -> None:
    async with under_load(stack) as load:
        await load.more(60)
        await asyncio.to_thread(stack.valkey.kill)
        await load.more(60)
        await stack.replicas[0].restart()
        await load.more(60)
        stack.valkey.start()
        await load.more(60)
    recorded = {answer["recorded"] for answer in load.answers.values()}
    assert {"stream", "spool"} <= recorded, "both were needed"
    assert await faults(stack, load) == []


async def test_everything_at_once(stack: Stack) -> None:
    [api], [writer] = stack.replicas, stack.writers
    async with under_load(stack) as load:
        await load.more(50)
        await asyncio.to_thread(stack.postgres.kill)
        await asyncio.to_thread(stack.valkey.kill)
        await load.more(50)
        await asyncio.to_thread(writer.kill)
        await api.restart()
        await load.more(50)
        stack.valkey.start()
        await load.more(50)
        stack.postgres.start()
        await writer.restart()
        stack.hand_over(EVENTS, GROUP)
        await load.more(50)
    assert await faults(stack, load) == []


async def test_a_decision_that_waits_in_an_absent_stream_is_not_called_unknown(
    database_url: str, tmp_path: Path
) -> None:
    document, action = request("r-1"), {"decision": True}
    where = f"/decisions/{decision_id('r-1')}"
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        async with running(settings_for(database_url, valkey.url, tmp_path / "first")) as api:
            assert (await api.advise(document)).json()["recorded"] == "stream"
            assert (await api.client.put(f"{where}/agent-action", json=action)).status_code == 202
        valkey.kill()
        async with running(settings_for(database_url, valkey.url, tmp_path / "second")) as api:
            reply = await api.client.get(where)
            assert reply.status_code == 503
            assert "ask again" in reply.json()["detail"]
            late = await api.client.put(f"{where}/agent-action", json=action)
            assert (late.status_code, late.json()["recorded"]) == (202, "spool"), (
                "404 would make the agent give up its report, 503 would hold up its advice"
            )
            valkey.start()

            async def known() -> bool:
                return (await api.client.get(where)).status_code == 200

            await until(known)
            assert (await api.client.put(f"{where}/agent-action", json=action)).json()[
                "repeated"
            ] is True


def test_the_postgres_of_these_tests_does_sync_to_disk(durable_postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(durable_postgres.url.replace("+psycopg", "")) as connection:
        row = connection.execute("SHOW fsync").fetchone()
    assert row == ("on",)
