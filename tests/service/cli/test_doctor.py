"""`advisor doctor` beside things that are really broken."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from app.api.tokens import TokenFile
from app.cli.health.examination import Bounds, Finding, State, examine
from app.domain.principal import Role
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.settings import OWN_CHECKPOINTS, Settings
from tests.conftest import administration
from tests.service.processes import advisor, environment
from tests.service.running import running, settings_for

NOBODY = "postgresql://advisor:secret@127.0.0.1:1/advisor"
PLENTY = Bounds(0.0, None)


@pytest.fixture
def settings(database_url: str, valkey_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, valkey_url, tmp_path, model="scripted")


async def seen(settings: Settings, bounds: Bounds = PLENTY) -> dict[str, list[Finding]]:
    """Findings by check."""
    by_check: dict[str, list[Finding]] = {}
    for finding in await examine(settings, bounds):
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def of(settings: Settings, **changes: Any) -> Settings:
    """The settings with some of them changed."""
    return settings.model_copy(update=changes)


async def test_what_is_well_is_called_so(settings: Settings) -> None:
    async with running(settings) as served:
        port = int(str(served.client.base_url.port))
        found = await seen(of(settings, port=port))
    assert [finding.what for finding in found["postgres"][1:]] == ["fsync is off"]
    del found["postgres"][1:]  # The tests' server is fast and forgetful.
    states = {check: {finding.state for finding in rows} for check, rows in found.items()}
    # The scripted fake, the open door and the missing checkpoints are worth a word.
    assert states.pop("model") == states.pop("tokens") == states.pop("checkpoints") == {State.WATCH}
    well = ("disk", "limits", "postgres", "clock", "valkey", "writer", "service")
    assert states == {check: {State.OK} for check in well}
    told = found["service"][0].what
    assert told.startswith("ready: ")
    assert "limits 2" in told
    assert "{" not in told


async def test_places_that_nothing_asks_for_yet_are_looked_at(
    settings: Settings, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    found = await seen(of(settings, bars=away, drift=away, notices="nonsense file:/tmp/n"))
    assert [found[name][0].state for name in ("bars", "drift")] == [State.WATCH, State.WATCH]
    assert found["notices"][0].state is State.WRONG
    found = await seen(of(settings, notices="file:/tmp/n", bars=tmp_path))
    assert found["notices"][0].what == "1 address"
    assert "bars" not in found


async def test_the_checkpoints_of_up_are_found_without_a_setting(settings: Settings) -> None:
    (settings.home / OWN_CHECKPOINTS).touch()
    [finding] = (await seen(settings))["checkpoints"]
    assert finding.what == "none has been written yet"


async def test_a_valkey_that_forgets_is_told_with_what_to_set(
    settings: Settings, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendonly", "no")
            client.config_set("maxmemory-policy", "allkeys-lru")
        found = await seen(of(settings, redis_url=server.url))
    assert found["valkey"] == [
        Finding("valkey", State.WRONG, "appendonly is no", "set it to yes"),
        Finding("valkey", State.WRONG, "maxmemory-policy is allkeys-lru", "set it to noeviction"),
    ]


async def test_servers_that_are_away_are_told_each_and_no_password_is(settings: Settings) -> None:
    found = await seen(of(settings, database_url=NOBODY, redis_url="redis://:secret@127.0.0.1:1/0"))
    wrong = {check for check, rows in found.items() if rows[0].state is State.WRONG}
    assert wrong == {"postgres", "valkey", "service"}
    assert found["postgres"][0].mend == (
        "start Postgres, let DATABASE_URL name it, then `advisor migrate`"
    )
    assert "secret" not in str(found)


async def test_a_database_without_this_schema_and_one_that_may_forget(
    settings: Settings, empty_database_url: str, postgres: EmbeddedPostgres
) -> None:
    found = await seen(of(settings, database_url=empty_database_url))
    assert "advisor migrate" in found["postgres"][0].mend
    with administration(postgres.url) as connection:
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
        try:
            found = await seen(settings)
        finally:
            connection.execute("ALTER SYSTEM RESET full_page_writes")
            connection.execute("SELECT pg_reload_conf()")
    assert (
        Finding(
            "postgres",
            State.WRONG,
            "full_page_writes is off",
            "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()",
        )
        in found["postgres"]
    )


async def test_tokens_that_others_can_write_that_ended_and_that_end_soon(
    settings: Settings,
) -> None:
    path = settings.tokens_file
    file, now = TokenFile(path), datetime.now(UTC)
    file.create("old", [Role.AGENT], expires_at=now + timedelta(days=1))
    file.create("ended", [Role.AGENT], expires_at=now + timedelta(days=1))
    file.create("kept", [Role.OPERATOR])
    document = json.loads(path.read_text())
    for token in document["tokens"]:
        if token["name"] == "ended":
            token["expires_at"] = (now - timedelta(days=1)).isoformat()
    path.write_text(json.dumps(document))
    closed = of(settings, open=None)
    found = (await seen(closed))["tokens"]
    assert [(finding.state, finding.mend) for finding in found] == [
        (State.WRONG, "advisor token rotate ended"),
        (State.WATCH, "advisor token rotate old"),
    ]
    path.chmod(0o666)
    (finding,) = (await seen(closed))["tokens"]
    assert finding.state is State.WRONG
    assert f"chmod 600 {path}" in finding.what


async def test_a_disk_that_is_nearly_full_a_home_that_is_not_there_limits_that_are_none(
    settings: Settings, tmp_path: Path
) -> None:
    (disk,) = (await seen(settings, Bounds(1e9, None)))["disk"]
    assert (disk.state, "free space" in disk.mend) == (State.WRONG, True)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('version = "1"\n[exposure]\nmax_notionl = 1\n')
    found = await seen(of(settings, home=tmp_path / "absent", limits=wrong))
    assert found["home"][0].mend == f"mkdir -p -m 700 {tmp_path / 'absent'}"
    assert "did you mean exposure.max_notional?" in found["limits"][0].what


async def test_profiles_that_judge_nobody_are_told(settings: Settings, tmp_path: Path) -> None:
    TokenFile(settings.tokens_file).create("freqtrade", [Role.AGENT])
    folder = tmp_path / "profiles"
    (gone,) = (await seen(of(settings, limits_profiles=folder)))["limits"][1:]
    assert (gone.state, gone.what) == (State.WATCH, f"there is no folder {folder}")
    folder.mkdir()
    for name in ("Freqtrade", "others", "freqtrade"):
        (folder / f"{name}.toml").write_bytes(settings.limits.read_bytes())
    well, near = (await seen(of(settings, limits_profiles=folder)))["limits"]
    assert (well.state, "3 profiles" in well.what) == (State.OK, True)
    assert near.what == "Freqtrade.toml judges nobody: who asks is freqtrade"
    assert near.mend == "name it freqtrade.toml"


async def test_what_waits_on_disk_and_a_prometheus_that_is_none_are_told(
    settings: Settings,
) -> None:
    settings.spool_dir.mkdir()
    (settings.spool_dir / "0.segment").write_bytes(b"x" * 7)
    found = await seen(settings, Bounds(0.0, "http://127.0.0.1:1"))
    assert found["spool"][0].what.startswith("7 bytes in 1 segments")
    assert found["alerts"][0].state is State.WRONG


def test_the_command_tells_a_person_and_a_script_and_ends_with_1(tmp_path: Path) -> None:
    variables = environment(tmp_path, database_url=NOBODY, redis_url="redis://127.0.0.1:1/0")
    done = advisor(variables, "doctor", "--json", "--free-gb", "0")
    assert done.returncode == 1
    told = {row["check"]: row["state"] for row in json.loads(done.stdout)}
    assert (told["postgres"], told["limits"], told["disk"]) == ("wrong", "ok", "ok")
    table = advisor(variables, "doctor")
    assert table.returncode == 1
    assert "how to mend it" in table.stdout
    assert "secret" not in table.stdout + done.stdout


def test_an_unknown_setting_is_a_finding(tmp_path: Path) -> None:
    done = advisor(environment(tmp_path) | {"ADVISOR_PROT": "1"}, "doctor", "--json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert finding["check"] == "settings"
    assert "did you mean ADVISOR_PORT?" in finding["what"]
