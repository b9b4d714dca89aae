"""What a request leaves open of its account is what the agent itself reported."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.shadow_log.proof.verify import verify_log
from tests.service.journal.journal_events import client
from tests.service.running import Running, drained, request, running, settings_for, until


async def told(api: Running, path: str, **document: Any) -> None:
    reply = await api.client.put(path, json=document)
    assert reply.status_code == 202, reply.text


async def account(api: Running, request_id: str, **sent: Any) -> dict[str, Any]:
    """The account of a decision whose request sends no other fields of it than these."""
    reply = await api.advise(request(request_id, account=sent))
    assert reply.status_code == 200, reply.text
    stored = (await api.client.get(f"/decisions/{reply.json()['decision_id']}")).json()
    scenario: dict[str, Any] = stored["decision"]["scenario"]
    return dict(scenario["account"])


async def traded(api: Running, request_id: str, **fields: Any) -> str:
    known: str = (await api.advise(request(request_id))).json()["decision_id"]
    await told(api, f"/decisions/{known}/agent-action", **{"decision": True} | fields)
    return f"/decisions/{known}/outcome"


async def whole(api: Running) -> None:
    async def filled() -> bool:
        return await api.service.journal.ledger_of("agent") is not None

    await until(filled)


async def test_positions_days_result_and_losses_follow_from_the_agents_own_reports(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        await whole(api)
        assert (await account(api, "before"))["positions"] is None, "nobody reported anything"
        first = await traded(api, "r-1", quantity=0.02, entry=40_010.0)
        await told(api, first, arm="agent", outcome="sl", net_pnl=-12.5)
        second = await traded(api, "r-2")
        # What was simulated is no report of the agent's.
        await told(api, second, arm="agent", outcome="sl", r_multiple=-1.0, source="simulated")
        now = await account(api, "r-3", equity=9987.5)
        [held] = now["positions"]
        assert (held["symbol"], held["quantity"], held["entry"]) == ("BTCUSDT", 0.01, 40_000.0)
        assert now["day_pnl_fraction"] == -12.5 / 10_000
        assert now["consecutive_losses"] == 1
        assert now["derived"]["fields"] == [
            "consecutive_losses",
            "day_pnl_fraction",
            "positions",
            "seconds_since_loss",
        ]
        assert 0 <= now["derived"]["age_s"] < 60
        mine = await account(api, "r-4", positions=[], consecutive_losses=0, day_pnl_fraction=0.0)
        assert (mine["positions"], "derived" in mine) == ([], False)
        asked = request("r-6", account={"equity": 9987.5})
        assert not (await api.advise(asked)).json()["repeated"]
        await traded(api, "r-7")
        assert (await api.advise(asked)).json()["repeated"], "derived is no part of what is asked"
        # The agent corrects itself: the second was never opened.
        await told(api, second.replace("outcome", "agent-action"), decision=False)
        assert len((await account(api, "r-5"))["positions"]) == 1
        assert await drained(settings) == 14
    assert (await verify_log(database_url)).findings == []


async def test_another_replica_knows_them_and_postgres_tells_them_to_an_emptied_valkey(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    first = settings_for(database_url, valkey_url, tmp_path / "first")
    second = settings_for(database_url, valkey_url, tmp_path / "second")
    async with running(first) as api, running(second) as other:
        await whole(api)
        await traded(api, "r-1")
        assert len((await account(other, "r-2"))["positions"]) == 1
        await drained(first)
        with client(valkey_url) as valkey:
            valkey.flushall()

        async def found_again() -> bool:
            notes = await other.service.journal.ledger_of("agent")
            return notes is not None and len(notes) == 1

        await until(found_again)
        [held] = (await account(other, "r-3"))["positions"]
        assert held["symbol"] == "BTCUSDT"
        assert datetime.fromisoformat(held["opened_at"]) <= datetime.now(UTC)
