"""The agent's client against the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from shadow_advisor_client import AdvisorClient

from app.domain.canonical import decision_id
from tests.service.running import Running, drained, request, running, settings_for


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
