"""The agent's client against the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from shadow_advisor_client import AdvisorClient

from app.api.tokens import TokenFile
from app.domain.canonical import decision_id
from app.domain.principal import Role
from tests.service.running import (
    Running,
    drained,
    expire,
    request,
    running,
    settings_for,
    until,
)


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


async def test_against_the_real_service(api: Running) -> None:
    def agent() -> tuple[dict[str, Any] | None, dict[str, int]]:
        with AdvisorClient(api.url, deadline_s=5.0) as client:
            advice = client.advise(request("r-1"))
            client.report_action(str(decision_id("r-1")), {"decision": True, "size_usd": 400.0})
            client.report_outcome(
                str(decision_id("r-1")), {"arm": "agent", "outcome": "tp1", "r_multiple": 1.4}
            )
            client.submit(request("r-2", candidate__rsi=float("nan")))
            client.close(10)
            return advice, client.stats().dropped

    advice, dropped = await anyio.to_thread.run_sync(agent)
    assert advice is not None
    assert advice["status"] == "advised"
    assert dropped == {}, "NaN became null, and is not known"
    assert await drained(api.settings) == 4


async def test_what_waits_while_a_token_has_expired_goes_out_once_with_the_next_one(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that ends in the middle of a session: nothing is lost, nothing is done twice."""
    file, tokens = tmp_path / "token", TokenFile(tmp_path / "tokens.json")
    file.write_text(tokens.create("desk", [Role.AGENT]))
    monkeypatch.setenv("ADVISOR_TOKEN_FILE", str(file))
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    fast: dict[str, Any] = {
        "first_backoff_s": 0.01,
        "max_backoff_s": 0.02,
        "breaker_pause_s": 0.02,
    }
    async with running(settings) as api:
        client = AdvisorClient(api.url, deadline_s=5.0, exit_budget_s=0, **fast)
        assert await client.aadvise(request("r-0")) is not None
        expire(tokens.path)
        waiting = [client.submit(request(f"r-{number}")) for number in range(1, 4)]
        for known in waiting:
            assert client.report_action(known, {"decision": False, "final_skip_reason": "x"})

        async def refused() -> bool:
            return "HTTP 401" in (client.stats().last_error or "") and client.stats().retried > 3

        await until(refused)
        assert client.stats().dropped == {}
        assert (client.stats().sent, client.stats().queued) == (1, 6)
        file.write_text(tokens.create("desk", [Role.AGENT]))

        async def empty() -> bool:
            return client.stats().queued == 0

        await until(empty)
        assert (client.stats().sent, client.stats().dropped) == (7, {})
        client.close(0)
    assert await drained(settings) == 7
