"""Limits that operators adopt: in force on every replica, in the place of one content of a file."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from app.advising.controls import Controls
from app.domain.errors import LimitsError, LimitsRefused
from app.domain.rules.limits import parse_limits
from app.shadow_log.proof.verify import verify_log
from tests.service.processes import advisor, environment
from tests.service.running import ROOT, Running, drained, request, running, settings_for, until

SHIPPED = (ROOT / "limits.toml").read_text()
NARROW = SHIPPED.replace("max_bps = 10.0", "max_bps = 1.0")
NARROWER = SHIPPED.replace("max_bps = 10.0", "max_bps = 0.5")


@pytest.fixture
def limits_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "limits.toml", tmp_path / "limits.toml"))


@asynccontextmanager
async def replica(
    database_url: str, valkey_url: str, home: Path, limits: Path
) -> AsyncIterator[Running]:
    settings = settings_for(database_url, valkey_url, home).model_copy(update={"limits": limits})
    async with running(settings) as api:
        yield api


@pytest.fixture
async def api(
    database_url: str, valkey_url: str, tmp_path: Path, limits_file: Path
) -> AsyncIterator[Running]:
    async with replica(database_url, valkey_url, tmp_path / "one", limits_file) as api:
        yield api


def spread_of(controls: Controls) -> float:
    return controls.limits.spread.max_bps


def started(api: Running, limits: Path, kept: Path) -> Controls:
    """The limits of a replica that starts, before it asks anybody."""
    service = api.service
    return Controls(limits, None, service.journal, service.shadow_log, service.telemetry, kept)


async def adopt(api: Running, toml: str | None, **other: str) -> int:
    controls = api.service.controls
    seen = controls.by_profile()[""].hash
    told = {"profile": "", "seen": seen, "reason": "tried", "by": "ops"} | other
    return (await controls.adopt(toml, **told)).id  # type: ignore[arg-type]


async def test_adopted_limits_judge_at_once_and_stand_in_the_record(api: Running) -> None:
    await adopt(api, NARROW)
    answer = (await api.advise(request("a", candidate__spread_bps=4.0))).json()
    document = (await api.client.get(f"/decisions/{answer['decision_id']}")).json()["decision"]
    assert document["limits_hash"] == parse_limits(NARROW, "here").hash()
    assert "SPREAD" in [veto["code"] for veto in document["control_review"]["vetoes"]]
    ready = (await api.client.get("/readyz")).json()["limits"]
    assert ready["adopted"] == 1
    await drained(api.settings)
    assert not (await verify_log(api.settings.database_url or "")).findings


async def test_another_replica_follows_and_a_start_remembers(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path, limits_file: Path
) -> None:
    home = tmp_path / "two"
    async with replica(database_url, valkey_url, home, limits_file) as other:
        await adopt(api, NARROW)

        async def followed() -> bool:
            return spread_of(other.service.controls) == 1.0

        await until(followed)
    kept = home / "limits-adopted.json"
    assert spread_of(started(api, limits_file, kept)) == 1.0, "before Postgres was asked"
    kept.write_text("[{]")
    alone = started(api, limits_file, kept)
    assert spread_of(alone) == 10.0
    await alone.follow_adoptions()
    assert spread_of(alone) == 1.0


async def test_a_replica_whose_file_is_another_one_says_that_it_does_not_follow(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    others = tmp_path / "others.toml"
    others.write_text(SHIPPED.replace("max_bps = 10.0", "max_bps = 3.0"))
    async with replica(database_url, valkey_url, tmp_path / "two", others) as other:
        await adopt(api, NARROW)

        async def told() -> bool:
            limits = (await other.client.get("/readyz")).json()["limits"]
            return limits.get("overruled") == ["general"]

        await until(told)
        assert spread_of(other.service.controls) == 3.0
    assert "overruled" not in (await api.client.get("/readyz")).json()["limits"]


async def test_a_file_that_is_edited_by_hand_judges_again(api: Running, limits_file: Path) -> None:
    await adopt(api, NARROW)
    limits_file.write_text("# a comment alone changes nothing\n" + SHIPPED)
    api.service.controls.refresh_limits()
    assert spread_of(api.service.controls) == 1.0
    limits_file.write_text(SHIPPED.replace("max_bps = 10.0", "max_bps = 7.0"))
    api.service.controls.refresh_limits()
    assert spread_of(api.service.controls) == 7.0
    assert list(api.service.controls.overruled()) == [""]
    seen = api.service.controls.by_profile()[""].hash
    back = {"rollback": True, "reason": "r", "changed_by": "me", "seen": seen}
    reply = await api.client.put("/limits", json=back)
    assert (reply.status_code, reply.json()["title"]) == (409, "The limits stay as they are")
    with pytest.raises(LimitsRefused, match="the file judges already"):
        await api.service.controls.roll_back(profile="", seen=seen, reason="", by="ops")
    await adopt(api, NARROWER)
    assert spread_of(api.service.controls) == 0.5
    assert api.service.controls.overruled() == {}


async def test_two_rollbacks_in_a_row_end_at_the_file(api: Running) -> None:
    controls = api.service.controls
    await adopt(api, NARROW)
    await adopt(api, NARROWER)
    told = []
    for _ in range(2):
        seen = controls.by_profile()[""].hash
        await controls.roll_back(profile="", seen=seen, reason="worse", by="ops")
        told.append(spread_of(controls))
    assert told == [1.0, 10.0]
    with pytest.raises(LimitsRefused, match="nothing to go back from"):
        await controls.roll_back(
            profile="", seen=controls.by_profile()[""].hash, reason="", by="ops"
        )


async def test_who_looked_at_others_changes_nothing(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path, limits_file: Path
) -> None:
    seen = api.service.controls.by_profile()[""].hash
    await adopt(api, NARROW)
    with pytest.raises(LimitsRefused, match="not those that you looked at"):
        await adopt(api, NARROWER, seen=seen)
    with pytest.raises(LimitsRefused, match="in force already"):
        await adopt(api, NARROW)
    with pytest.raises(LimitsError, match="max_bps"):
        await adopt(api, SHIPPED.replace("max_bps = 10.0", "max_bps = -1.0"))
    with pytest.raises(LimitsRefused, match="no limits file of"):
        await adopt(api, NARROWER, profile="nobody")
    assert spread_of(api.service.controls) == 1.0


async def test_of_two_that_adopt_at_once_one_is_let_in(api: Running) -> None:
    """Both follow the same one before: the database lets one in."""
    history = api.service.controls._history
    file_hash = api.service.controls.by_profile()[""].hash
    first = await history.adopt(
        NARROW, profile="", after=0, file_hash=file_hash, reason="x", by="a"
    )
    with pytest.raises(LimitsRefused, match="somebody else"):
        await history.adopt(NARROWER, profile="", after=0, file_hash=file_hash, reason="x", by="b")
    assert [each.id for each in await history.adoptions_of("")] == [first.id]


async def test_the_newest_of_each_profile_are_told(api: Running) -> None:
    """One profile's many adoptions hide none of another's."""
    history = api.service.controls._history
    file_hash = api.service.controls.by_profile()[""].hash
    ids = {"": 0, "other": 0}
    for profile in ("other", "", "", ""):
        made = await history.adopt(
            NARROW, profile=profile, after=ids[profile], file_hash=file_hash, reason="x", by="a"
        )
        ids[profile] = made.id
    told = await history.newest_of_each(2)
    assert [each.profile for each in told] == ["", "", "other"]
    assert [each.id for each in told] == sorted((each.id for each in told), reverse=True)
    assert len(await history.adoptions_of("")) == 3


async def test_an_edited_adoption_is_found(api: Running) -> None:
    await adopt(api, NARROW)
    url = api.settings.database_url or ""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE limits_adoptions SET reason = 'other'")
    assert "limits_adoption" in str((await verify_log(url)).findings)


async def test_the_command_shows_adopts_and_goes_back(api: Running, tmp_path: Path) -> None:
    variables = environment(tmp_path / "cli")
    narrow = tmp_path / "narrow.toml"
    narrow.write_text(NARROW)

    async def limits(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(advisor, variables, "limits", *arguments, "--url", api.url)
        return done.returncode, done.stdout + done.stderr

    status, told = await limits("diff", str(narrow), "--json")
    assert json.loads(told) == [{"name": "spread.max_bps", "before": 10.0, "after": 1.0}]
    reasons = ("--reason", "spreads", "--by", "me")
    status, told = await limits("adopt", str(narrow), *reasons)
    assert (status, "adoption 1" in told) == (0, True)
    assert spread_of(api.service.controls) == 1.0
    status, told = await limits("adopt", str(narrow), *reasons)
    assert (status, "in force already" in told) == (2, True)
    status, told = await limits("history")
    assert "by adoption 1" in told
    assert "me: spreads" in told, "who said so, beside the token's own name"
    assert (await limits("rollback", "--reason", "worse"))[0] == 0
    assert spread_of(api.service.controls) == 10.0
    status, told = await limits("history", "--profile", "nobody")
    assert (status, "no limits of 'nobody'" in told) == (2, True)
    narrow.write_text("spread = [")
    status, told = await limits("adopt", str(narrow), *reasons)
    assert (status, "not valid TOML" in told) == (2, True)
