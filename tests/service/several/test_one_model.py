"""Two API processes and one that runs the model for both."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from app.shadow_log.proof.verify import verify_log
from tests.policy.tiny_models import POSITIONS, save_tiny_model, write_manifest
from tests.service.running import drained, request, settings_for, until
from tests.service.several.several import several, value


def tiny_in(folder: Path) -> dict[str, object]:
    """Settings that serve a tiny model of a folder."""
    version = save_tiny_model(folder / "tiny-1")
    write_manifest(version, "tiny-1")
    return {"model": version, "advisor_prompt_tokens": POSITIONS, "advisor_engine": "torch"}


async def test_one_process_reads_for_both_and_while_it_is_away_advice_says_so(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with several(tmp_path / "home", database_url, valkey_url, **tiny_in(tmp_path)) as service:
        each = await service.one_of_each()
        for name, client in each.items():
            for number in range(3):
                answer = (await client.post("/advise", json=request(f"{name}-{number}"))).json()
                assert answer["status"] in ("advised", "vetoed"), answer
        series = await service.metrics()
        assert value(series, "advisor_readings_total", engine="torch") == 6
        assert value(series, "advisor_label_mass_count") == 6
        one = each["api-1"]
        ready = (await one.get("/readyz")).json()
        assert ready["models_read"] == {"tiny-1": "exactly"}
        assert ready["processes"] == {"api-1": "ready", "api-2": "ready", "reader": "ready"}

        os.kill(service.pids()[2], signal.SIGKILL)

        async def away() -> bool:
            said = (await one.get("/readyz")).json()
            return said["status"] == "degraded" and "tiny-1" in said["models_refused"]

        await until(away)
        answer = (await one.post("/advise", json=request("away"))).json()
        assert (answer["status"], answer["abstain_reason"]) == ("abstained", "backend_unavailable")
        await service.ready()
        answer = (await one.post("/advise", json=request("back"))).json()
        assert answer["status"] in ("advised", "vetoed")
        series = await service.metrics()
        assert value(series, "advisor_readings_total", engine="torch") == 7
        assert value(series, "advisor_process_deaths_total", process="reader") == 1
        for client in each.values():
            await client.aclose()
    await drained(settings_for(database_url, valkey_url, tmp_path))
    assert not (await verify_log(database_url)).findings


async def test_a_stop_of_the_whole_group_ends_the_process_that_reads_last(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """As systemd stops a service: every process has the signal."""
    async with several(tmp_path / "home", database_url, valkey_url, **tiny_in(tmp_path)) as service:
        reader = service.pids()[2]
        os.kill(reader, signal.SIGTERM)
        async with service.client() as client:
            answer = (await client.post("/advise", json=request("after"))).json()
        assert answer["status"] in ("advised", "vetoed"), "the parent says when"
        for pid in [*service.pids(), service.child.pid]:
            os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(service.child.ended) == 0
        assert "the process that runs the models has ended" not in service.child.said
