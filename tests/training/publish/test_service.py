"""A running service picks up what training publishes: registered, aliased, served, rolled back,
without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from app.main import DEFAULT_MODEL
from app.operator_client import OperatorClient, OperatorError
from tests.policy.tiny_models import POSITIONS
from tests.service.running import Running, drained, request, running, settings_for, until
from tests.training.support.published import BASE, finished_policy, save_base
from training.__main__ import app
from training.publish.version import publish, release_of

TOKEN = "correct horse"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """What the service reads: the base model alone."""
    folder = tmp_path / "home" / "models"
    save_base(folder).rename(folder / DEFAULT_MODEL)
    return folder


@pytest.fixture
def published(models: Path, tmp_path: Path) -> list[str]:
    """Two versions, on disk only."""
    folder = tmp_path / "artifacts"
    policies = [finished_policy(folder, models / DEFAULT_MODEL, seed) for seed in (1, 2)]
    return [publish(release_of(one, "advisor", [models]), models, NOON).name for one in policies]


@pytest.fixture
async def api(models: Path, database_url: str, valkey_url: str) -> AsyncIterator[Running]:
    more = {"admin_token": TOKEN, "prompt_tokens": POSITIONS, "deadline_ms": 60_000}
    async with running(
        settings_for(database_url, valkey_url, models.parent, **more), load=True
    ) as service:
        yield service


async def served(api: Running) -> list[str]:
    found: list[str] = (await api.client.get("/readyz")).json()["models"]
    return found


async def point(api: Running, version: str, alias: str = "shadow") -> None:
    service = OperatorClient(api.url, TOKEN)
    await asyncio.to_thread(service.register, version)
    moved = await asyncio.to_thread(service.move_alias, alias, version, "published", "tests")
    assert moved["model_version"] == version

    async def follows() -> bool:
        return version in await served(api)

    await until(follows)


async def test_a_published_version_is_served_then_another_then_the_first_again(
    api: Running, published: list[str], database_url: str
) -> None:
    first, second = published
    assert await served(api) == [BASE]
    replies = []
    for number, version in enumerate((first, second)):
        await point(api, version)
        replies.append(await api.advise(request(f"r-{number}")))
    service = OperatorClient(api.url, TOKEN)
    back = await asyncio.to_thread(service.roll_back, "shadow", "worse", "tests")
    assert back == {"alias": "shadow", "model_version": first, "before": second}
    replies.append(await api.advise(request("r-2")))
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert await served(api) == [first]
    shown = await asyncio.to_thread(service.aliases)
    assert shown["aliases"]["shadow"]["model_version"] == first
    moves = shown["history"]
    assert [move["model_version"] for move in moves] == [first, second, first, BASE]
    assert moves[0]["reason"] == f"tests: rollback from {version}: worse"
    await drained(api.settings)
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        rows = connection.execute(
            "SELECT request_id, model_version FROM advices JOIN decisions USING (decision_id) ORDER"
            " BY request_id"
        ).fetchall()
        known = connection.execute("SELECT model_version FROM model_versions").fetchall()
    assert rows == [("r-0", first), ("r-1", second), ("r-2", first)]
    assert {name for (name,) in known} == {BASE, first, second}


async def test_several_published_versions_are_in_shadow_at_once(
    api: Running, published: list[str]
) -> None:
    await point(api, published[0])
    await point(api, published[1], "shadow-next")
    assert await served(api) == published
    answer = (await api.advise(request("both"))).json()
    assert answer["model_version"] == published[0]


async def test_a_refusal_is_told_and_moves_nothing(
    api: Running, models: Path, published: list[str]
) -> None:
    await point(api, published[0])
    weights = models / published[1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    for token, version, says in (
        ("wrong token", published[1], "401"),
        (TOKEN, "advisor-never-published", "404"),
        (TOKEN, published[1], "adapter_model.safetensors"),
    ):
        service = OperatorClient(api.url, token)
        with pytest.raises(OperatorError, match=says):
            await asyncio.to_thread(service.register, version)
    assert await served(api) == [published[0]]
    shown = await asyncio.to_thread(OperatorClient(api.url, TOKEN).aliases)
    assert shown["aliases"]["shadow"]["model_version"] == published[0]


async def test_there_is_nothing_to_roll_back_to_before_the_first_move(api: Running) -> None:
    service = OperatorClient(api.url, TOKEN)
    with pytest.raises(OperatorError, match="nothing to go back to"):
        await asyncio.to_thread(service.roll_back, "shadow", "test", "tests")


async def test_one_command_publishes_and_serves_and_one_rolls_back(
    api: Running, models: Path, tmp_path: Path
) -> None:
    policy = finished_policy(tmp_path / "artifacts", models / DEFAULT_MODEL)
    surroundings = {"ADVISOR_URL": api.url, "ADVISOR_ADMIN_TOKEN": TOKEN, "COLUMNS": "200"}

    async def command(*arguments: str) -> str:
        done = await asyncio.to_thread(
            CliRunner().invoke, app, [*arguments], env=surroundings, catch_exceptions=False
        )
        assert done.exit_code == 0
        return done.output

    said = await command(
        "publish", str(policy.path), "--models", str(models), "--alias", "shadow", "--by", "tests"
    )
    version = next(models.glob("advisor-*")).name
    assert f"shadow -> {version} (was {BASE})" in said
    assert await served(api) == [version]
    listed = await command("versions", "--models", str(models))
    assert "aliases   shadow\n" in listed.split(f"{version}\n")[1]
    assert f"shadow -> {BASE} (was {version})" in await command("rollback", "--by", "tests")
    assert await served(api) == [BASE]
