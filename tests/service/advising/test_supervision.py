"""Background work of a running service: what it cannot digest is told, put aside, and stops nothing
else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from app.advising.records import Records
from app.domain.canonical import decision_id
from app.domain.errors import ShadowLogRefused
from app.domain.rules.limits import read_limits
from app.journal.keys import DEAD_REQUESTS, EVENTS, REQUESTS, STATE
from app.local.servers import EmbeddedValkey
from app.processes.metrics import Metrics
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.writer import Writer
from tests.service.journal.journal_events import client, dead_letters, put
from tests.service.running import (
    ROOT,
    Running,
    drained,
    request,
    running,
    settings_for,
    until,
    writing,
)

NO_POSTGRES = "postgresql://advisor:secret@127.0.0.1:1/advisor"
CONTROLS = {"task": "controls"}


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    limits = tmp_path / "limits.toml"
    limits.write_bytes((ROOT / "limits.toml").read_bytes())
    settings = settings_for(database_url, valkey_url, tmp_path / "home")
    async with running(settings.model_copy(update={"limits": limits})) as service:
        yield service


async def report(api: Running) -> tuple[int, dict[str, Any]]:
    reply = await api.client.get("/readyz")
    return reply.status_code, reply.json()


async def put_state(api: Running, state: str) -> dict[str, Any]:
    body = {"state": state, "reason": "drill", "changed_by": "ops"}
    reply: dict[str, Any] = (await api.client.put("/state", json=body)).json()
    return reply


async def codes(api: Running, request_id: str) -> list[str]:
    reply = (await api.advise(request(request_id))).json()
    return [veto["code"] for veto in reply["vetoes"]]


def live_state(valkey_url: str, **changes: Any) -> None:
    """Write the live state as another replica, of another release, would."""
    document = {
        "recorded_at": "2100-01-01T00:00:00Z",
        "state": "HALTED",
        "reason": "r",
        "changed_by": "b",
    }
    with client(valkey_url) as connection:
        connection.set(STATE, b"00004102444800000000 " + orjson.dumps(document | changes))


async def in_state(api: Running, state: str) -> None:
    async def entered() -> bool:
        return bool((await api.client.get("/state")).json()["state"] == state)

    await until(entered)


async def test_a_halt_with_fields_of_a_newer_release_is_obeyed(
    api: Running, valkey_url: str
) -> None:
    assert await codes(api, "before") == []
    live_state(valkey_url, until="tomorrow", scope={"symbols": ["BTCUSDT"]})
    await in_state(api, "HALTED")
    assert await codes(api, "after") == ["STATE_HALTED"]
    status, found = await report(api)
    assert (status, found["status"], found["tasks"]) == (200, "ready", "up")


@pytest.mark.parametrize(
    "document", [b"garbage", b"1 [1]", b"1 \xff\xfe", b'1 {"state": "PAUSED"}', b""]
)
async def test_who_cannot_read_the_state_refuses_says_why_and_recovers(
    api: Running, valkey_url: str, document: bytes
) -> None:
    with client(valkey_url) as connection:
        connection.set(STATE, document)
    await in_state(api, "HALTED")
    assert await codes(api, "unknown") == ["STATE_HALTED"]

    async def unready() -> bool:
        status, found = await report(api)
        return (status, found["status"]) == (503, "unready") and "InvalidRecord" in found["tasks"][
            "controls"
        ]

    await until(unready)
    assert api.metric("advisor_task_up", **CONTROLS) == 0

    async def looked_again() -> bool:
        return api.metric("advisor_task_failures_total", **CONTROLS) >= 3

    await until(looked_again)
    await until(unready)
    live_state(valkey_url, state="ACTIVE")
    await in_state(api, "ACTIVE")
    assert (await report(api))[1]["tasks"] == "up"
    assert api.metric("advisor_task_up", **CONTROLS) == 1
    assert await codes(api, "again") == []


@pytest.mark.parametrize("number", ["9223372036854775808", "1" * 5000, "0x" + "f" * 40])
async def test_a_number_that_cannot_be_recorded_keeps_the_old_limits_and_states_are_followed_on(
    api: Running, valkey_url: str, number: str
) -> None:
    path = api.service.controls._path
    hashed = read_limits(path).hash()
    text = path.read_text()
    assert "max_count = 3" in text
    path.write_text(text.replace("max_count = 3", f"max_count = {number}"))

    async def refused() -> bool:
        return api.metric("advisor_limits_reload_failures_total") > 0

    await until(refused)
    assert api.service.controls.limits_of("agent").hash == hashed
    live_state(valkey_url)
    await in_state(api, "HALTED")
    assert api.metric("advisor_task_failures_total", **CONTROLS) == 0


async def test_what_is_no_request_or_was_answered_otherwise_is_put_aside_and_the_rest_is_decided(
    api: Running, valkey_url: str
) -> None:
    for key in ("later", "much-later"):
        with client(valkey_url) as connection:
            connection.xadd(REQUESTS, {"something": "else"})
            connection.xadd(REQUESTS, {"id": "a", "claim": "c", "payload": b"\xff{"})
        assert (await api.advise(request(key), Prefer="respond-async")).status_code == 202
    # Accepted by one replica, and answered by another with other content before its turn came.
    answered = await api.advise(request("twice"))
    assert answered.status_code == 200
    other = request("twice", candidate__rsi=1.0)
    with client(valkey_url) as connection:
        connection.delete(f"advisor:request:{decision_id('twice')}")
    await put(api.service.requests, str(decision_id("twice")), "sha256:x", orjson.dumps(other))
    assert (await api.advise(request("last"), Prefer="respond-async")).status_code == 202
    for key in ("later", "much-later", "last"):

        async def decided(key: str = key) -> bool:
            reply = await api.client.get(f"/decisions/{decision_id(key)}")
            return reply.status_code == 200

        await until(decided)

    async def none_waits() -> bool:
        with client(valkey_url) as connection:
            return bool(connection.xlen(REQUESTS) == 0)

    await until(none_waits)
    reasons = [letter["error"] for letter in dead_letters(valkey_url, DEAD_REQUESTS)]
    assert len(reasons) == 5
    assert any("was used before with other content" in reason for reason in reasons)
    assert api.metric("advisor_losses_total", cause="rejected_request") == 5
    assert await api.service.requests.claim_of(str(decision_id("twice"))) is None
    assert (await report(api))[1]["status"] == "ready"


async def test_garbage_among_events_is_put_aside_and_what_comes_behind_is_written(
    api: Running, valkey_url: str, database_url: str
) -> None:
    for number in range(3):
        await api.advise(request(f"r-{number}"))
        with client(valkey_url) as connection:
            entries: tuple[dict[Any, Any], ...] = (
                {"a": "b"},
                {"kind": "decision", "key": "k", "claim": "c", "payload": b"\xff"},
                {"kind": "decision", "key": b"\xff", "claim": "c", "payload": "{}"},
                {"kind": "outcome", "key": "k", "claim": "c", "payload": "[" * 2000},
                {"kind": "state_change", "key": "k", "claim": "c", "payload": '{"state": 1}'},
            )
            for fields in entries:
                connection.xadd(EVENTS, fields)
    async with writing(api.settings) as metrics:

        async def written() -> bool:
            with client(valkey_url) as connection:
                return bool(connection.xlen(EVENTS) == 0)

        async def counted() -> bool:
            cause = {"cause": "rejected_by_database"}
            return metrics.registry.get_sample_value("advisor_losses_total", cause) == 15

        await until(written)
        await until(counted)
        assert metrics.registry.get_sample_value("advisor_task_up", {"task": "writer"}) == 1
    assert (await verify_log(database_url)).decisions == 3


async def test_a_halt_that_only_the_spool_holds_is_obeyed_by_the_first_answer_after_a_restart(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = settings_for(database_url, valkey.url, tmp_path / "home")
        async with running(settings) as api:
            assert (await put_state(api, "ACTIVE"))["recorded"] == "stream"
            valkey.kill()
            assert await put_state(api, "HALTED") == {"state": "HALTED", "recorded": "spool"}
            assert await codes(api, "r-1") == ["STATE_HALTED"]
        valkey.start()
        async with running(settings) as api:
            assert await codes(api, "r-2") == ["STATE_HALTED"]

            async def empty() -> bool:
                return api.service.journal.spool_depth() == 0

            await until(empty)
            assert await codes(api, "r-3") == ["STATE_HALTED"]
            await put_state(api, "ACTIVE")
            assert await codes(api, "r-4") == []


async def test_restarted_without_valkey_postgres_tells_ids_and_state(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = settings_for(database_url, valkey.url, tmp_path / "home")
        document = request("r-1")
        async with running(settings) as api:
            first = (await api.advise(document)).json()
            assert await drained(settings) == 1
        valkey.kill()
        async with running(settings) as api:
            assert (await report(api))[1]["state"] == "ACTIVE", "nobody ever changed it"
            again = (await api.advise(document)).json()
            assert (again["repeated"], again["advices"]) == (True, first["advices"])
            conflict = await api.advise(request("r-1", candidate__rsi=1.0))
            assert conflict.status_code == 409
            fresh = (await api.advise(request("r-2"))).json()
            assert (fresh["recorded"], fresh["vetoes"]) == ("spool", [])
            assert (await put_state(api, "HALTED"))["recorded"] == "spool"
        async with running(settings) as api:
            assert await codes(api, "r-3") == ["STATE_HALTED"]


async def test_late_reports_are_taken_without_postgres_and_those_of_no_decision_are_found_later(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path / "one")
    async with running(settings) as api:
        await api.advise(request("r-1"))
        assert await drained(settings) == 1
        assert (await _reported(api, "unknown")).status_code == 404, "both were asked"
    async with running(settings_for(NO_POSTGRES, valkey_url, tmp_path / "two")) as api:
        known, unknown = await _reported(api, "r-1"), await _reported(api, "unknown")
        assert (known.status_code, unknown.status_code) == (202, 202)
        assert api.metric("advisor_reports_unchecked_total") == 1, "Valkey knows the other id"
        assert (await report(api))[1]["status"] == "degraded"
    assert await drained(settings) == 2
    findings = (await verify_log(database_url)).findings
    assert len(findings) == 1
    assert "report of a decision that is missing" in findings[0]


async def _reported(api: Running, request_id: str) -> httpx.Response:
    path = f"/decisions/{decision_id(request_id)}/agent-action"
    return await api.client.put(path, json={"decision": True})


async def test_a_defect_in_one_decision_of_many_accepted_stops_no_other(
    api: Running, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Records.append

    async def broken(self: Records, event: Any) -> Any:
        if event.key == str(decision_id("bad")):
            raise ZeroDivisionError("a defect")
        return await append(self, event)

    monkeypatch.setattr(Records, "append", broken)
    for key in ("bad", "good"):

        async def accepted(key: str = key) -> bool:
            return (await api.advise(request(key), Prefer="respond-async")).status_code == 202

        await until(accepted)

    async def decided() -> bool:
        return (await api.client.get(f"/decisions/{decision_id('good')}")).status_code == 200

    await until(decided)
    # More than one where a slow machine said 503 to what it had taken in: asked and tried again.
    letters = dead_letters(valkey_url, DEAD_REQUESTS)
    assert {letter["error"] for letter in letters} == {"ZeroDivisionError: a defect"}


async def test_head_asks_for_health_too(api: Running) -> None:
    for path in ("/healthz", "/readyz"):
        reply = await api.client.head(path)
        assert (reply.status_code, reply.content) == (200, b"")


# --- what Postgres refuses although it answers --------------------------------------------------


def told_to_postgres(database_url: str, *statements: str) -> None:
    url = database_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def test_what_postgres_refuses_though_it_answers_is_no_outage_and_told(
    api: Running, database_url: str
) -> None:
    async def limits_are(working: bool) -> None:
        async def told() -> bool:
            _, ready = await report(api)
            if working:
                return bool(ready["status"] == "ready")
            return ready["status"] == "degraded" and "limits" in ready["tasks"]

        await until(told)

    told_to_postgres(database_url, "ALTER TABLE limits_adoptions RENAME TO away")
    await limits_are(working=False)
    assert (await report(api))[1]["postgres"] == "up"
    assert (await api.advise(request("r-1"))).status_code == 200
    told_to_postgres(database_url, "ALTER TABLE away RENAME TO limits_adoptions")
    await limits_are(working=True)


async def test_each_background_task_tells_what_postgres_refuses_and_waits_in_an_outage(
    api: Running, database_url: str
) -> None:
    assert api.settings.redis_url is not None
    writer = Writer(api.settings.redis_url, ShadowLog.connect(database_url), Metrics())
    rounds = (
        api.service._tell_head,
        api.service._keep_ledger,
        writer._watch_on,
        writer._tell_worth,
    )
    tables = "chain_heads", "agent_actions", "event_links", "decisions"
    await api.advise(request("r-1"))
    await drained(api.settings)
    other = "UPDATE alembic_version SET version_num = '0001'"
    for table in tables:
        kind = "VIEW" if table == "event_links" else "TABLE"
        told_to_postgres(database_url, f"ALTER {kind} {table} RENAME TO {table}_away")
    for work in rounds:
        with pytest.raises(ShadowLogRefused):
            await work()
    told_to_postgres(database_url, other)
    for work in rounds:  # An older schema is an outage, which `/readyz` tells.
        await work()
    assert (await report(api))[1]["postgres"].startswith("the database lacks the schema")
    await writer.aclose()
