"""What a request leaves open of its account is what the agent itself reported."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.advising.accounts import Accounts, Trader
from app.domain.errors import ShadowLogUnavailable
from app.domain.record.control import AgentAction
from app.domain.record.event import reported
from app.domain.record.ledger import Offer
from app.domain.record.outcome import Outcome
from app.journal.journal import Journal
from app.journal.ledger import Entry
from app.journal.spool import Spool
from app.journal.stream import StreamJournal
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from tests import builders as build
from tests.service.journal.journal_events import client
from tests.service.journal.test_places import started
from tests.service.running import Running, drained, request, running, settings_for, until


async def told(api: Running, path: str, **document: Any) -> None:
    reply = await api.client.put(path, json=document)
    assert reply.status_code == 202, reply.text


async def forgotten(api: Running, valkey_url: str, notes: int | None = None) -> None:
    """Empty Valkey, and wait until the record has told it the ledger again: `notes` of them, or
    some."""
    with client(valkey_url) as valkey:
        valkey.flushall()

    async def found_again() -> bool:
        known = await api.service.journal.ledger_of("agent")
        return len(known or ()) == notes if notes is not None else bool(known)

    await until(found_again)


async def account(api: Running, request_id: str, **sent: Any) -> dict[str, Any]:
    """The account of a decision whose request sends no other fields of it than these."""
    old = {name: sent.pop(name) for name in list(sent) if "__" in name}
    asked = request(request_id, **old, account=sent)

    async def answered() -> bool:
        """A replica that sees that Valkey was emptied says so once: ask again."""
        return (await api.advise(asked)).status_code == 200

    await until(answered)
    reply = await api.advise(asked)
    stored = (await api.client.get(f"/decisions/{reply.json()['decision_id']}")).json()
    scenario: dict[str, Any] = stored["decision"]["scenario"]
    return dict(scenario["account"])


async def traded(api: Running, request_id: str, **fields: Any) -> str:
    known: str = (await api.advise(request(request_id))).json()["decision_id"]
    await told(api, f"/decisions/{known}/agent-action", **{"decision": True} | fields)
    return f"/decisions/{known}/outcome"


async def whole(api: Running) -> None:
    async def filled() -> bool:
        return await api.service.journal.ledger_of("agent") is not None

    await until(filled)


async def test_positions_days_result_and_losses_follow_from_the_agents_own_reports(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        await whole(api)
        assert (await account(api, "before"))["positions"] is None, "nobody reported anything"
        first = await traded(api, "r-1", quantity=0.02, entry=40_010.0)
        await told(api, first, arm="agent", outcome="sl", net_pnl=-12.5)
        second = await traded(api, "r-2")
        # What was simulated is no report of the agent's.
        await told(api, second, arm="agent", outcome="sl", r_multiple=-1.0, source="simulated")
        now = await account(api, "r-3", equity=9987.5)
        [held] = now["positions"]
        assert (held["symbol"], held["quantity"], held["entry"]) == ("BTCUSDT", 0.01, 40_000.0)
        assert now["day_pnl_fraction"] == -12.5 / 10_000
        assert now["consecutive_losses"] == 1
        assert now["derived"]["fields"] == [
            "consecutive_losses",
            "day_pnl_fraction",
            "positions",
            "seconds_since_loss",
        ]
        assert 0 <= now["derived"]["age_s"] < 60
        mine = await account(api, "r-4", positions=[], consecutive_losses=0, day_pnl_fraction=0.0)
        assert (mine["positions"], "derived" in mine) == ([], False)
        asked = request("r-6", account={"equity": 9987.5})
        assert not (await api.advise(asked)).json()["repeated"]
        await traded(api, "r-7")
        assert (await api.advise(asked)).json()["repeated"], "derived is no part of what is asked"
        # The agent corrects itself: the second was never opened.
        await told(api, second.replace("outcome", "agent-action"), decision=False)
        assert len((await account(api, "r-5"))["positions"]) == 1
        assert await drained(settings) == 14
    assert (await verify_log(database_url)).findings == []


async def test_another_replica_knows_them_and_postgres_tells_them_to_an_emptied_valkey(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    first = settings_for(database_url, valkey_url, tmp_path / "first")
    second = settings_for(database_url, valkey_url, tmp_path / "second")
    async with running(first) as api, running(second) as other:
        await whole(api)
        await traded(api, "r-1")
        assert len((await account(other, "r-2"))["positions"]) == 1
        await drained(first)
        await forgotten(other, valkey_url, notes=1)
        [held] = (await account(other, "r-3"))["positions"]
        assert held["symbol"] == "BTCUSDT"
        assert datetime.fromisoformat(held["opened_at"]) <= datetime.now(UTC)


LONG_AGO = "2017-10-08T12:00:00Z"


async def test_a_replay_of_history_leaves_nothing_in_the_live_account_on_any_road(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Told to a replaying service, to a live one, and to a Valkey that lost its memory."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    replaying = settings.model_copy(update={"clock": "request"})
    old = {"candidate__ts": LONG_AGO, "market__bar_closed_at": LONG_AGO}
    async with running(replaying) as demo:
        reply = await demo.advise(request("d-1", **old))
        path = f"/decisions/{reply.json()['decision_id']}/agent-action"
        await told(demo, path, decision=True, decided_at=LONG_AGO)
        assert await drained(settings) == 2
    async with running(settings) as api:
        await whole(api)
        assert (await account(api, "r-1"))["positions"] is None, "the record's road"
        reply = await api.advise(request("d-2", **old, account={}))
        path = f"/decisions/{reply.json()['decision_id']}"
        await told(api, f"{path}/agent-action", decision=True)
        await told(api, f"{path}/outcome", arm="agent", outcome="sl", net_pnl=-5.0)
        assert (await account(api, "r-2"))["positions"] is None, "the memory's road"
        await traded(api, "r-3", decided_at=datetime.now(UTC).isoformat())
        before = await account(api, "r-4")
        assert (len(before["positions"]), before["consecutive_losses"]) == (1, 0)
        back = await account(api, "d-3", **old)
        assert "derived" not in back, "a replay does not see the live account either"
        await drained(settings)
        await forgotten(api, valkey_url)
        after = await account(api, "r-5")
    names = ("consecutive_losses", "day_pnl_fraction", "positions")
    assert [after[name] for name in names] == [before[name] for name in names]


async def test_a_back_test_in_any_order_gives_no_candidate_what_happened_after_it(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Symbol by symbol over the same days, with and without times, and after Valkey forgot."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    noon = (datetime.now(UTC) - timedelta(days=20)).replace(hour=12, minute=0)

    def at(**later: float) -> dict[str, Any]:
        moment = (noon + timedelta(**later)).isoformat()
        return {"candidate__ts": moment, "market__bar_closed_at": moment}

    async def trade(name: str, ended_at: datetime | None, **later: float) -> None:
        path = (
            f"/decisions/{(await api.advise(request(name, **at(**later)))).json()['decision_id']}"
        )
        await told(api, f"{path}/agent-action", decision=True)
        if ended_at is not None:
            end = {"arm": "agent", "outcome": "sl", "net_pnl": -60.0}
            await told(api, f"{path}/outcome", **end, exit_time=ended_at.isoformat())

    async def seen(name: str, **later: float) -> tuple[int | None, Any, int | None]:
        told = await account(api, name, equity=9940.0, **at(**later))
        held = None if told["positions"] is None else len(told["positions"])
        return held, told["day_pnl_fraction"], told["consecutive_losses"]

    async with running(settings) as api:
        await whole(api)
        await trade("b-1", noon + timedelta(hours=2))
        await trade("b-2", None, days=1)
        before, between = await seen("e-1", days=-1), await seen("e-2", hours=1)
        after, last = await seen("e-3", hours=3), await seen("e-4", days=1)
        assert before == (None, None, None), "nobody had reported anything"
        assert between == (1, 0.0, 0), "the trade is open"
        assert after == (0, -60 / 10_000, 1)
        assert last == (1, 0.0, 1)
        await drained(settings)
        await forgotten(api, valkey_url)
        assert await seen("f-1", days=-1) == before
        assert await seen("f-2", hours=1) == between
        assert await seen("f-4", days=1) == last


async def test_an_end_without_an_action_counts_the_same_before_and_after_valkey_forgot(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        await whole(api)
        known = (await api.advise(request("r-1"))).json()["decision_id"]
        loss = {"arm": "agent", "outcome": "sl", "net_pnl": -12.5}
        await told(api, f"/decisions/{known}/outcome", **loss)
        before = await account(api, "r-2", equity=9987.5)
        assert (before["consecutive_losses"], before["day_pnl_fraction"]) == (1, -12.5 / 10_000)
        await drained(settings)
        await forgotten(api, valkey_url)
        after = await account(api, "r-3", equity=9987.5)
    names = ("consecutive_losses", "day_pnl_fraction", "positions")
    assert [after[name] for name in names] == [before[name] for name in names]


async def test_who_reported_only_that_it_did_not_trade_holds_nothing_also_after_valkey_forgot(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    names = ("consecutive_losses", "day_pnl_fraction", "positions")
    async with running(settings) as api:
        await whole(api)
        for number in range(2):
            await traded(api, f"r-{number}", decision=False, reason="a test")
        old = {"candidate__ts": LONG_AGO, "market__bar_closed_at": LONG_AGO}
        replayed = (await api.advise(request("d-1", **old))).json()["decision_id"]
        await told(api, f"/decisions/{replayed}/agent-action", decision=False, reason="a replay")
        before = await account(api, "r-2", equity=9987.5)
        assert [before[name] for name in names] == [0, 0.0, []]
        await drained(settings)
        await forgotten(api, valkey_url, notes=1)
        after = await account(api, "r-3", equity=9987.5)
    assert [after[name] for name in names] == [0, 0.0, []]


async def test_replicas_whose_clocks_lie_on_both_sides_of_midnight_share_one_days_result(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """The day is that of the moment that is asked about, whoever is asked."""
    day = datetime(2026, 11, 28, tzinfo=UTC)
    clocks = [day - timedelta(seconds=2), day + timedelta(seconds=3)]
    log = ShadowLog.connect(database_url)
    journals = [
        Journal(StreamJournal(valkey_url), Spool(tmp_path / str(number), 1 << 20))
        for number in range(2)
    ]
    for journal in journals:
        await journal.start()
        await journal.fill_ledger(nothing_recorded)
    replicas = [
        Accounts(journal, log, partial(at_once, clock), live=True)
        for journal, clock in zip(journals, clocks, strict=True)
    ]
    names = ("positions", "day_pnl_fraction", "consecutive_losses", "seconds_since_loss")
    untold: dict[str, Any] = {f"account__{name}": ... for name in names}
    plain = build.scenario()
    trader = Trader("desk", Offer("BTCUSDT", plain.candidate.direction, plain.plan), replayed=False)
    for replica, net, at in zip(replicas, (-10.0, -5.0), (9, 4), strict=True):
        known, ended_at = uuid4(), (day - timedelta(seconds=at)).isoformat()
        loss = {"arm": "agent", "outcome": "sl", "net_pnl": net, "exit_time": ended_at}
        for said in (AgentAction(decision=True), Outcome.from_json(loss)):
            _, report = reported(said, known, replica._now(), None)
            await replica.told(trader, report)
    for replica, clock in zip(replicas, clocks, strict=True):
        for moment, result in ((day - timedelta(seconds=1), -15 / 10_000), (day, 0.0)):
            asked = build.scenario(as_of=moment, account__equity=9_985.0, **untold)
            account = (await replica.completed(asked, "desk", clock)).account
            assert account.day_pnl_fraction == result
            assert account.consecutive_losses == 2
            assert account.positions == ()
    for journal in journals:
        await journal.aclose()
    await log.aclose()


async def test_a_correction_counts_though_the_clock_that_took_it_is_behind(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Its place among the reports says that it came later."""
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    log = ShadowLog.connect(database_url)
    plain = build.scenario()
    trader = Trader("desk", Offer("BTCUSDT", plain.candidate.direction, plain.plan), replayed=False)
    known, ended_at = uuid4(), (now - timedelta(minutes=5)).isoformat()
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing_recorded)
        accounts = Accounts(journal, log, partial(at_once, now), live=True)
        for net, behind_s, arrival in ((900.0, 0, 1), (-900.0, 2, 2)):
            said = {"arm": "agent", "outcome": "sl", "net_pnl": net, "exit_time": ended_at}
            at = now - timedelta(seconds=behind_s)
            _, report = reported(Outcome.from_json(said), known, at, None)
            await accounts.told(trader, report.model_copy(update={"arrival": arrival}))
        notes = await journal.ledger_of("desk")
    await log.aclose()
    assert notes is not None
    told = notes[str(known)]
    assert told.closed is not None
    assert (told.closed.net, told.told_at) == (-900.0, now - timedelta(seconds=2))


async def test_a_report_whose_decision_nobody_could_look_up_is_in_the_account_or_none_is_told(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after a restart, while Postgres does not answer; another process beside the one that
    took it tells nothing either."""
    settings = settings_for(database_url, valkey_url, tmp_path / "one")
    async with running(settings) as api:
        outcome = await traded(api, "r-1", quantity=0.02, entry=40_010.0)
        await drained(settings)
    beside = settings_for(database_url, valkey_url, tmp_path / "two")
    async with running(settings) as api, running(beside) as other:
        for each in (api, other):
            await whole(each)

        async def away(*_: object) -> None:
            raise ShadowLogUnavailable("a test")

        with monkeypatch.context() as patched:
            patched.setattr(api.service.shadow_log, "decision", away)
            await told(api, outcome, arm="agent", outcome="sl", net_pnl=-500.0)
        for each in (api, other):
            assert await each.service.journal.ledger_of("agent") is None
        await drained(settings)
        for number, each in enumerate((api, other)):
            await whole(each)
            now = await account(each, f"s-{number}", equity=9_500.0)
            assert now["positions"] == []
            assert now["day_pnl_fraction"] == -0.05
            assert now["consecutive_losses"] == 1


@pytest.mark.parametrize("kind", ["control", "report"])
async def test_a_caller_that_goes_away_leaves_no_account_that_lacks_what_it_told(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Between the event and the ledger."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        await whole(api)

        async def gone(*_: object) -> None:
            raise asyncio.CancelledError

        records = api.service.records
        control = build.agent_action(True) if kind == "control" else None
        decision = build.decision(f"gone-{kind}", control=control, at=datetime.now(UTC))
        if kind == "control":
            said = records.keep(decision)
        else:
            await records.keep(decision)
            records.remember(decision)
            said = records.report_action(decision.decision_id, AgentAction(decision=True))
        monkeypatch.setattr(api.service.journal, "note", gone)
        with pytest.raises(asyncio.CancelledError):
            await said
        monkeypatch.undo()
        assert await api.service.journal.ledger_of(decision.principal or "agent") is None
        await drained(settings)
        await whole(api)
        notes = await api.service.journal.ledger_of(decision.principal or "agent")
        assert notes is not None
        assert notes[str(decision.decision_id)].opened is not None


def at_once(clock: datetime) -> datetime:
    return clock


async def nothing_recorded() -> list[Entry]:
    return []
