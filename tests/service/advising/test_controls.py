"""What people change while the service runs: limits and trading state, followed by every replica,
kept on record."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.advising.controls import MAX_PAUSE_S, REFRESH_S, Controls, Entered
from app.domain.canonical import decision_id
from app.domain.errors import JournalUnavailable, ShadowLogUnavailable
from app.domain.exits import REPORTED, Fixed, Freqtrade
from app.domain.record.event import StateChange
from app.domain.rules.case import TradingState
from app.domain.rules.limits import read_limits
from app.domain.scenario import Scenario
from app.journal.stream import Receipt
from app.local.servers import EmbeddedValkey
from app.shadow_log.limits_history import GENERAL, Adoption
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.telemetry import UNOBSERVED
from tests.service.running import ROOT, Running, drained, request, running, settings_for, until

TOKEN = "correct horse"
SHIPPED = ROOT / "limits.toml"


@pytest.fixture
def limits_file(tmp_path: Path) -> Path:
    path = tmp_path / "limits.toml"
    path.write_bytes(SHIPPED.read_bytes())
    return path


@pytest.fixture
async def api(
    database_url: str, valkey_url: str, limits_file: Path, tmp_path: Path
) -> AsyncIterator[Running]:
    settings = settings_for(database_url, valkey_url, tmp_path / "home")
    async with running(settings.model_copy(update={"limits": limits_file})) as service:
        yield service


@pytest.fixture
async def replicas(
    database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncIterator[list[Running]]:
    """Two of one installation."""
    async with AsyncExitStack() as stack:
        homes = (tmp_path / "one", tmp_path / "two")
        every = [settings_for(database_url, valkey_url, home, admin_token=TOKEN) for home in homes]
        yield [await stack.enter_async_context(running(settings)) for settings in every]


def edited(**changes: tuple[str, str]) -> str:
    """The shipped limits with some text replaced."""
    text = SHIPPED.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return text


NARROW = edited(
    version=('version = "2026-11-26"', 'version = "narrow"'),
    spread=("max_bps = 10.0", "max_bps = 1.0"),
)


def replace(path: Path, text: str) -> None:
    """As an editor saves: another file under the same name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


async def in_force(api: Running) -> dict[str, str]:
    limits = (await api.client.get("/readyz")).json()["limits"]
    return {name: limits[name] for name in ("version", "hash")}


async def codes(api: Running, request_id: str, **changes: Any) -> list[str]:
    """Vetoes of a candidate whose spread is 1.2 bps."""
    reply = (await api.advise(request(request_id, **changes))).json()
    return [veto["code"] for veto in reply["vetoes"]]


async def test_changed_limits_come_into_force_without_a_restart_and_each_decision_keeps_its_own(
    api: Running, limits_file: Path, database_url: str
) -> None:
    before = read_limits(SHIPPED)
    assert await in_force(api) == {"version": before.version, "hash": before.hash()}
    assert await codes(api, "before") == []
    replace(limits_file, NARROW)

    async def narrow() -> bool:
        return (await in_force(api))["version"] == "narrow"

    await until(narrow)
    after = read_limits(limits_file)
    assert (await in_force(api))["hash"] == after.hash() != before.hash()
    assert await codes(api, "after") == ["SPREAD"]
    assert api.metric("advisor_limits_info", hash=after.hash(), version="narrow") == 1
    old = {"hash": before.hash(), "version": before.version}
    assert api.metrics.registry.get_sample_value("advisor_limits_info", old) is None
    assert api.metric("advisor_limits_reload_failures_total") == 0
    assert await drained(api.settings) == 2
    log = ShadowLog.connect(database_url)
    kept = [await log.decision(decision_id(key)) for key in ("before", "after")]
    await log.aclose()
    assert [decision.limits_hash for decision in kept if decision] == [before.hash(), after.hash()]
    assert (await verify_log(database_url)).findings == [], (
        "each replays under the limits of its time"
    )


async def test_limits_edited_in_place_are_followed_though_size_and_time_of_change_say_nothing(
    api: Running, limits_file: Path
) -> None:
    """As a tool does that keeps times: what nobody can set back is when the inode changed."""
    before = limits_file.stat()
    text = limits_file.read_text()
    assert "max_bps = 10.0" in text
    limits_file.write_text(text.replace("max_bps = 10.0", "max_bps = 1.00"))
    os.utime(limits_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = limits_file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )

    async def narrow() -> bool:
        return (await in_force(api))["hash"] == read_limits(limits_file).hash()

    await until(narrow)
    assert await codes(api, "after") == ["SPREAD"]


BAD = {
    "a value": NARROW.replace("max_bps = 1.0", "max_bps = -1.0"),
    "a key": NARROW + "\n[spraed]\nmax_bps = 1.0\n",
    "a switch": NARROW.replace("max_bps = 1.0", "max_bps = 1.0\nenabled = false"),
    "syntax": NARROW.replace("[spread]", "[spread"),
    "infinity": NARROW.replace("max_bps = 1.0", "max_bps = inf"),
    "emptied": "",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
async def test_a_bad_file_keeps_the_old_limits_is_counted_once_and_can_be_mended(
    api: Running, limits_file: Path, text: str
) -> None:
    shipped = read_limits(SHIPPED)
    replace(limits_file, text)

    async def refused() -> bool:
        return api.metric("advisor_limits_reload_failures_total") > 0

    await until(refused)
    assert await in_force(api) == {"version": shipped.version, "hash": shipped.hash()}
    assert await codes(api, "r-1") == []
    for _ in range(3):
        api.service.controls.refresh_limits()
    assert api.metric("advisor_limits_reload_failures_total") == 1, "one bad file is one failure"
    replace(limits_file, NARROW)
    api.service.controls.refresh_limits()
    assert await codes(api, "r-2") == ["SPREAD"]


async def test_a_file_that_vanishes_or_is_no_text_keeps_the_old_limits(
    api: Running, limits_file: Path
) -> None:
    shipped = read_limits(SHIPPED).hash()
    limits_file.unlink()
    api.service.controls.refresh_limits()
    assert api.service.controls.limits_of("agent").hash == shipped
    assert api.metric("advisor_limits_reload_failures_total") == 1
    limits_file.write_bytes(b"\xff\xfe\x00")
    api.service.controls.refresh_limits()
    limits_file.unlink()
    limits_file.mkdir()
    api.service.controls.refresh_limits()
    assert api.service.controls.limits_of("agent").hash == shipped
    assert api.metric("advisor_limits_reload_failures_total") == 3
    limits_file.rmdir()
    replace(limits_file, NARROW)
    api.service.controls.refresh_limits()
    assert api.service.controls.limits.version == "narrow"


async def test_an_edit_in_place_of_the_same_length_is_noticed(
    api: Running, limits_file: Path
) -> None:
    text = edited(spread=("max_bps = 10.0", "max_bps = 1.00"))
    assert len(text) == len(SHIPPED.read_text())
    limits_file.write_text(text)
    api.service.controls.refresh_limits()
    assert await codes(api, "r-1") == ["SPREAD"]


async def test_a_file_that_is_being_written_in_place_is_not_read_half(
    api: Running, limits_file: Path
) -> None:
    """What it does not say yet would have its defaults."""
    controls, whole = api.service.controls, SHIPPED.read_text().replace("2026-11-26", "whole")
    before, seen = controls.limits.version, set()
    with limits_file.open("w", encoding="utf-8") as file:
        for line in whole.splitlines(keepends=True):
            file.write(line)
            file.flush()
            controls._follow_files()
            seen.add(controls.limits.version)
    assert seen == {before}
    controls._follow_files()
    assert controls.limits.version == "whole"


async def test_a_touched_file_changes_nothing_and_has_the_same_hash(
    api: Running, limits_file: Path
) -> None:
    hashed = api.service.controls.limits_of("agent").hash
    replace(limits_file, "# a comment\n" + SHIPPED.read_text())
    os.utime(limits_file)
    api.service.controls.refresh_limits()
    assert api.service.controls.limits_of("agent").hash == hashed
    assert (
        api.metric("advisor_limits_info", hash=hashed, version=api.service.controls.limits.version)
        == 1
    )


async def test_a_principal_with_limits_of_its_own_is_judged_by_them_alone(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "limits"
    folder.mkdir()
    wide = edited(spread=("max_bps = 10.0", "max_bps = 50.0")).replace("2026-11-26", "wide")
    replace(folder / "agent.toml", wide)
    replace(folder / "another.toml", NARROW)
    settings = settings_for(database_url, valkey_url, tmp_path, limits_profiles=folder)
    async with running(settings) as api:
        shown = (await api.client.get("/readyz")).json()["limits"]["profiles"]
        assert {name: each["version"] for name, each in shown.items()} == {
            "agent": "wide",
            "another": "narrow",
        }
        asked = request("r-1", candidate__spread_bps=25.0)
        reply = (await api.advise(asked)).json()
        assert reply["vetoes"] == []
        stored = (await api.client.get(f"/decisions/{reply['decision_id']}")).json()["decision"]
        assert stored["limits"]["version"] == "wide"
        assert stored["limits_hash"] == shown["agent"]["hash"]
        assert (await api.client.post("/advise?dry_run=true", json=asked)).json()[
            "control_vetoes"
        ] == []
        # A bad file keeps what is in force; one that is gone leaves the general limits.
        (folder / "agent.toml").write_text("version = 1")
        api.service.controls.refresh_limits()
        assert await codes(api, "r-2", candidate__spread_bps=25.0) == []
        assert api.metric("advisor_limits_reload_failures_total") == 1
        (folder / "agent.toml").unlink()
        api.service.controls.refresh_limits()
        assert await codes(api, "r-3", candidate__spread_bps=25.0) == ["SPREAD"]
        replace(folder / "agent.toml", NARROW)
        api.service.controls.refresh_limits()
        assert await codes(api, "r-4", candidate__spread_bps=1.2) == ["SPREAD"]


async def test_exits_are_the_requests_else_the_profiles_and_never_made_up(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "limits"
    folder.mkdir()
    declared = '\n[exits]\nkind = "fixed"\nhours = 24\n'
    replace(folder / "agent.toml", SHIPPED.read_text() + declared)
    settings = settings_for(database_url, valkey_url, tmp_path, limits_profiles=folder)
    sent: dict[str, Any] = {
        "silent": {},
        "own": {"kind": "freqtrade", "hours": 24.0, "minimal_roi": {"0": 0.04}},
        "odd": {"kind": "fixed", "hours": -1},
    }
    async with running(settings) as api:
        kept = {}
        for name, exits in sent.items():
            asked = request(name, **({"plan__exits": exits} if exits else {}))
            reply = (await api.advise(asked)).json()
            stored = (await api.client.get(f"/decisions/{reply['decision_id']}")).json()
            kept[name] = Scenario.from_json(stored["decision"]["scenario"])
            again = (await api.advise(asked)).json()
            assert again["repeated"], "a profile is no part of what is asked"
        assert kept["silent"].exits == Fixed(hours=24)
        assert kept["own"].exits == Freqtrade(hours=24, minimal_roi=((0, 0.04),))
        assert kept["odd"].exits == REPORTED
        [gone] = kept["odd"].left_out
        assert gone.field == "plan.exits"
        await drained(settings)
    assert (await verify_log(database_url)).findings == []


async def put(api: Running, state: str, token: str | None = TOKEN, reason: str = "drill") -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {"state": state, "reason": reason, "changed_by": "ops"}
    return await api.client.put("/state", json=body, headers=headers)


async def state_of(api: Running) -> str:
    state: str = (await api.client.get("/state")).json()["state"]
    return state


async def test_each_state_does_what_it_says_on_every_replica(replicas: list[Running]) -> None:
    one, two = replicas
    expected = {"REDUCING": ["STATE_REDUCING"], "HALTED": ["STATE_HALTED"], "ACTIVE": []}
    for number, (state, vetoes) in enumerate(expected.items()):
        sender, follower = (one, two) if number % 2 else (two, one)
        reply = await put(sender, state)
        assert (reply.status_code, reply.json()) == (200, {"state": state, "recorded": "stream"})
        assert await codes(sender, f"sender-{state}") == vetoes, "at once where it was set"

        async def followed(api: Running = follower, state: str = state) -> bool:
            return await state_of(api) == state

        await until(followed)
        assert await codes(follower, f"follower-{state}") == vetoes
        for api in replicas:
            assert {each: api.metric("advisor_state", state=each) for each in TradingState} == {
                each: float(each == state) for each in TradingState
            }
            assert (await api.client.get("/state")).json()["change"]["changed_by"] == "admin"


async def test_the_next_look_of_a_replica_obeys_what_another_was_told_and_looks_come_each_second(
    api: Running,
) -> None:
    """The other replica is one whose background work stands still but for one look."""
    service = api.service
    other = Controls(SHIPPED, None, service.journal, service.shadow_log, UNOBSERVED)
    await other.start()
    assert other.state is TradingState.ACTIVE
    for state in (TradingState.HALTED, TradingState.REDUCING, TradingState.ACTIVE):
        assert (await put(api, state.value, token=None)).status_code == 200
        await other.refresh()
        assert other.state is state
    assert max(REFRESH_S, MAX_PAUSE_S) <= 1.0, "also while looks fail"


async def test_a_refused_change_changes_nothing_anywhere(replicas: list[Running]) -> None:
    for token in ("wrong", TOKEN.upper(), TOKEN[:-1], f"{TOKEN}s"):
        reply = await put(replicas[0], "HALTED", token)
        assert reply.status_code == 401
        assert reply.headers["content-type"] == "application/problem+json"
        assert "not known here" in reply.json()["detail"]
        assert TOKEN not in reply.text
    basic = await replicas[0].client.put(
        "/state",
        json={"state": "HALTED", "reason": "drill", "changed_by": "ops"},
        headers={"Authorization": f"Basic {TOKEN}"},
    )
    assert basic.status_code == 401
    for state, reason in (("PAUSED", "drill"), ("HALTED", ""), ("HALTED", "x" * 201)):
        assert (await put(replicas[0], state, reason=reason)).status_code == 422
    assert [await state_of(api) for api in replicas] == ["ACTIVE", "ACTIVE"]
    assert await drained(replicas[0].settings) == 0


async def test_the_last_change_counts_whatever_the_replicas_clocks_say(
    replicas: list[Running], database_url: str
) -> None:
    slow, exact = replicas
    slow.service.now = lambda: datetime.now(UTC) - timedelta(minutes=1)
    for sender, follower, state in (
        (exact, slow, "REDUCING"),
        (slow, exact, "HALTED"),
        (exact, slow, "ACTIVE"),
    ):
        await put(sender, state)

        async def followed(api: Running = follower, state: str = state) -> bool:
            return await state_of(api) == state

        await until(followed)
        assert await state_of(sender) == state
    assert await drained(slow.settings) == 3
    log = ShadowLog.connect(database_url)
    assert (await log.counts())["state_changes"] == 3, "every change is on record"
    await log.aclose()


@pytest.mark.parametrize("behind", [timedelta(minutes=1), timedelta(days=2)])
async def test_a_halt_by_a_clock_that_is_behind_is_the_newest_of_the_record_too(
    replicas: list[Running], database_url: str, tmp_path: Path, behind: timedelta
) -> None:
    """After Valkey lost its data the record tells the state."""
    slow, exact = replicas
    slow.service.now = lambda: datetime.now(UTC) - behind
    await put(exact, "REDUCING")
    await put(slow, "HALTED")
    assert await drained(slow.settings) == 2
    log = ShadowLog.connect(database_url)
    assert [change.state.value for change in await log.state_changes(9)] == ["HALTED", "REDUCING"]
    await log.aclose()
    with EmbeddedValkey(tmp_path / "new") as empty:
        async with running(settings_for(database_url, empty.url, tmp_path / "other")) as restarted:
            assert await state_of(restarted) == "HALTED"


async def test_of_many_changes_at_once_all_replicas_end_with_the_same(
    replicas: list[Running],
) -> None:
    changes = [put(replicas[n % 2], state) for n in range(5) for state in TradingState]
    assert {reply.status_code for reply in await asyncio.gather(*changes)} == {200}
    last = await replicas[0].service.journal.get_state()
    assert last is not None

    async def agreed() -> bool:
        return [api.service.controls.change for api in replicas] == [last, last]

    await until(agreed)
    assert await drained(replicas[0].settings) == 15
    assert await replicas[0].service.shadow_log.latest_state() == last, "the record says so, too"


async def test_of_two_changes_at_once_the_newer_is_in_force_in_whichever_order_they_are_written(
    replicas: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both know what was before; the older is written last."""
    one, other = (api.service.controls for api in replicas)
    halted, active = change(TradingState.HALTED, 5), change(TradingState.ACTIVE, 0)
    record = other._journal.set_state

    async def after_the_halt(told: StateChange, **how: bool) -> Receipt:
        await one.set_state(halted)
        return await record(told, **how)

    monkeypatch.setattr(other._journal, "set_state", after_the_halt)
    await other.set_state(active)
    for controls in (one, other):
        await controls.refresh()
        assert controls.state is TradingState.HALTED
    await drained(replicas[0].settings)
    assert await replicas[0].service.shadow_log.latest_state() == halted


async def test_a_look_under_way_does_not_undo_limits_that_were_adopted_meanwhile(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the adoption before, and is told late."""
    controls = api.service.controls

    async def adopt(toml: str) -> Adoption:
        seen = controls.by_profile()[GENERAL].hash
        return await controls.adopt(toml, profile=GENERAL, seen=seen, reason="a test", by="me")

    wide = await adopt(edited(version=('version = "2026-11-26"', 'version = "wide"')))
    ask = controls._history.newest

    async def late(last: int) -> list[Adoption]:
        monkeypatch.setattr(controls._history, "newest", ask)
        await adopt(NARROW)
        return [wide]

    monkeypatch.setattr(controls._history, "newest", late)
    await controls.follow_adoptions()
    assert controls.limits.version == "narrow"


async def test_halting_while_valkey_is_away_holds_here_at_once_and_everywhere_when_it_is_back(
    database_url: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        homes = (tmp_path / "one", tmp_path / "two")
        first, second = (
            settings_for(database_url, valkey.url, home, admin_token=TOKEN) for home in homes
        )
        async with running(first) as one, running(second) as two:
            await put(two, "ACTIVE")

            async def known() -> bool:
                return one.service.controls.change == two.service.controls.change

            await until(known)
            one.service.now = lambda: datetime.now(UTC) - timedelta(hours=1)
            valkey.kill()
            assert (await put(one, "HALTED")).json() == {"state": "HALTED", "recorded": "spool"}
            one.service.now = lambda: datetime.now(UTC)
            assert await codes(one, "r-1") == ["STATE_HALTED"]
            assert await state_of(two) == "ACTIVE", "nobody can tell it"
            valkey.start()

            async def told() -> bool:
                return await state_of(two) == "HALTED"

            await until(told)
            assert await state_of(one) == "HALTED"
            await put(two, "ACTIVE")

            async def resumed() -> bool:
                return await state_of(one) == "ACTIVE"

            await until(resumed)


async def test_a_state_that_only_postgres_remembers_is_found_after_valkey_lost_its_data(
    api: Running, valkey: EmbeddedValkey, database_url: str, tmp_path: Path
) -> None:
    await put(api, "REDUCING", token=None)
    assert await drained(api.settings) == 1
    with EmbeddedValkey(tmp_path / "new") as empty:
        async with running(settings_for(database_url, empty.url, tmp_path / "other")) as restarted:
            assert await state_of(restarted) == "REDUCING"


async def test_a_newer_state_that_another_process_entered_meanwhile_stays(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = api.service.controls
    record = controls._journal.set_state

    async def meanwhile(change: StateChange, **how: bool) -> Receipt:
        receipt = await record(change, **how)
        later = change.recorded_at + timedelta(milliseconds=1)
        halted = change.model_copy(update={"state": TradingState.HALTED, "recorded_at": later})
        controls.follow(Entered(halted, shared=True))
        return receipt

    monkeypatch.setattr(controls._journal, "set_state", meanwhile)
    await controls.set_state(
        StateChange(
            state=TradingState.ACTIVE,
            recorded_at=datetime.now(UTC),
            changed_by="ops",
            reason="at the same time as somebody halted it",
        )
    )
    assert controls.state is TradingState.HALTED


def change(state: TradingState, seconds: int) -> StateChange:
    at = datetime(2026, 11, 28, 12, tzinfo=UTC) + timedelta(seconds=seconds)
    return StateChange(recorded_at=at, state=state, reason="a test", changed_by="ops")


async def test_a_halt_that_is_told_while_the_stream_is_asked_is_not_undone_by_its_answer(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sibling's, between the stream's answer and its being read."""
    controls = api.service.controls
    active, halted = change(TradingState.ACTIVE, 0), change(TradingState.HALTED, 5)
    controls.follow(Entered(active, shared=True))

    async def meanwhile() -> StateChange:
        controls.follow(Entered(halted, shared=True))
        return active

    monkeypatch.setattr(controls._journal, "get_state", meanwhile)
    await controls.refresh()
    assert controls.state is TradingState.HALTED


@pytest.mark.parametrize("failure", [None, ShadowLogUnavailable("a test")])
async def test_a_halt_while_the_state_is_learned_is_not_undone_by_what_was_learned(
    api: Running, monkeypatch: pytest.MonkeyPatch, failure: ShadowLogUnavailable | None
) -> None:
    """Valkey is away, and Postgres is slow to tell of the change before."""
    controls = api.service.controls
    active, halted = change(TradingState.ACTIVE, 0), change(TradingState.HALTED, 5)

    async def away(*_: object) -> None:
        raise JournalUnavailable("a test")

    async def spooled(told: StateChange, **how: bool) -> Receipt:
        return Receipt("spool", False)

    async def slow() -> StateChange:
        await controls.set_state(halted)
        if failure is not None:
            raise failure
        return active

    monkeypatch.setattr(controls._journal, "get_state", away)
    monkeypatch.setattr(controls._journal, "set_state", spooled)
    monkeypatch.setattr(controls._log, "latest_state", slow)
    controls._unknown("a test")
    await controls.refresh()
    for _ in range(2):
        await controls.refresh()
        assert controls.change is not None
        assert (controls.state, controls.change.reason) == (TradingState.HALTED, halted.reason)
