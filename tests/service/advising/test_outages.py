"""What the service says and does while a dependency is away, locked or full: the truth, and nothing
by halves."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import QueuePool
from structlog.testing import capture_logs

from app.domain.canonical import decision_id
from app.journal.segment import SUFFIX
from app.local.servers import EmbeddedPostgres, EmbeddedValkey, postgres_processes
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema.migrate import upgrade
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
        assert (status, report["status"], report["valkey"], report["spool"]) == (
            200,
            "degraded",
            "up",
            "up",
        )
        assert "Connection refused" in report["postgres"]
        assert "check DATABASE_URL" in report["postgres"]
        assert api.metric("advisor_dependency_up", dependency="postgres") == 0
        document = request("r-1")
        first = (await api.advise(document)).json()
        assert first["recorded"] == "stream"
        assert (await api.advise(document)).json()["repeated"] is True, "the stream still has it"
        assert (await api.client.get(f"/decisions/{first['decision_id']}")).json()[
            "stored"
        ] is False
        unknown = f"/decisions/{decision_id('other')}"
        require_problem(await api.client.get(unknown), 503, "check DATABASE_URL")
        late = await api.client.put(f"{unknown}/agent-action", json={"decision": True})
        assert (late.status_code, late.json()["recorded"]) == (202, "stream"), "nobody can tell"
        assert "unavailable" in (await api.client.get("/models")).json()["registry"]


async def test_without_valkey_advice_is_spooled_and_trading_is_halted_until_the_state_is_known(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        valkey.kill()
        async with running(settings_for(database_url, valkey.url, tmp_path)) as api:
            status, report = await ready(api)
            assert (status, report["status"], report["postgres"], report["spool"]) == (
                200,
                "degraded",
                "up",
                "up",
            )
            assert "check REDIS_URL" in report["valkey"]
            reply = (await api.advise(request("r-1"))).json()
            assert (reply["recorded"], reply["status"]) == ("spool", "vetoed")
            assert [veto["code"] for veto in reply["vetoes"]] == ["STATE_HALTED"]
            assert (await ready(api))[1]["spool_depth"] == 1
            require_problem(
                await api.advise(request("r-2"), Prefer="respond-async"), 503, "check REDIS_URL"
            )
            assert (await api.client.get("/metrics")).status_code == 200
            assert api.metric("advisor_dependency_up", dependency="valkey") == 0
            assert api.metric("advisor_spool_depth") == 1
            valkey.start()

            async def back() -> bool:
                report = (await ready(api))[1]
                return (report["status"], report["state"], report["spool_depth"]) == (
                    "ready",
                    "ACTIVE",
                    0,
                )

            await until(back)
            assert (await api.advise(request("r-3"))).json()["status"] == "advised"
            assert await drained(api.settings) == 2


@contextmanager
def silent_server() -> Iterator[int]:
    """A port whose connections the kernel accepts, and nobody ever answers."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@contextmanager
def frozen(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Every process of a server holds still: its connections stay open, and nothing is answered."""
    assert postgres.pid is not None
    pids = [
        pid
        for pid in postgres_processes(Path(os.readlink(f"/proc/{postgres.pid}/cwd")))
        if pid != postgres.pid
    ]
    for pid in (
        postgres.pid,
        *pids,
    ):  # The postmaster first, so that no process is born in between.
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (postgres.pid, *pids):
            os.kill(pid, signal.SIGCONT)


SILENT = "no answer within 1 s"


async def test_a_postgres_that_accepts_and_says_nothing_does_not_hold_up_a_scrape_or_a_health_check(
    valkey_url: str, tmp_path: Path
) -> None:
    with silent_server() as port:
        url = f"postgresql://advisor:secret@127.0.0.1:{port}/advisor"
        async with running(settings_for(url, valkey_url, tmp_path)) as api:
            status, report = await ready(api)
            assert (status, report["status"], report["valkey"]) == (200, "degraded", "up")
            assert report["postgres"].startswith(SILENT), (
                "rather than what the driver says after its own time-out"
            )
            assert (await api.client.get("/metrics")).status_code == 200
            assert api.metric("advisor_dependency_up", dependency="postgres") == 0
            assert api.metric("advisor_dependency_up", dependency="valkey") == 1


async def test_a_postgres_that_freezes_is_asked_one_question_and_found_again_when_it_thaws(
    postgres: EmbeddedPostgres, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        assert (await ready(api))[1]["postgres"] == "up"
        with frozen(postgres):
            for _ in range(3):
                assert (await ready(api))[1]["postgres"].startswith(SILENT)
            pool = api.service.shadow_log.engine.pool
            assert isinstance(pool, QueuePool)
            held = pool.checkedout()
            assert held <= 3, (
                "one for all questions, one for the follower of versions, one for that of limits;"
                " else each would keep its own"
            )
            assert (await api.advise(request("r-1"))).json()["recorded"] == "stream"

        async def found() -> bool:
            return (await ready(api))[1]["postgres"] == "up"

        await until(found)


async def test_a_service_stops_while_postgres_is_frozen(
    postgres: EmbeddedPostgres, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        assert (await ready(api))[1]["postgres"] == "up"
        with frozen(postgres):
            assert (await ready(api))[1]["postgres"].startswith(SILENT)
            await api.service.aclose()


async def test_while_valkey_is_away_a_scrape_still_says_whether_postgres_answers(
    empty_database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        async with running(settings_for(empty_database_url, valkey.url, tmp_path)) as api:
            valkey.kill()
            await api.client.get("/metrics")
            assert api.metric("advisor_dependency_up", dependency="postgres") == 0, (
                "it lacks the schema"
            )
            upgrade(empty_database_url)
            await api.client.get("/metrics")
            assert api.metric("advisor_dependency_up", dependency="postgres") == 1
            assert api.metric("advisor_dependency_up", dependency="valkey") == 0


async def test_an_outage_is_logged_when_it_begins_and_not_with_every_attempt(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey, capture_logs() as lines:
        valkey.kill()
        async with running(settings_for(NO_POSTGRES, valkey.url, tmp_path)) as api:
            attempts = Counter[str]()
            look, take = api.service.controls.start, api.service.requests.take

            async def looked() -> None:
                attempts["state"] += 1
                await look()

            async def taken() -> Any:
                attempts["requests"] += 1
                return await take()

            api.service.controls.start = looked  # type: ignore[method-assign]
            api.service.requests.take = taken  # type: ignore[method-assign]

            async def tried_often() -> bool:
                return min(attempts["state"], attempts["requests"]) >= 3

            await until(tried_often)
    said = Counter(line["event"] for line in lines if line["log_level"] in ("warning", "error"))
    assert said == {
        "stream is away, spooling to disk": 1,
        "trading state unknown, HALTED until it is known or set": 1,
        "accepted requests wait": 1,
        "spool waits": 1,
    }


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


async def fill(api: Running) -> tuple[list[str], httpx.Response]:
    """Ask until a decision is refused: the ids that were answered, and the refusal."""
    answered: list[str] = []
    while (reply := await api.advise(request(f"r-{len(answered)}"))).is_success:
        answered.append(reply.json()["request_id"])
    return answered, reply


async def change_until_refused(api: Running) -> int:
    """How many changes of state fit, which are small: many do where a decision does not."""
    change = {"state": "REDUCING", "reason": "full disk", "changed_by": "ops"}
    changes = 0
    while (await api.client.put("/state", json=change)).is_success:
        changes += 1
    halt = change | {"state": "HALTED", "reason": "full disk".ljust(200, "!")}
    require_problem(await api.client.put("/state", json=halt), 503, "ADVISOR_HOME")
    state = (await api.client.get("/state")).json()["state"]
    assert state == "HALTED", "halting needs no disk"
    return changes


async def test_a_full_spool_refuses_counts_and_leaves_nothing_half_written(
    database_url: str, tmp_path: Path
) -> None:
    limit = 65_536
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = settings_for(database_url, valkey.url, tmp_path, max_spool_bytes=limit)
        async with running(settings) as api:
            valkey.kill()
            answered, refusal = await fill(api)
            assert len(answered) > 2
            full = spooled_bytes(tmp_path)
            assert full <= limit
            require_problem(refusal, 503, "free the disk or set ADVISOR_HOME")
            require_problem(await api.advise(request("late")), 503, f"the limit is {limit}")
            batch = (await api.advise([request("b-1"), request("b-2")])).json()
            assert [item["problem"]["status"] for item in batch] == [503, 503]
            assert spooled_bytes(tmp_path) == full, "a refused decision leaves no byte"
            for cause in ("spool_full", "journal_unavailable"):
                assert api.metric("advisor_losses_total", cause=cause) == 4
            assert api.metric(
                "advisor_decisions_total", status="advised", model_version="scripted-1"
            ) == len(answered)
            require_problem(
                await api.client.get(f"/decisions/{decision_id('late')}"), 503, "ask again"
            )
            assert (await api.client.get(f"/decisions/{decision_id(answered[0])}")).json()[
                "stored"
            ] is False
            status, report = await ready(api)
            assert (status, report["status"]) == (503, "unready")
            assert f"the limit is {limit}" in report["spool"]
            changes = await change_until_refused(api)
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
