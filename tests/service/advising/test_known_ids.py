"""An id that was answered is never answered differently: whatever the queue server forgot, and
whatever left the record since."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from app.advising.earlier import Earlier
from app.domain.canonical import decision_id
from app.domain.errors import ShadowLogUnavailable
from app.domain.record.event import Event, EventKind, StateChange
from app.domain.rules.case import TradingState
from app.journal.keys import EVENTS
from app.journal.stream import bury_command
from app.local.servers import EmbeddedValkey
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema.migrate import upgrade
from tests.service.journal.journal_events import client
from tests.service.running import Running, drained, request, running, settings_for, until

R_1 = decision_id("r-1")
NO_POSTGRES = "postgresql://advisor:secret@127.0.0.1:1/advisor"


async def test_ids_that_an_emptied_valkey_forgot_are_found_in_postgres(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings, document = settings_for(database_url, valkey_url, tmp_path), request("r-1")
    async with running(settings) as api:
        first = (await api.advise(document)).json()
    await drained(settings)
    with client(valkey_url) as connection:
        connection.flushall()
    async with running(settings) as api:
        again = (await api.advise(document)).json()
        assert (again["repeated"], again["recorded"]) == (True, "shadow_log")
        assert again["probabilities"] == first["probabilities"]
        other = request("r-1", candidate__rsi=11)
        assert (await api.advise(other)).status_code == 409
        accepted = await api.advise(other, Prefer="respond-async")
        assert accepted.status_code == 409
        assert (await api.advise(request("r-2"))).json()["recorded"] == "stream"


async def test_ids_are_found_in_postgres_while_valkey_is_away(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings, document = settings_for(database_url, valkey.url, tmp_path), request("r-1")
        async with running(settings) as api:
            await api.advise(document)
        await drained(settings)
        valkey.kill()
        async with running(settings) as api:
            assert (await api.advise(document)).json()["repeated"] is True
            assert (await api.advise(request("r-1", candidate__rsi=11))).status_code == 409
            assert (await api.advise(request("r-2"))).json()["recorded"] == "spool"


async def test_a_service_whose_valkey_is_emptied_goes_on_and_its_answers_stand(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        document = request("r-1")
        await api.advise(document)
        await drained(settings)
        with client(valkey_url) as connection:
            connection.flushall()
        reply = await api.advise(request("r-2"))
        assert reply.status_code == 503, "it was looked up in a memory that is gone: ask again"
        assert "emptied" in reply.json()["detail"]

        async def back() -> bool:
            return (await api.client.get("/readyz")).json()["status"] == "ready" and (
                api.service.journal.reachable
            )

        await until(back)
        assert (await api.advise(request("r-2"))).json()["recorded"] == "stream"
        assert (await api.advise(document)).json()["repeated"] is True


async def test_while_nobody_can_tell_only_ids_that_could_be_known_are_refused(
    valkey_url: str, tmp_path: Path
) -> None:
    before = request("r-1")
    async with running(settings_for(NO_POSTGRES, valkey_url, tmp_path)) as api:
        reply = await api.advise(before)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "may have been answered before" in reply.json()["detail"]
        assert "Postgres cannot tell" in reply.json()["detail"]
        assert (await api.advise(request("r-2"))).json()["recorded"] == "stream"
    async with running(settings_for(NO_POSTGRES, valkey_url, tmp_path)) as api:
        assert (await api.advise(request("r-3"))).json()["recorded"] == "stream"


async def test_an_answer_whose_month_was_dropped_is_gone_and_not_given_anew(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings, document = settings_for(database_url, valkey_url, tmp_path), request("r-1")
    log = ShadowLog.connect(database_url)
    async with running(settings) as api:
        await api.advise(document)
    await drained(settings)
    now = datetime.now(UTC)
    assert len(await log.drop_months_before(now.replace(year=now.year + 1))) == 1
    for forgets in (False, True):
        if forgets:
            with client(valkey_url) as connection:
                connection.flushall()
        async with running(settings) as api:
            reply = await api.advise(document)
            assert reply.status_code == 410
            assert "dropped by retention" in reply.json()["detail"]
            assert (await api.client.get(f"/decisions/{R_1}")).json() == reply.json()
            other = await api.advise(request("r-1", candidate__rsi=11))
            assert other.status_code == 409
    await log.aclose()


async def test_an_answer_that_an_older_backup_lacks_is_gone(
    database_url: str, valkey_url: str, tmp_path: Path, empty_database_url: str
) -> None:
    settings, document = settings_for(database_url, valkey_url, tmp_path), request("r-1")
    async with running(settings) as api:
        await api.advise(document)
    await drained(settings)
    upgrade(empty_database_url)
    async with running(settings_for(empty_database_url, valkey_url, tmp_path)) as api:
        reply = await api.advise(document)
        assert reply.status_code == 410
        assert "Postgres is older" in reply.json()["detail"]
        assert (await api.client.get(f"/decisions/{R_1}")).json() == reply.json()
        assert (await api.advise(request("r-1", candidate__rsi=11))).status_code == 409


async def test_an_answer_that_was_put_aside_is_gone(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    document = request("r-1")
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        await api.advise(document)
        with redis.Redis.from_url(valkey_url, protocol=2) as connection:
            ((entry, fields),) = connection.xrange(EVENTS)
            connection.execute_command(*bury_command(fields, "cannot be written"))
            connection.xdel(EVENTS, entry)
        reply = await api.advise(document)
        assert reply.status_code == 410
        assert "dead-letter stream" in reply.json()["detail"]
        assert (await api.client.get(f"/decisions/{R_1}")).json() == reply.json()


def set_back(api: Running, days: float = 40) -> None:
    """Let the service's clock go back."""
    behind = timedelta(days=days)
    api.service.now = api.service.records._now = lambda: datetime.now(UTC) - behind


@pytest.mark.parametrize("days", [0.5, 40])
@pytest.mark.parametrize("by", ["this process", "the journal", "Postgres"])
async def test_a_clock_that_was_set_back_takes_no_answer_away(
    database_url: str, valkey_url: str, tmp_path: Path, by: str, days: float
) -> None:
    settings, document = settings_for(database_url, valkey_url, tmp_path), request("r-1")
    state = {name: value for name, value in document.items() if name != "request_id"}
    chance = {"model": "scripted-1", "questions": {"approve": {"type": "noul"}}}
    ask = {"state": state, **chance}
    forms = {"input": json.dumps(state), "model": "scripted-1"}
    predicate = forms | {"questions": [{"type": "predicate", "name": "approve"}]}

    async def all_roads(api: Running) -> list[Any]:
        (listed,) = (await api.advise([document])).json()
        alone = (await api.advise(document)).json()
        asked = (await api.client.post("/v1/systemone", json=ask)).json()
        decided = (await api.client.post("/v1/decisions", json=predicate)).json()
        assert alone["repeated"] is listed["decision"]["repeated"] is True
        assert asked["advisor"]["repeated"] is decided["advisor"]["repeated"] is True
        answered = [alone["decision_id"], asked["advisor"]["decision_id"]]
        return [*answered, alone["probabilities"], asked["answers"], decided["answers"]]

    async with running(settings) as api:
        await api.advise(document)
        await api.client.post("/v1/systemone", json=ask)
        told = await all_roads(api)
        if by == "this process":
            set_back(api, days)
            await all_are_told(api, document, told, all_roads)
            return
    if by == "Postgres":
        await drained(settings)
        with client(valkey_url) as connection:
            connection.flushall()
    async with running(settings) as api:
        set_back(api, days)
        await all_are_told(api, document, told, all_roads)


async def all_are_told(
    api: Running,
    document: dict[str, Any],
    told: list[Any],
    all_roads: Callable[[Running], Awaitable[list[Any]]],
) -> None:
    """The same answers as before, and what is new is refused, as ever."""
    assert await all_roads(api) == told
    accepted = await api.advise(document, Prefer="respond-async")
    assert (accepted.status_code, accepted.json()["status"]) == (202, "pending")
    other = document | {"plan": document["plan"] | {"quantity": 0.02}}
    assert (await api.advise(other)).status_code == 409
    assert (await api.advise(other, Prefer="respond-async")).status_code == 409
    assert (await api.advise(request("r-2"))).status_code == 422
    later = await api.advise(request("r-3"), Prefer="respond-async")
    assert later.status_code == 422
    assert "is in the future" in later.json()["detail"]
    for headers in ({}, {"Prefer": "respond-async"}):
        known, new = (await api.advise([document, request("r-2")], **headers)).json()
        assert known["decision"]["decision_id"] == str(R_1)
        assert new["problem"]["status"] == 422


async def test_an_accepted_request_waits_on_when_the_clock_is_set_back(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    document = request("r-1")
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        await api.service._supervisor.aclose()  # Nobody decides what is accepted.
        accepted = await api.advise(document, Prefer="respond-async")
        set_back(api)
        again = await api.advise(document, Prefer="respond-async")
        assert (again.status_code, again.json()) == (202, accepted.json())
        other = document | {"plan": document["plan"] | {"quantity": 0.02}}
        assert (await api.advise(other)).status_code == 422, "nobody let this one in"
        assert (await api.advise(document)).json()["decision_id"] == str(R_1)


async def test_while_nobody_can_tell_a_candidate_of_the_future_is_not_refused_for_good(
    valkey_url: str, tmp_path: Path
) -> None:
    """It may have been answered before the clock was set back."""
    async with running(settings_for(NO_POSTGRES, valkey_url, tmp_path)) as api:
        set_back(api)
        for headers in ({}, {"Prefer": "respond-async"}):
            assert (await api.advise(request("r-1"), **headers)).status_code == 503


async def test_a_report_again_under_a_clock_that_was_set_back_corrects_nothing(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    reports: dict[str, dict[str, Any]] = {
        f"/decisions/{R_1}/agent-action": {"decision": True, "decided_at": soon},
        f"/decisions/{R_1}/outcome": {"arm": "agent", "outcome": "tp1", "exit_time": soon},
    }

    async def told(api: Running, **changes: Any) -> list[tuple[bool, int]]:
        replies = [(await api.client.put(p, json=r | changes)).json() for p, r in reports.items()]
        return [(reply["repeated"], len(reply["left_out"])) for reply in replies]

    async with running(settings) as api:
        await api.advise(request("r-1"))
        assert await told(api) == [(False, 0)] * 2
        set_back(api)
        assert await told(api) == [(True, 0)] * 2
        assert await told(api, extra={"x": 1}) == [(False, 1)] * 2, (
            "a correction keeps to our clock"
        )
        assert await told(api, extra={"x": 1}) == [(True, 1)] * 2
    await drained(settings)
    with client(valkey_url) as connection:
        connection.flushall()
    async with running(settings) as api:
        set_back(api)
        await told(api, extra={"x": 1})
        await drained(settings)
        stored = (await api.client.get(f"/decisions/{R_1}")).json()
        assert [len(stored[kind]) for kind in ("agent_actions", "outcomes")] == [2, 2]


async def test_a_report_again_is_no_report_too_many(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, max_reports=2)
    async with running(settings) as api:
        await api.advise(request("r-1"))
        where = f"/decisions/{R_1}/agent-action"
        said = [{"decision": True}, {"decision": False}, {"decision": False}, {"decision": True}]
        replies = [await api.client.put(where, json=each) for each in said]
        assert [reply.status_code for reply in replies] == [202, 202, 202, 429]
        assert replies[2].json()["repeated"] is True


async def test_claims_are_asked_in_groups() -> None:
    groups: list[int] = []
    known = uuid4()
    go = asyncio.Event()

    async def ask(ids: Sequence[UUID]) -> Mapping[UUID, str]:
        groups.append(len(ids))
        await go.wait()
        return {known: "sha256:a"}

    earlier = Earlier(ask)
    first = asyncio.create_task(earlier.claim(uuid4(), 10))
    others = [asyncio.create_task(earlier.claim(each, 10)) for each in (known, known, uuid4())]
    while not groups:
        await asyncio.sleep(0)
    go.set()
    assert await first is None
    assert await asyncio.gather(*others) == ["sha256:a", "sha256:a", None]
    assert sum(groups) == 3, "one id is asked for once"
    assert len(groups) <= 2
    await earlier.aclose()


async def test_a_log_that_is_silent_is_waited_for_once_and_found_again() -> None:
    go, asked = asyncio.Event(), 0

    async def ask(ids: Sequence[UUID]) -> Mapping[UUID, str]:
        nonlocal asked
        asked += 1
        await go.wait()
        return {}

    earlier = Earlier(ask)
    for _ in range(3):
        with pytest.raises(ShadowLogUnavailable, match="did not answer"):
            await earlier.claim(uuid4(), 0.01)
    assert asked == 1
    go.set()

    async def answers() -> bool:
        try:
            return await earlier.claim(uuid4()) is None
        except ShadowLogUnavailable:
            return False

    await until(answers)
    await earlier.aclose()


async def test_claims_and_what_is_held_are_those_of_the_log(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        for number in range(3):
            await api.advise(request(f"r-{number}"))
    await drained(settings)
    log = ShadowLog.connect(database_url)
    ids = [decision_id(f"r-{number}") for number in range(4)]
    claims = await log.claims(ids)
    assert sorted(claims) == sorted(ids[:3])
    assert claims[ids[0]] == await log.claim(ids[0])
    change = StateChange(
        recorded_at=datetime.now(UTC), state=TradingState.HALTED, reason="test", changed_by="me"
    )
    halted = Event.of_state_change(change)
    events = [Event(EventKind.DECISION, str(each), "sha256:a", b"{}") for each in ids]
    assert await log.holds(events[:3])
    assert not await log.holds(events), "one is missing"
    assert not await log.holds([events[0], halted])
    await log.append([halted])
    assert await log.holds([events[0], halted])
    await log.aclose()
