"""What people and scripts ask of a running service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from app.operator_client import OperatorClient, OperatorError
from app.policy.scripted import SCRIPTED_MANIFEST
from tests.service.api.http_faults import faulty, garbage
from tests.service.processes import advisor, environment
from tests.service.running import Running, drained, request, running, settings_for

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


async def test_state_readiness_and_metrics_are_those_of_the_service(api: Running) -> None:
    operator = OperatorClient(f"{api.url}/")
    assert (await asyncio.to_thread(operator.state))["state"] == "ACTIVE"
    halted = await asyncio.to_thread(operator.set_state, "HALTED", "drill", "tests")
    assert halted == {"state": "HALTED", "recorded": "stream"}
    assert (await asyncio.to_thread(operator.state))["change"]["reason"] == "tests: drill"
    assert (await asyncio.to_thread(operator.readiness))["models"] == ["scripted-1"]
    metrics = await asyncio.to_thread(operator.metrics)
    assert metrics['advisor_state{state="HALTED"}'] == 1.0
    assert metrics["advisor_journal_backlog"] == 1.0


async def test_it_waits_until_the_writer_has_written(api: Running) -> None:
    operator = OperatorClient(api.url)
    await api.advise(request("r-1"))
    with pytest.raises(OperatorError, match="1 event waits for the writer"):
        await asyncio.to_thread(operator.wait_for_writer, -1.0)
    loop, pauses = asyncio.get_running_loop(), 0

    def write() -> None:
        nonlocal pauses
        pauses += 1
        asyncio.run_coroutine_threadsafe(drained(api.settings), loop).result()

    await asyncio.to_thread(operator.wait_for_writer, 60.0, write)
    assert pauses == 1


async def test_a_refusal_has_the_reason_of_the_service(api: Running) -> None:
    operator = OperatorClient(api.url)
    with pytest.raises(OperatorError, match=r"refuses PUT /models/v9 \(404\).*model version v9"):
        await asyncio.to_thread(operator.register, "v9")
    with pytest.raises(OperatorError, match=r"refuses PUT /aliases/shadow \(409\).*were given"):
        await asyncio.to_thread(operator.move_alias, "shadow", "v9", "test", "tests")
    with pytest.raises(OperatorError, match="there is nothing to go back to"):
        await asyncio.to_thread(operator.roll_back, "shadow", "", "tests")
    assert (await asyncio.to_thread(operator.aliases))["history"] == []


async def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(api: Running) -> None:
    operator, move = OperatorClient(api.url), OperatorClient(api.url).move_alias
    await api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    seen = await asyncio.to_thread(operator.moved_at, "champion")
    assert seen == ""
    first = partial(move, "champion", "scripted-1", "better", "ann", seen=seen)
    assert (await asyncio.to_thread(first))["before"] is None
    with pytest.raises(OperatorError, match=r"\(409\).*somebody moved the alias champion since"):
        await asyncio.to_thread(partial(first, seen=seen))
    with pytest.raises(OperatorError, match="`advisor alias champion none` lets it name no"):
        await asyncio.to_thread(operator.roll_back, "champion", "", "ann")
    stands = await asyncio.to_thread(operator.moved_at, "champion")
    await asyncio.to_thread(partial(move, "champion", "none", "worse", "bob", seen=stands))
    back = await asyncio.to_thread(operator.roll_back, "champion", "again", "ann")
    assert (back["before"], back["model_version"]) == ("none", "scripted-1")
    told = (
        "champion",
        "none",
        "--reason",
        "late",
        "--by",
        "bob",
        "--seen",
        stands,
        "--url",
        api.url,
    )
    variables = environment(api.settings.home)
    refused = await asyncio.to_thread(advisor, variables, "alias", *told)
    assert refused.returncode == 2
    assert "look again; nothing was changed" in " ".join((refused.stdout + refused.stderr).split())


def test_no_service_or_another_one_is_told() -> None:
    with pytest.raises(OperatorError, match=f"{NOWHERE} does not answer .*advisor up"):
        OperatorClient(NOWHERE).state()
    with pytest.raises(OperatorError, match="does not answer"):
        OperatorClient(NOWHERE).wait_for_writer(-1.0)
    with pytest.raises(OperatorError, match=r"not the address of a service.*set --url"):
        OperatorClient("http://")
    with faulty(garbage) as server:
        operator = OperatorClient(server.url)
        for ask in (operator.state, operator.metrics, lambda: operator.wait_for_writer(-1.0)):
            with pytest.raises(OperatorError, match="is not the advisor"):
                ask()


async def test_proxies_of_the_environment_are_not_asked_for_a_service_on_this_machine(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "[::1]")
    state = await asyncio.to_thread(OperatorClient(api.url).state)
    assert state["state"] == "ACTIVE"


@pytest.mark.parametrize("name", ["Bad/name", "..", "", "a?b", "shadow-\n", "A"])
def test_a_name_that_none_can_have_is_told_before_anybody_is_asked(name: str) -> None:
    """In a path it would ask something else, and be answered `Not Found`."""
    client = OperatorClient("http://127.0.0.1:9")
    with pytest.raises(OperatorError, match="is no name of an alias: write small letters"):
        client.move_alias(name, "v-1", "why", "me")
    if name != "A":
        with pytest.raises(OperatorError, match="is no name of a version"):
            client.register(name)
