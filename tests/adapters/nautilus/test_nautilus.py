"""The actor in the real nautilus_trader, in a back-test, against a running service (`make
test-nautilus`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import psycopg
import pytest

from app.settings import Clock
from tests.service.running import Running, drained, running, settings_for

PYTHON = os.environ.get("NAUTILUS_PYTHON", "")
pytestmark = [
    pytest.mark.nautilus,
    pytest.mark.skipif(not PYTHON, reason="NAUTILUS_PYTHON is not set: make test-nautilus"),
]


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    async with running(settings) as service:
        yield service


async def backtest(url: str) -> dict[str, Any]:
    """What a back-test in nautilus' own Python says."""
    command = [PYTHON, "-W", "ignore", str(Path(__file__).with_name("backtest.py")), url]
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


async def test_every_entry_with_a_stop_is_a_decision_and_ends_with_its_outcome(
    api: Running,
) -> None:
    told = await backtest(api.url)
    trades = told.pop("trades")
    sent = told.pop("sent")
    assert told == {"faults": 0, "without_stop": 4, "dropped": {}, "left_out": {}, "refusals": {}}
    assert await drained(api.settings) == sent
    assert api.settings.database_url is not None
    with psycopg.connect(api.settings.database_url.replace("+psycopg", "")) as connection:
        rows = connection.execute(
            "SELECT d.direction, o.outcome, o.net_pnl, a.decision"
            " FROM decisions d JOIN outcomes o USING (decision_id)"
            " JOIN agent_actions a USING (decision_id)"
        ).fetchall()
    assert sent == 3 * len(rows)
    assert len(rows) + 4 >= len(trades) > 10
    assert {direction for direction, *_ in rows} == {"long", "short"}
    assert {code for _, code, *_ in rows} == {"sl", "tp1", "early_exit"}
    assert all(decision for *_, decision in rows)
    earned = {f"{pnl:.6f}" for _, _, pnl, _ in rows}
    booked = {f"{float(trade.split()[0]):.6f}" for trade in trades}
    assert len(earned & booked) >= len(trades) - 4


async def test_a_service_that_is_away_changes_no_trade() -> None:
    without = await backtest("")
    away = await backtest("http://127.0.0.1:9")
    assert away["trades"] == without["trades"]
    assert away["faults"] == 0
