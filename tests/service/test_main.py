"""How the API process ends: what is under way is answered, what was built is closed."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

import httpx
import pytest

from app import main
from app.advising.serving import Models
from app.policy.scripted import ScriptedPolicy
from app.settings import SettingsError
from tests.service.processes import Child, environment
from tests.service.running import request, settings_for, until


async def test_a_request_under_way_is_answered_before_the_service_ends(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    policy = ScriptedPolicy(["H"], gate=gate)
    settings = settings_for(database_url, valkey_url, tmp_path, deadline_ms=60_000)
    async with (
        main.running(settings, Models(policy)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        waiting = asyncio.create_task(client.post("/advise", json=request("r-1")))

        async def asked() -> bool:
            return len(policy.prompts) == 1

        await until(asked)
        served.stop()
        gate.set()
        reply = await waiting
        await served.answering
    assert (reply.status_code, reply.json()["recorded"]) == (200, "stream")


async def test_a_folder_that_is_too_long_for_a_socket_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    settings = settings_for("postgresql://nobody", "redis://nobody", tmp_path, processes=2)
    with pytest.raises(SettingsError, match="set TMPDIR to a shorter one"):
        await main._several(settings)


async def test_sigterm_ends_the_process_in_good_order(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    variables = environment(tmp_path, database_url=database_url, redis_url=valkey_url)
    child = Child("serve", variables, tmp_path / "log")
    child.start()
    try:
        await child.ready()
        process = child._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        child.kill()
    assert "Traceback" not in child.said
