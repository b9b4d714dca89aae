"""An older backup of Postgres beside a Valkey that lived on: nothing is taken for stored that is
not, and what is missing is counted, without a restart of anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.domain.canonical import decision_id
from app.processes.metrics import Metrics
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.findings import Fault
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema.migrate import upgrade
from tests.service.advising.test_order_of_reports import actions, outcome, report, stored
from tests.service.running import (
    Running,
    drained,
    request,
    running,
    settings_for,
    until,
    writing,
)
from tests.service.shadow_log.older_backup import back_up, restore


async def moved(api: Running) -> bool:
    """Whether everything has left the queue."""
    return (await api.service.journal.backlog())[0] == 0


async def told(api: Running) -> bool:
    """Whether Postgres was told up to which number events are durable."""
    numbered = api.service.journal.numbered()
    if numbered is None:  # Something was spooled: a busy machine's Valkey may be silent for long.
        return False
    return await api.service.shadow_log.head(numbered[0]) == numbered[1]


@asynccontextmanager
async def gone_back(
    database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncIterator[tuple[Running, Metrics]]:
    """A service and its writer, whose Postgres went back to before the reports on `r-1`, and before
    `r-2`."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api, writing(settings) as writer:
        first = (await api.advise(request("r-1"))).json()["decision_id"]
        await until(lambda: moved(api))

        async def registered() -> bool:
            return bool(await api.service.shadow_log.models())

        await until(registered)
        copy = back_up(database_url)
        await report(api, first, True)
        await outcome(api, first, arm="agent", outcome="sl", r_multiple=-1.0)
        await api.advise(request("r-2"))
        await until(lambda: moved(api))
        await until(lambda: told(api))
        assert writer.registry.get_sample_value("advisor_events_missing") == 0
        restore(database_url, copy)
        yield api, writer


async def test_what_an_older_backup_lacks_is_counted_without_a_restart(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with gone_back(database_url, valkey_url, tmp_path) as (api, writer):

        async def counted() -> bool:
            return writer.registry.get_sample_value("advisor_events_missing") == 3

        await until(counted)

        async def degraded() -> bool:
            return (await api.client.get("/readyz")).json()["status"] == "degraded"

        await until(degraded)
        ready = (await api.client.get("/readyz")).json()
        assert ready["record"].startswith("it lacks what it held")
        assert "advisor verify" in ready["record"]
        await until(lambda: told(api))
        await api.advise(request("r-3"))
        await until(lambda: moved(api))
        await until(counted)
    found = await verify_log(database_url)
    assert found.missing == 3
    assert set(found.counts) == {Fault.GAP}


async def test_a_report_that_an_older_backup_lacks_is_no_repeat(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with gone_back(database_url, valkey_url, tmp_path) as (api, _):
        first = str(decision_id("r-1"))
        assert await report(api, first, True) is False
        ended = await outcome(api, first, arm="agent", outcome="sl", r_multiple=-1.0)
        assert ended is False

        async def both() -> bool:
            return bool(await stored(api, first) and await stored(api, first, "outcomes"))

        await until(both)
        assert actions(await stored(api, first)) == [(1, True)]
        assert await report(api, first, True) is True, "now it is one"


async def test_a_report_is_kept_when_nobody_can_tell_whether_it_is_stored(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Postgres is away: the report goes into the stream once more, and changes nothing there."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        first = (await api.advise(request("r-1"))).json()["decision_id"]
        await report(api, first, True)
        await drained(settings)
        log, api.service.records._log = (
            api.service.records._log,
            ShadowLog.connect("postgresql://advisor:secret@127.0.0.1:1/advisor"),
        )
        assert await report(api, first, True) is True
        api.service.records._log = log
        assert await drained(settings) == 1
        assert actions(await stored(api, first)) == [(1, True)]
    assert (await verify_log(database_url)).findings == []


async def test_an_accepted_request_whose_answer_an_older_backup_lacks_is_gone(
    database_url: str, valkey_url: str, tmp_path: Path, empty_database_url: str
) -> None:
    settings, document = settings_for(database_url, valkey_url, tmp_path), request("r-1")
    async with running(settings) as api:
        await api.advise(document)
        await drained(settings)
        assert (await api.advise(document, Prefer="respond-async")).status_code == 202
    upgrade(empty_database_url)
    async with running(settings_for(empty_database_url, valkey_url, tmp_path)) as api:
        reply = await api.advise(document, Prefer="respond-async")
        assert reply.status_code == 410, reply.text
        many = await api.advise([document, request("r-2")], Prefer="respond-async")
        assert many.status_code == 202
        gone, pending = many.json()
        assert gone["problem"]["status"] == 410
        assert pending["decision"]["status"] == "pending"
