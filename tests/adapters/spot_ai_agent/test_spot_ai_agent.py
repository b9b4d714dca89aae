"""The Spot AI Agent's own loop with the adapter's nine lines, on local bars: every candidate is
decided, no field of its is refused, outcomes of all its codes land. Opt-in:
`SPOT_AI_AGENT=/path make test-spot-agent`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.adapters.freqtrade.candles import bundled, rows
from tests.adapters.spot_ai_agent.hooks import hooked
from tests.service.running import running, settings_for, until, writing

PYTHON = os.environ.get("SPOT_AI_AGENT_PYTHON")
CHECKOUT = os.environ.get("SPOT_AI_AGENT")
HERE = Path(__file__).parent
SCANS = 60
DECISIONS = """
SELECT d.symbol, d.scenario, a.record AS action, o.record AS outcome
FROM whole_decisions d
LEFT JOIN latest_actions a USING (decision_id)
LEFT JOIN latest_outcomes o USING (decision_id)
ORDER BY d.received_at"""
pytestmark = [
    pytest.mark.spot_agent,
    pytest.mark.skipif(
        not (PYTHON and CHECKOUT), reason="SPOT_AI_AGENT is not set: make test-spot-agent"
    ),
    pytest.mark.timeout(900),
]


def run(folder: Path, url: str) -> dict[str, Any]:
    """Scans of the agent in a folder of its own; what it counted."""
    assert PYTHON is not None
    assert CHECKOUT is not None
    assert hooked(Path(CHECKOUT), folder / "agent", url) <= 10
    (bitcoin, _) = bundled(12_000)
    bars = folder / "bars.json"
    bars.write_text(json.dumps([row[1:] for row in rows(bitcoin)]))
    home = folder / "home"
    home.mkdir()
    variables = {**os.environ, "HOME": str(home), "DATA_DIR": str(home)}
    done = subprocess.run(
        [PYTHON, str(HERE / "loop.py"), str(bars), str(SCANS)],
        cwd=folder / "agent",
        env={**variables, "PYTHONPATH": str(folder / "agent")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    (folder / "said").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr[-5000:]
    told: dict[str, Any] = json.loads(done.stdout.partition("TOLD ")[2])
    return told


async def test_every_candidate_is_decided_and_every_outcome_lands(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path / "service")
    async with running(settings) as service, writing(settings):
        told = await asyncio.to_thread(run, tmp_path, service.url.rstrip("/"))

        def read() -> list[dict[str, Any]]:
            url = database_url.replace("+psycopg", "")
            with psycopg.connect(url, row_factory=dict_row) as connection:
                return connection.execute(DECISIONS).fetchall()

        async def there() -> bool:
            return sum(row["outcome"] is not None for row in read()) >= len(told["closed"])

        await until(there)
        decided = read()
    assert (told["dropped"], told["refusals"], told["left_out"]) == ({}, {}, {})
    assert len(decided) == told["considered"] > 10
    assert all(row["action"] is not None for row in decided)
    assert not any(row["scenario"].get("left_out") for row in decided)
    ended = [row for row in decided if row["outcome"] is not None]
    assert [row["outcome"]["extra"]["outcome"] for row in ended] == told["closed"]
    assert set(told["closed"]) == {
        *("sl", "trailing_sl", "trailing_stop", "early_exit", "orderbook_exit", "time_exit")
    }
    for row in ended:
        assert row["action"]["decision"]
        # Its own slippage and fees are in what it earned.
        moved = row["outcome"]["exit_price"] - row["action"]["entry"]
        gross = moved * row["action"]["quantity"]
        assert row["outcome"]["net_pnl"] < gross + 1e-6
    skipped = {row["action"].get("final_skip_reason") for row in decided} - {None}
    assert any(reason.startswith("Risk veto") for reason in skipped)
    assert any(reason.startswith("Trend is weak") for reason in skipped)
