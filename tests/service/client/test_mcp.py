"""The MCP server over standard input and output, asked by the official client, on a running
service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.api.tokens import TokenFile
from app.domain.canonical import decision_id
from app.domain.principal import Role
from tests.service.running import Running, drained, expire, request, running, settings_for

mcp = pytest.importorskip("mcp", reason="the SDK comes with the extra dev")


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


class Agent:
    """An LLM agent's view: tools by name."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result
        answer: dict[str, Any] = json.loads(result.content[0].text)
        return answer


@asynccontextmanager
async def agent(url: str, **variables: str) -> AsyncIterator[Agent]:
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "shadow_advisor_client.adapters.mcp", "--url", url],
        env={name: os.environ[name] for name in ("PATH", "ADVISOR_HOME")} | variables,
    )
    async with mcp.Client(server) as client:
        yield Agent(client)


async def test_advise_report_explain(api: Running) -> None:
    async with agent(api.url) as llm:
        advice = await llm.call("advise", request=request("r-1"))
        assert (advice["status"], advice["approve"]) == ("advised", True)
        known = advice["decision_id"]
        outcome = {"arm": "agent", "outcome": "sl", "r_multiple": -1.0}
        done = await llm.call(
            "report", decision_id=known, agent_action={"decision": True}, outcome=outcome
        )
        assert done == {"delivered": True, "waiting": 0, "refused": []}
        assert await drained(api.settings) == 3
        told = await llm.call("explain", decision_id=known)
    assert told["symbol"] == "BTCUSDT"
    [first] = told["advices"]
    assert (first["action"], first["approve"]) == ("approve_r1.00_s1.0", True)
    assert first["vetoes"] == []
    assert abs(sum(first["probabilities"]) - 1) < 1e-6
    assert len(told["reported_actions"]) == 1
    assert len(told["outcomes"]) == 1


async def test_what_is_refused_comes_back_by_field(api: Running) -> None:
    async with agent(api.url) as llm:
        told = await llm.call("advise", request=request("r-1", plan__stop=-1.0))
        assert (told["status"], told["acceptable"]) == ("refused", False)
        assert told["fields"][0]["field"] == "plan.stop"
        refused = await llm.call(
            "report", decision_id=str(uuid4()), agent_action={"decision": True}
        )
        assert refused["delivered"] is False
        assert "HTTP 404" in refused["refused"][0]
        nothing = await llm.call("report", decision_id=str(uuid4()))
        assert nothing["delivered"] is False
        assert "error" in await llm.call("explain", decision_id=str(uuid4()))
        assert "error" in await llm.call("explain", decision_id="../state")


async def test_a_dry_run_records_nothing(api: Running) -> None:
    async with agent(api.url) as llm:
        told = await llm.call("advise", request=request("r-1"), dry_run=True)
    assert (told["status"], told["acceptable"]) == ("dry_run", True)
    assert await drained(api.settings) == 0


async def test_an_argument_that_a_tool_does_not_have_is_refused_and_nothing_recorded(
    api: Running,
) -> None:
    async with agent(api.url) as llm:
        for tool, misspelt in (
            ("advise", {"request": request("r-1"), "dryrun": True}),
            ("report", {"decision_id": str(uuid4()), "action": {"decision": True}}),
            ("explain", {"decision_id": str(uuid4()), "short": True}),
        ):
            result = await llm.client.call_tool(tool, misspelt)
            assert result.is_error
            assert list(misspelt)[-1] in result.content[0].text
        tools = (await llm.client.list_tools()).tools
        assert [tool.input_schema["additionalProperties"] for tool in tools] == [False] * 3
    assert await drained(api.settings) == 0


async def test_no_service_is_an_answer(tmp_path: Path) -> None:
    async with agent("http://127.0.0.1:9") as llm:
        told = await llm.call("advise", request=request("r-1"), deadline_s=0.1)
        assert told["status"] == "no_answer"
        assert told["decision_id"] == str(decision_id("r-1")), "it can be reported on"


async def test_a_token_that_expires_while_it_is_used_is_told(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    token = TokenFile(tmp_path / "tokens.json").create("llm", [Role.AGENT])
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    async with running(settings) as api, agent(api.url, ADVISOR_TOKEN=token) as llm:
        assert (await llm.call("advise", request=request("r-1")))["status"] == "advised"
        expire(tmp_path / "tokens.json")
        told = await llm.call("advise", request=request("r-2"), deadline_s=0.5)
    assert told["status"] == "no_answer"
    assert "401" in told["error"]
    assert "this token has expired" in told["error"]
    assert "a token is looked for in ADVISOR_TOKEN (set), the file" in told["error"]
    assert await drained(settings) == 1
