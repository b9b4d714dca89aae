"""What the service says and does while a dependency is away, locked or full: the truth, and nothing by halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from app.domain.canonical import decision_id
from app.embedded import EmbeddedPostgres, EmbeddedValkey
from app.journal.segment import SUFFIX
from app.shadow_log.log import ShadowLog
from tests.service.running import Running, drained, request, running, settings_for, until

NO_POSTGRES = "postgresql://advisor:secret@127.0.0.1:1/advisor"


async def ready(api: Running) -> tuple[int, dict[str, Any]]:
    reply = await api.client.get("/readyz")
    assert "secret" not in reply.text
    return reply.status_code, reply.json()


def require_problem(reply: httpx.Response, status: int, says: str) -> None:
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers.get("retry-after") == ("1" if status == 503 else None)
    assert says in reply.json()["detail"]
    assert "secret" not in reply.text


async def test_without_postgres_advice_goes_on_and_reads_of_the_past_say_why_not(
    valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(NO_POSTGRES, valkey_url, tmp_path)) as api:
        status, report = await ready(api)
        assert (status, report["status"], report["valkey"], report["spool"]) == (200, "degraded", "up", "up")
        assert "Connection refused" in report["postgres"]
        assert "check DATABASE_URL" in report["postgres"]
        assert api.metric("advisor_dependency_up", dependency="postgres") == 0
        document = request("r-1")
        first = (await api.advise(document)).json()
        assert first["recorded"] == "stream"
        assert (await api.advise(document)).json()["repeated"] is True, "the stream still has it"
        assert (await api.client.get(f"/decisions/{first['decision_id']}")).json()["stored"] is False
        unknown = f"/decisions/{decision_id('other')}"
        require_problem(await api.client.get(unknown), 503, "check DATABASE_URL")
        require_problem(await api.client.put(f"{unknown}/agent-action", json={"decision": True}), 503, "Postgres")
        assert "unavailable" in (await api.client.get("/models")).json()["registry"]


async def test_without_valkey_advice_is_spooled_and_trading_is_halted_until_the_state_is_known(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        valkey.kill()
        async with running(settings_for(database_url, valkey.url, tmp_path)) as api:
            status, report = await ready(api)
            assert (status, report["status"], report["postgres"], report["spool"]) == (200, "degraded", "up", "up")
            assert "check REDIS_URL" in report["valkey"]
            reply = (await api.advise(request("r-1"))).json()
            assert (reply["recorded"], reply["status"]) == ("spool", "vetoed")
            assert [veto["code"] for veto in reply["vetoes"]] == ["STATE_HALTED"]
            assert (await ready(api))[1]["spool_depth"] == 1
            require_problem(await api.advise(request("r-2"), Prefer="respond-async"), 503, "check REDIS_URL")
            assert (await api.client.get("/metrics")).status_code == 200
            assert api.metric("advisor_dependency_up", dependency="valkey") == 0
            assert api.metric("advisor_spool_depth") == 1
            valkey.start()

            async def back() -> bool:
                report = (await ready(api))[1]
                return (report["status"], report["state"], report["spool_depth"]) == ("ready", "ACTIVE", 0)

            await until(back)
            assert (await api.advise(request("r-3"))).json()["status"] == "advised"
            assert await drained(api.settings) == 2


async def test_wrong_passwords_are_told_apart_from_absence(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    locked_database = postgres.url.replace(postgres.password, "wrong-secret")
    locked_valkey = valkey.url.replace(valkey.password, "wrong-secret")
    async with running(settings_for(locked_database, locked_valkey, tmp_path)) as api:
        status, report = await ready(api)
        assert (status, report["status"]) == (200, "degraded")
        assert "password authentication failed" in report["postgres"]
        assert "AuthenticationError" in report["valkey"]
        assert (await api.advise(request("r-1"))).json()["recorded"] == "spool"


async def test_an_unmigrated_database_is_not_ready_and_what_is_recorded_waits_for_it(
    empty_database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(empty_database_url, valkey_url, tmp_path)) as api:
        _, report = await ready(api)
        assert report["status"] == "degraded"
        assert report["postgres"].endswith("run `advisor migrate`")
        assert (await api.advise(request("r-1"))).json()["recorded"] == "stream"


def spooled_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / "spool").glob(f"*{SUFFIX}"))


async def test_a_full_spool_refuses_counts_and_leaves_nothing_half_written(database_url: str, tmp_path: Path) -> None:
    limit = 65_536
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = settings_for(database_url, valkey.url, tmp_path, max_spool_bytes=limit)
        async with running(settings) as api:
            valkey.kill()
            answered: list[str] = []
            changes = 0
            while (reply := await api.advise(request(f"r-{len(answered)}"))).is_success:
                answered.append(reply.json()["request_id"])
            assert len(answered) > 2
            full = spooled_bytes(tmp_path)
            assert full <= limit
            require_problem(reply, 503, "free the disk or set ADVISOR_HOME")
            require_problem(await api.advise(request("late")), 503, f"the limit is {limit}")
            batch = (await api.advise([request("b-1"), request("b-2")])).json()
            assert [item["problem"]["status"] for item in batch] == [503, 503]
            assert spooled_bytes(tmp_path) == full, "a refused decision leaves no byte"
            for cause in ("spool_full", "journal_unavailable"):
                assert api.metric("advisor_losses_total", cause=cause) == 4
            assert api.metric("advisor_decisions_total", status="advised", model_version="scripted-1") == len(answered)
            require_problem(await api.client.get(f"/decisions/{decision_id('late')}"), 503, "ask again")
            assert (await api.client.get(f"/decisions/{decision_id(answered[0])}")).json()["stored"] is False
            status, report = await ready(api)
            assert (status, report["status"]) == (503, "unready")
            assert f"the limit is {limit}" in report["spool"]
            change = {"state": "REDUCING", "reason": "full disk", "changed_by": "ops"}
            while (await api.client.put("/state", json=change)).is_success:
                changes += 1  # A change of state is small: many fit where a decision does not.
            halt = change | {"state": "HALTED", "reason": "full disk".ljust(200, "!")}
            require_problem(await api.client.put("/state", json=halt), 503, "ADVISOR_HOME")
            assert (await api.client.get("/state")).json()["state"] == "HALTED", "halting needs no disk"
            valkey.start()

            async def empty() -> bool:
                return api.service.journal.spool_depth() == 0

            await until(empty)
            late = await api.advise(request("late"))
            assert late.json()["recorded"] == "stream"
            assert (await ready(api))[0] == 200
            assert await drained(settings) == len(answered) + changes + 1
    log = ShadowLog.connect(database_url)
    stored = [await log.decision(decision_id(key)) for key in [*answered, "late"]]
    counts = await log.counts()
    assert (counts["decisions"], counts["state_changes"]) == (len(answered) + 1, changes)
    await log.aclose()
    assert all(stored)
