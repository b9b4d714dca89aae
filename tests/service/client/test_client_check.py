"""A dry run against the real service, as a table, and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
from shadow_advisor_client import AdvisorClient, Check

from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.local.servers import free_port
from app.operator_client import OperatorClient, OperatorError
from tests.service.api.http_faults import faulty, garbage, ok, status
from tests.service.running import Running, drained, request, running, settings_for


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


async def checked(url: str, document: object) -> Check:
    def check() -> Check:
        with AdvisorClient(url) as client:
            return client.check(document)  # type: ignore[arg-type]

    return await anyio.to_thread.run_sync(check)


async def test_a_table_says_what_became_of_every_field(api: Running) -> None:
    document = request("r-1", candidate__spread_bps=None, candidate__colour="red")
    document["candidate"]["rsy"] = object()
    answer = await checked(api.url, document)
    assert (answer.acceptable, answer.error) == (True, None)
    lines = str(answer).splitlines()
    assert lines[0].split() == ["field", "verdict", "sent", "taken", "as", "why"]
    words = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    assert words["candidate.rsi"] == "accepted"
    assert words["candidate.spread_bps"] == "missing"
    assert words["candidate.colour"] == "unrecognised"
    assert words["candidate.rsy"] == "left", "the client could not send it"
    assert "SPREAD  spread_bps  refuses" in lines
    assert "SPREAD  spread_bps is missing" in lines
    assert any(line.startswith("It would be decided on: ") for line in lines)
    assert await drained(api.settings) == 0


async def test_a_refusal_comes_first_in_the_table(api: Running) -> None:
    answer = await checked(api.url, request("r-1", plan__stop=-1.0))
    assert answer.acceptable is False
    assert str(answer).splitlines()[1].split()[:3] == ["plan.stop", "REFUSED", "-1.0"]
    assert "It would be REFUSED" in str(answer)


async def test_whatever_happens_a_check_raises_nothing(api: Running) -> None:
    circle: dict[str, object] = {}
    circle["self"] = circle
    with faulty(status(503)) as down, faulty(garbage) as mad, faulty(ok) as old:
        for url, document in (
            (api.url, circle),
            (api.url, lambda: 1 / 0),
            (api.url, None),
            (f"http://127.0.0.1:{free_port()}", request("r-1")),
            (down.url, request("r-1")),
            (mad.url, request("r-1")),
            (old.url, request("r-1")),
        ):
            answer = await checked(url, document)
            assert answer.error is not None
            assert str(answer).startswith("no answer: ")


async def command(url: str, file: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "shadow_advisor_client", "check", str(file), "--url", url]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    )


async def test_the_command_prints_the_table_and_its_status_says_what_it_means(
    api: Running, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    for document, code in ((request("r-1"), 0), (request("r-1", plan__stop=None), 1)):
        file.write_text(json.dumps(document))
        done = await command(api.url, file)
        assert (done.returncode, "plan.stop" in done.stdout) == (code, True), done.stderr
    for content, url in (("{", api.url), ("{}", "nonsense"), ("{}", "http://127.0.0.1:9")):
        file.write_text(content)
        done = await command(url, file)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


async def test_nobody_known_is_told_where_a_token_was_looked_for(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ADVISOR_TOKEN", "ADVISOR_ADMIN_TOKEN", "ADVISOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADVISOR_HOME", str(tmp_path / "home"))
    TokenFile(tmp_path / "tokens.json").create("agent", [Role.AGENT])
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    async with running(settings) as api:
        told = str((await checked(api.url, request("r-1"))).error)
        with pytest.raises(OperatorError, match=r"ADVISOR_ADMIN_TOKEN \(not set\)"):
            await anyio.to_thread.run_sync(OperatorClient(api.url).state)
        given = AdvisorClient(api.url, token="advisor.agent.wrong")
        other = str((await anyio.to_thread.run_sync(given.check, request("r-1"))).error)
        given.close(0)
    assert told.startswith("HTTP 401: ")
    assert "ADVISOR_TOKEN (not set), the file ADVISOR_TOKEN_FILE (not set)" in told
    assert f"{tmp_path}/home/tokens/agent of ADVISOR_HOME (not there, or not readable)" in told
    assert "the token is the one that was given" in other
    assert "wrong" not in other, "no token is told"
