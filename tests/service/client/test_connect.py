"""What docs/connect*.md show is copied, pasted and run against a service with tokens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import psycopg
import pytest

from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.shadow_log.log import ShadowLog
from tests.service.running import Running, drained, running, settings_for

ROOT = Path(__file__).parents[3]
SERVED = "http://127.0.0.1:8321"
NEWCOMERS_PYTHON = os.environ.get("CONNECT_PYTHON", sys.executable)
"""Of a fresh environment, where the road is timed (`make time-connect`)."""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class Desk:
    """A folder as `make up` leaves it, beside a running service."""

    def __init__(self, api: Running, folder: Path, token: str) -> None:
        self.api = api
        self.folder = folder
        self.token = token
        (folder / "var" / "tokens").mkdir(parents=True)
        (folder / "var" / "tokens" / "agent").write_text(token)

    async def runs(self, command: list[str], **variables: str) -> str:
        """What a command says; it succeeds."""
        names = ("PATH", "HOME", "LANG")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                command,
                cwd=self.folder,
                env=kept | variables,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def runs_python(self, code: str, **variables: str) -> str:
        file = self.folder / "first.py"
        file.write_text(code.replace(SERVED, self.api.url))
        return await self.runs([NEWCOMERS_PYTHON, "first.py"], **variables)

    async def rows(self) -> list[dict[str, Any]]:
        """Every decision with its reports, as the log has them."""
        await drained(self.api.settings)
        url = self.api.settings.database_url
        assert url is not None
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            known = connection.execute("SELECT decision_id FROM decisions").fetchall()
        log = ShadowLog.connect(url)
        rows = [await log.get(decision_id) for (decision_id,) in known]
        await log.aclose()
        return [row for row in rows if row is not None]


@pytest.fixture
async def desk(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    token = TokenFile(tmp_path / "tokens.json").create("agent", [Role.AGENT])
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    async with running(settings) as api:
        (tmp_path / "desk").mkdir()
        yield Desk(api, tmp_path / "desk", token)


async def test_the_road_of_the_client(desk: Desk) -> None:
    [code] = blocks("connect.md", "python")
    said = await desk.runs_python(code)
    assert "candidate.atr" in said
    assert "It would be decided on" in said
    assert "vetoed False" in said
    assert "\nvetoes ['" in said, "what the example leaves out refuses"
    assert "\ncontrol_vetoes ['" in said, "also the agent's own order"
    assert "sent=3," in said
    [row] = await desk.rows()
    assert (len(row["agent_actions"]), len(row["outcomes"])) == (1, 1)


async def test_the_road_of_curl(desk: Desk) -> None:
    scripts = blocks("connect.md", "sh")
    assert len(scripts) == 2
    script = "set -eu\n" + "".join(f"{block}\necho\n" for block in scripts)
    said = await desk.runs(["bash", "-c", script.replace(SERVED, desk.api.url)])
    lines = [json.loads(line) for line in said.replace("}{", "}\n{").splitlines() if line]
    assert [line.get("acceptable") for line in lines] == [True, None, None, None]
    assert all("decision_id" in line for line in lines[1:3])
    assert lines[3]["decision"]["request_id"].startswith("first-")
    [row] = await desk.rows()
    assert (len(row["agent_actions"]), len(row["outcomes"])) == (1, 1)


async def test_the_road_of_the_decorator(desk: Desk) -> None:
    [code] = blocks("connect-decorator.md", "python")
    said = await desk.runs_python(code)
    assert "sent=6," in said
    assert len(await desk.rows()) == 2


async def test_the_road_of_mcp_with_the_official_client(desk: Desk) -> None:
    pytest.importorskip("mcp", reason="the SDK comes with the extra dev")
    [code] = blocks("connect-mcp.md", "python")
    said = await desk.runs_python(code, ADVISOR_TOKEN=desk.token)
    lines = said.splitlines()
    assert lines[0] == "['advise', 'report', 'explain']"
    assert lines[1].startswith("vetoed ")
    assert lines[2] == "{'delivered': True, 'waiting': 0, 'refused': []}"
    assert "'vetoes': [{'code': 'SPREAD'" in lines[3] or "SPREAD" in lines[3]
    [row] = await desk.rows()
    assert len(row["agent_actions"]) == 1


def test_what_hosts_read_is_json_that_starts_the_server() -> None:
    [text] = blocks("connect-mcp.md", "json")
    [server] = json.loads(text)["mcpServers"].values()
    assert server["args"][:2] == ["-m", "shadow_advisor_client.adapters.mcp"]
