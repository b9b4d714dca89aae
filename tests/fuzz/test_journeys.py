"""Whatever agents do, in whatever order, with an API and a writer that end and come back: what was
answered stands, once.

ADVISOR_FUZZ_EXAMPLES makes so many journeys (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.domain.canonical import decision_id
from app.settings import Settings
from app.shadow_log.proof.verify import verify_log
from tests.service.running import Running, request, running, settings_for, until, writing

LONG = "ADVISOR_FUZZ_EXAMPLES" in os.environ
JOURNEYS = int(os.environ.get("ADVISOR_FUZZ_EXAMPLES", "4"))
STEPS = 25
_numbers = count()


@dataclass
class Told:
    """What one id was told, and what was told of it."""

    document: dict[str, Any]
    answer: dict[str, Any] | None = None
    actions: list[float] = field(default_factory=list)
    outcomes: list[float] = field(default_factory=list)


class Journey(RuleBasedStateMachine):
    """One service on the session's servers; every step is a real request to it."""

    settings: Settings
    decided: Bundle[str] = Bundle("decided")

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.Runner()
        self.told: dict[str, Told] = {}
        self.halted = False
        self.api: Running | None = None
        self.parts = AsyncExitStack()
        self.writer: AsyncExitStack | None = None
        self.loop.run(self._start_api())
        self._state("ACTIVE")

    async def _start_api(self) -> None:
        self.api = await self.parts.enter_async_context(running(self.settings))

    def _ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        assert self.api is not None
        return self.loop.run(self.api.client.request(method, path, json=body, headers=headers))

    def _state(self, state: str) -> None:
        body = {"state": state, "reason": "journey", "changed_by": "test"}
        assert self._ask("PUT", "/state", body).status_code == 200

    @rule(target=decided, rsi=st.integers(1, 99), control=st.none() | st.booleans())
    def decide(self, rsi: int, control: bool | None) -> str:
        key = f"journey-{next(_numbers)}"
        told = self.told[key] = Told(request(key, candidate__rsi=rsi))
        if control is not None:
            told.document["agent_action"] = {"decision": control}
        reply = self._ask("POST", "/advise", told.document)
        assert reply.status_code == 200, reply.text
        told.answer = reply.json()
        assert (told.answer["repeated"], told.answer["recorded"]) == (False, "stream")
        assert told.answer["approve"] is (not self.halted)
        return key

    @rule(target=decided, number=st.integers(1, 3))
    def accept(self, number: int) -> Any:
        keys = [f"journey-{next(_numbers)}" for _ in range(number)]
        for key in keys:
            self.told[key] = Told(request(key))
        documents = [self.told[key].document for key in keys]
        reply = self._ask("POST", "/advise", documents, Prefer="respond-async")
        assert reply.status_code == 202, reply.text
        assert [each["decision"]["status"] for each in reply.json()] == ["pending"] * number
        return multiple(*keys)

    @rule(key=decided)
    def repeat(self, key: str) -> None:
        told = self.told[key]
        reply = self._ask("POST", "/advise", told.document)
        assert reply.status_code == 200, reply.text
        first = told.answer or reply.json()
        told.answer = first
        same = first | {"repeated": reply.json()["repeated"], "recorded": reply.json()["recorded"]}
        assert reply.json() == same

    @rule(key=decided)
    def contradict(self, key: str) -> None:
        if self.told[key].answer is None:  # Accepted only: whoever is decided first counts.
            return
        other = self.told[key].document | {"ages": {"rsi": 7.0}}
        assert self._ask("POST", "/advise", other).status_code == 409

    @precondition(lambda self: any(told.answer for told in self.told.values()))
    @rule(key=decided, confidence=st.floats(0, 1), traded=st.booleans())
    def act(self, key: str, confidence: float, traded: bool) -> None:
        if self.told[key].answer is None or confidence in self.told[key].actions:
            return
        body = {"decision": traded, "llm_confidence": confidence}
        reply = self._ask("PUT", f"/decisions/{decision_id(key)}/agent-action", body)
        assert (reply.status_code, reply.json()["repeated"]) == (202, False)
        self.told[key].actions.append(confidence)

    @rule(key=consumes(decided), earned=st.floats(-1, 3))
    def end(self, key: str, earned: float) -> None:
        if self.told[key].answer is None:
            return
        body = {"arm": "agent", "outcome": "time_exit", "r_multiple": earned}
        where = f"/decisions/{decision_id(key)}/outcome"
        assert self._ask("PUT", where, body).json()["repeated"] is False
        assert self._ask("PUT", where, body).json()["repeated"] is True
        self.told[key].outcomes.append(earned)

    @rule()
    def ask_for_what_never_was(self) -> None:
        assert self._ask("GET", f"/decisions/{decision_id('never')}").status_code == 404

    @rule()
    def halt_or_resume(self) -> None:
        self.halted = not self.halted
        self._state("HALTED" if self.halted else "ACTIVE")

    @rule()
    def restart_the_api(self) -> None:
        self.loop.run(self.parts.aclose())
        self.loop.run(self._start_api())

    @rule()
    def start_or_stop_the_writer(self) -> None:
        if self.writer is not None:
            self.loop.run(self.writer.aclose())
            self.writer = None
            return
        self.writer = AsyncExitStack()
        self.loop.run(self.writer.enter_async_context(writing(self.settings)))

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            if self.writer is None:
                self.start_or_stop_the_writer()
            for key, told in self.told.items():
                self._require_stored(key, told)
        finally:
            if self.writer is not None:
                self.loop.run(self.writer.aclose())
            self.loop.run(self.parts.aclose())
            self.loop.close()

    def _require_stored(self, key: str, told: Told) -> None:
        """It arrives in the log, with every report in the order in which it was told."""
        assert self.api is not None
        get = self.api.client.get
        expected = len(told.actions) + ("agent_action" in told.document), len(told.outcomes)
        stored: dict[str, Any] = {}

        async def arrived() -> bool:
            nonlocal stored
            stored = (await get(f"/decisions/{decision_id(key)}")).json()
            if not stored.get("stored"):
                return False
            return (len(stored["agent_actions"]), len(stored["outcomes"])) == expected

        self.loop.run(until(arrived))
        if told.answer is not None:
            assert stored["decision"]["advices"][0]["status"] == told.answer["status"]
        reported = [action["llm_confidence"] for action in stored["agent_actions"]]
        assert reported[len(reported) - len(told.actions) :] == told.actions
        assert [outcome["r_multiple"] for outcome in stored["outcomes"]] == told.outcomes


@pytest.fixture
def service(database_url: str, valkey_url: str, tmp_path: Path) -> Settings:
    """Settings of a service whose servers live as long as all journeys."""
    return settings_for(database_url, valkey_url, tmp_path)


def test_what_was_answered_stands_on_every_journey(service: Settings) -> None:
    here = type("Journey", (Journey,), {"settings": service})
    steps = settings(max_examples=JOURNEYS, stateful_step_count=STEPS, derandomize=not LONG)
    run_state_machine_as_test(here, settings=steps)
    assert asyncio.run(findings(service)) == []


async def findings(service: Settings) -> list[str]:
    """What `advisor verify` names once the stream is empty: a writer that was ended in the middle
    of a batch leaves it to the next."""
    async with running(service) as api, writing(service):

        async def moved() -> bool:
            events, _ = await api.service.journal.backlog()
            return not events and not api.service.journal.spool_depth()

        await until(moved)
    assert service.database_url is not None
    return (await verify_log(service.database_url)).findings
