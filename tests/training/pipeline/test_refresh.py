"""Refresh: rebuilt on the log's newest decisions, judged against the champion on what came after,
left in shadow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.main import DEFAULT_MODEL
from app.shadow_log.log import ShadowLog
from tests import builders as build
from tests.policy.tiny_models import POSITIONS
from tests.service.running import Running, running, settings_for
from tests.training.support.published import BASE, save_base
from tests.training.support.rebuilds import config_in
from training.__main__ import app
from training.arrays import instant
from training.config.data import ScenariosConfig
from training.config.file import RebuildConfig
from training.config.judging import RefreshConfig
from training.judging.gate.looks import FILE as LOOKS
from training.pipeline.refresh import RefreshError, champion_of, refreshed, span_before
from training.scenarios.history import find_scenarios, load_history

TOKEN = "correct horse"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_the_window_ends_with_the_day_of_the_last_decision() -> None:
    span = span_before(
        datetime(2026, 3, 10, 17, tzinfo=UTC), RefreshConfig(train_days=30, judge_days=10)
    )
    assert span == (date(2026, 1, 30), date(2026, 3, 1), date(2026, 3, 11))
    with pytest.raises(RefreshError, match="nothing is left to judge by"):
        span_before(datetime(2023, 1, 20, tzinfo=UTC), RefreshConfig(judge_days=60))


def test_what_trains_ends_where_what_judges_begins(tmp_path: Path) -> None:
    span = span_before(
        datetime(2026, 3, 10, 17, tzinfo=UTC), RefreshConfig(train_days=30, judge_days=10)
    )
    made = refreshed(config_in(tmp_path, tmp_path / "base"), span)
    assert (made.scenarios.source, made.scenarios.since, made.scenarios.until) == (
        "shadow_log",
        *span[:2],
    )
    held_out = made.evaluate.held_out
    assert (held_out.source, held_out.since, held_out.until) == ("shadow_log", *span[1:])
    assert held_out.limit == 60


def test_the_champion_is_the_alias_of_that_name_and_else_what_is_served() -> None:
    assert champion_of({"shadow": "v1", "champion": "v2"}) == "v2"
    assert champion_of({"shadow": "v1"}) == "v1"
    assert champion_of({"other": "v3"}) is None


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A service with a tiny base model, and its log full of decisions on a synthetic market of
    2025."""
    models = tmp_path / "home" / "models"
    save_base(models).rename(models / DEFAULT_MODEL)
    more = {"admin_token": TOKEN, "prompt_tokens": POSITIONS, "deadline_ms": 60_000}
    history = load_history(refresh_config(tmp_path).market, None)
    found, _ = find_scenarios(
        history,
        ScenariosConfig(since=date(2025, 2, 1), until=None).model_copy(
            update={"until": date(2025, 6, 1), "limit": 120}
        ),
    )
    events = [
        build.decision_event(f"paper/{number}", about=one.scenario, control=one.control)
        for number, one in enumerate(found)
    ]
    log = ShadowLog.connect(database_url)
    await log.append(events)
    await log.aclose()
    async with running(
        settings_for(database_url, valkey_url, models.parent, **more), load=True
    ) as service:
        yield service


def refresh_config(folder: Path) -> RebuildConfig:
    """A rebuild of seconds whose bars are of 2025."""
    return config_in(
        folder,
        folder / "home" / "models" / DEFAULT_MODEL,
        market__synthetic__begins="2025-01-01",
        refresh={"train_days": 60, "judge_days": 40},
        scenarios__embargo_hours=12,
    )


async def test_a_refresh_leaves_a_challenger_that_was_judged_against_the_champion(
    api: Running, database_url: str, tmp_path: Path
) -> None:
    settings = refresh_config(tmp_path)
    path = tmp_path / "refresh.toml"
    path.write_text(as_toml(settings.model_dump(mode="json", exclude_none=True)))
    asked = [
        "refresh",
        "--config",
        str(path),
        "--database",
        database_url,
        "--url",
        api.url,
        "--token",
        TOKEN,
    ]
    done = await asyncio.to_thread(CliRunner().invoke, app, [*asked, "--champion", BASE])
    assert done.exit_code == 0, done.exception
    [artifact] = (tmp_path / "artifacts").glob("evaluation-*")
    verdict = json.loads((artifact / "verdict.json").read_text())["verdict"]
    assert verdict["mode"] == "live", "the log grows and is consulted again"
    assert "champion" in verdict["differences"]
    aliases = (await api.client.get("/aliases")).json()["aliases"]
    challenger = aliases["shadow-candidate"]["model_version"]
    assert challenger.startswith("tiny-")
    assert verdict["model_version"] == challenger
    manifest = json.loads((tmp_path / "home" / "models" / challenger / "manifest.json").read_text())
    [ended] = {each["until"] for each in looks(tmp_path / "home" / "models")}
    judged = instant(date.fromisoformat(ended)) - 40 * 86_400
    first, last = manifest["provenance"]["period"]
    assert judged - 60 * 86_400 <= first < last < judged, (
        "only the window before what judges was trained on"
    )


def looks(models: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (models / LOOKS).read_text().splitlines()]


def as_toml(document: dict[str, object], prefix: str = "") -> str:
    """Dotted keys, one a line; JSON's strings, numbers, booleans and lists are TOML's."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines.append(as_toml(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {json.dumps(value)}\n")
    return "".join(lines)
