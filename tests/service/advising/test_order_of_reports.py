"""Of reports on the same thing the one that came last counts; only what repeats it is a repeat."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.local.servers import EmbeddedValkey
from app.shadow_log.proof.verify import verify_log
from tests.service.journal.journal_events import client
from tests.service.running import Running, drained, request, running, settings_for, until


async def report(api: Running, decision: str, action: bool, **more: Any) -> bool:
    """Whether the service calls it a repeat."""
    document = {"decision": action, **more}
    reply = await api.client.put(f"/decisions/{decision}/agent-action", json=document)
    assert reply.status_code == 202, reply.text
    repeated: bool = reply.json()["repeated"]
    return repeated


async def outcome(api: Running, decision: str, **fields: Any) -> bool:
    reply = await api.client.put(f"/decisions/{decision}/outcome", json=fields)
    assert reply.status_code == 202, reply.text
    repeated: bool = reply.json()["repeated"]
    return repeated


async def stored(api: Running, decision: str, table: str = "agent_actions") -> list[Any]:
    """Arrival and content of what the record holds, oldest first."""
    document = (await api.client.get(f"/decisions/{decision}")).json()
    assert document["stored"]
    return document[table]


def actions(rows: Sequence[Any]) -> list[tuple[int, bool]]:
    return [(row["arrival"], row["decision"]) for row in rows]


async def test_true_false_true_is_stored_as_three_and_the_last_counts(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        decision = (await api.advise(request("r-1"))).json()["decision_id"]
        said = [await report(api, decision, action) for action in (True, True, False, True, True)]
        assert said == [False, True, False, False, True]
        await drained(api.settings)
        assert actions(await stored(api, decision)) == [(1, True), (2, False), (3, True)]
        assert await report(api, decision, True) is True, "also when it is in Postgres"
        agree = api.metric("advisor_agreement_ratio", model_version="scripted-1")
        assert agree == 1.0, "the advice approves, and so does the newest report"
        compared = [
            sample.value
            for sample in next(iter(api.metrics.comparisons.collect())).samples
            if sample.name.endswith("_total")
        ]
        assert sum(compared) == 1, "a decision is compared once"
        await drained(api.settings)
    assert (await verify_log(database_url)).findings == []


async def test_a_correction_by_a_replica_whose_clock_is_behind_wins(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    first_settings = settings_for(database_url, valkey_url, tmp_path / "one")
    second_settings = settings_for(database_url, valkey_url, tmp_path / "two")
    async with running(first_settings) as first, running(second_settings) as second:
        decision = (await first.advise(request("r-1"))).json()["decision_id"]
        behind = timedelta(seconds=4)
        second.service.records._now = lambda: datetime.now(UTC) - behind
        await report(first, decision, True)
        await report(second, decision, False)
        assert await report(first, decision, False) is True, "both know what counts"
        await outcome(first, decision, arm="agent", outcome="sl", r_multiple=-1.0)
        await outcome(second, decision, arm="agent", outcome="tp1", r_multiple=1.0)
        await drained(first_settings)
        assert actions(await stored(first, decision)) == [(1, True), (2, False)]
        ended = await stored(first, decision, "outcomes")
        assert [row["outcome"] for row in ended] == ["sl", "tp1"]
        log = first.service.shadow_log
        async with log.engine.connect() as connection:
            newest = await connection.exec_driver_sql("SELECT decision FROM latest_actions")
            assert newest.scalars().all() == [False]
            newest = await connection.exec_driver_sql("SELECT outcome FROM latest_outcomes")
            assert newest.scalars().all() == ["tp1"]


async def test_each_arm_and_version_counts_by_itself(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        decision = (await api.advise(request("r-1"))).json()["decision_id"]
        same = {"outcome": "sl", "r_multiple": -1.0}
        await outcome(api, decision, arm="agent", **same)
        await outcome(api, decision, arm="agent", model_version="named", **same)
        await outcome(api, decision, arm="advice", model_version="one", **same)
        await outcome(api, decision, arm="advice", model_version="two", **same)
        await drained(api.settings)
        rows = await stored(api, decision, "outcomes")
        assert sorted((r["arm"], r["model_version"] or "", r["arrival"]) for r in rows) == [
            ("advice", "one", 1),
            ("advice", "two", 1),
            ("agent", "", 1),
            ("agent", "named", 2),
        ]


async def test_what_was_spooled_keeps_its_order_and_what_comes_after_is_later(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = settings_for(database_url, valkey.url, tmp_path)
        async with running(settings) as api:
            decision = (await api.advise(request("r-1"))).json()["decision_id"]
            await report(api, decision, True)
            valkey.kill()
            assert [await report(api, decision, a) for a in (False, False, True)] == [
                False,
                True,
                False,
            ]
            valkey.start()

            async def drained_spool() -> bool:
                return api.service.journal.spool_depth() == 0

            await until(drained_spool)
        async with running(settings) as other:
            assert await report(other, decision, True) is True
            assert await report(other, decision, False) is False
            await drained(settings)
            assert actions(await stored(other, decision)) == [
                (1, True),
                (2, False),
                (3, True),
                (4, False),
            ]
    assert (await verify_log(database_url)).findings == []


async def test_what_an_emptied_valkey_forgot_is_found_in_postgres(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        decision = (await api.advise(request("r-1"))).json()["decision_id"]
        for action in (True, False):
            await report(api, decision, action)
        await drained(settings)
    with client(valkey_url) as connection:
        connection.flushall()
    async with running(settings) as api:
        await report(api, decision, False)
        await report(api, decision, True)
        await drained(settings)
        assert actions(await stored(api, decision)) == [(1, True), (2, False), (3, True)]
