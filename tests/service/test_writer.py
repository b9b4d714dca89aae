"""The writer's metrics over HTTP."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx

from app.api.tokens import Tokens
from app.processes.metrics import Metrics
from app.writer import SCRAPE_CONNECTIONS, scraped


async def test_half_requests_make_no_threads_and_do_not_stay(tmp_path: Path) -> None:
    metrics = Metrics()
    before = threading.active_count()
    async with scraped(
        metrics, Tokens(tmp_path / "none", tmp_path, None, True), "127.0.0.1", 0
    ) as port:
        held = []
        for _ in range(400):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HT")
            held.append((reader, writer))
        reading = (asyncio.wait_for(reader.read(), 20) for reader, _ in held)
        ended = await asyncio.gather(*reading, return_exceptions=True)
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ended)
        assert threading.active_count() <= before + 1
        values = metrics.registry.get_sample_value
        assert values("advisor_refusals_total", {"budget": "slow"}) == SCRAPE_CONNECTIONS
        refused = values("advisor_refusals_total", {"budget": "connections"})
        assert refused == len(ended) - SCRAPE_CONNECTIONS
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://127.0.0.1:{port}/metrics")
        assert "advisor_writer_rows_total" in reply.text
        for _, writer in held:
            writer.close()
