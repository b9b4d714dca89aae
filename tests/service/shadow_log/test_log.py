"""What is appended to the shadow log is there once, by value, and comes back as it was."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
from psycopg.rows import dict_row

from app.domain.canonical import canonical_json, decision_id, digest
from app.domain.errors import (
    AbstainReason,
    AliasRefused,
    InvalidRecord,
    ManifestMismatch,
    ShadowLogUnavailable,
)
from app.domain.record.decision import Abstention
from app.domain.record.event import Event, EventKind
from app.domain.rules.case import TradingState
from app.shadow_log.log import ShadowLog
from tests import builders as build

NASTY = 'tab\there, "quotes", back\\slash, \\N, new\nline, \u20ac \U0001f600, {curly}, NULL, \\. '


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    yield opened
    await opened.aclose()


def rows(url: str, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """What Postgres holds, read without the code under test."""
    with psycopg.connect(url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        return connection.execute(query, parameters or None).fetchall()


async def test_a_decision_is_stored_in_columns_that_people_filter_on(
    log: ShadowLog, database_url: str
) -> None:
    made = build.decision("r-1", candidate__tier="TIER2", candidate__volatility_pct=0.8)
    await log.append([Event.of_decision(made)])
    (row,) = rows(database_url, "SELECT * FROM whole_decisions")
    told = {
        "decision_id": made.decision_id,
        "as_of": build.AS_OF,
        "principal": None,
        "request_id": "r-1",
        "received_at": build.AS_OF,
        "evaluated_at": build.AS_OF,
        "symbol": "ETHUSDT",
        "session": "Europe",
        "setup_type": "trend",
        "tier": "TIER2",
        "regime": "volatile",
        "score": 6.8,
        "state": "ACTIVE",
        "status": "advised",
        "approve": True,
        "control_veto_codes": [],
        "prompt_version": made.prompt.version,
        "prompt_hash": made.prompt_hash,
        "limits_version": "test",
        "limits_hash": build.LIMITS.hash(),
        "traceparent": None,
        "record_hash": made.hash(),
    }
    assert {name: row[name] for name in told} == told
    assert row["scenario"]["candidate"]["rsi"] == 56.2
    assert (row["prompt_user"], row["request_hash"]) == (made.prompt.user, made.request_hash)
    (kept,) = rows(database_url, "SELECT rsi, scenario FROM decisions")
    assert kept == {"rsi": 56.2, "scenario": {"account": {"positions": []}}}
    assert datetime.now(UTC) - row["recorded_in_log_at"] < timedelta(minutes=5)


async def test_a_decision_s_advices_and_its_control_are_rows_beside_it(
    log: ShadowLog, database_url: str
) -> None:
    made = build.decision("r-1", label="H", control=True, shadows=[("other-2", "A")])
    appended = await log.append([Event.of_decision(made)])
    assert appended.inserted == {"decisions": 1, "advices": 2, "agent_actions": 1}
    assert (appended.duplicates, appended.conflicts) == (0, [])
    primary, shadow = rows(database_url, "SELECT * FROM advices ORDER BY ordinal")
    assert (primary["model_version"], primary["role"], primary["action"]) == (
        "test-1",
        "primary",
        "approve_r1.00_s1.0",
    )
    assert (primary["label"], primary["approve"], primary["quantity"]) == ("H", True, 0.25)
    assert primary["stop"] == 1980.0, "one ATR of 20 below the entry at 2000"
    assert primary["approve_probability"] == pytest.approx(0.99)
    assert (shadow["model_version"], shadow["role"], shadow["label"], shadow["approve"]) == (
        "other-2",
        "shadow",
        "A",
        False,
    )
    (control,) = rows(database_url, "SELECT * FROM agent_actions")
    assert (control["event_key"], control["decision"]) == (f"control:{made.decision_id}", True)


async def test_the_record_comes_back_equal_and_with_the_same_hash(
    log: ShadowLog, database_url: str
) -> None:
    made = build.decision(
        "r-nasty",
        control=build.agent_action(
            reason=NASTY, targets=[], extra={"b": [], "a": {"deep": [1.5, None, True, ""]}}
        ),
        shadows=[("late", Abstention(AbstainReason.DEADLINE, NASTY))],
        candidate__news_summary=NASTY,
        candidate__macd=-0.0,
        candidate__next_return=1e-7,
        candidate__cvd=1e22,
        candidate__cvd_change=5e-324,
        candidate__cvd_divergence=-1.7976931348623157e308,
        candidate__order_flow_score=0.1 + 0.2,
        candidate__volume_profile={"failed_low": 1.0, "lvns": []},
        candidate__extra={
            "zeta": 1.0,
            "alpha": -0.0,
            "ünïcode": NASTY,
            "numbers": [2**53 - 1, 1e-9, 0.1],
        },
        account__equity=123456789.123456789,
        account__positions=None,
    )
    event = Event.of_decision(made)
    await log.append([event])
    back = await log.decision(made.decision_id)
    assert back == made
    assert canonical_json(back.as_json()) == event.payload
    (stored,) = rows(database_url, "SELECT record_hash FROM whole_decisions")
    assert stored["record_hash"] == digest(event.payload) == back.hash()
    assert back.scenario.candidate.news_summary == made.scenario.candidate.news_summary
    assert back.replayed() == made
    assert math.copysign(1, back.scenario.candidate.macd or 0) == 1, (
        "the sign of zero is forgotten, by agreement"
    )


async def test_floats_in_columns_are_bit_exact_and_nulls_are_null(
    log: ShadowLog, database_url: str
) -> None:
    awkward = build.outcome(r=-1e-7, net_pnl=1e22, mae_r=-0.1 - 0.2, mfe_r=5e-324, outcome="sl")
    await log.append([build.decision_event(), build.outcome_event("r-1", awkward)])
    (row,) = rows(
        database_url,
        "SELECT r_multiple, net_pnl, mae_r, mfe_r, exit_time, model_version FROM outcomes",
    )
    assert list(row.values()) == [-1e-7, 1e22, -0.1 - 0.2, 5e-324, None, None]


async def test_vetoes_and_abstentions_have_their_columns(log: ShadowLog, database_url: str) -> None:
    await log.append(
        [
            build.decision_event("vetoed", candidate__spread_bps=50.0),
            build.decision_event("abstained", label=Abstention(AbstainReason.OVERLOADED)),
        ]
    )
    found = rows(
        database_url,
        "SELECT d.request_id, d.status, a.approve, a.veto_codes, a.abstain_reason,"
        " d.control_veto_codes FROM decisions d JOIN advices a USING (decision_id) ORDER BY 1 DESC",
    )
    assert [list(row.values()) for row in found] == [
        ["vetoed", "vetoed", False, ["SPREAD"], None, ["SPREAD"]],
        ["abstained", "abstained", None, [], "overloaded", []],
    ]


async def test_every_event_arrives_exactly_once_however_often_it_comes(log: ShadowLog) -> None:
    events = [
        build.decision_event("r-1", control=True),
        build.action_event("r-1", False),
        build.outcome_event("r-1", build.outcome(r=-1.0)),
        build.rationale_event("r-1"),
        build.state_event(),
        build.late_advice_event(build.decision("r-1")),
        build.repetition_event(build.decision("r-1")),
    ]
    first = await log.append(events)
    assert first.inserted == {
        "decisions": 1, "advices": 1, "agent_actions": 2, "outcomes": 1, "rationales": 1,
        "state_changes": 1, "late_advices": 1, "repetitions": 1,
    }  # fmt: skip
    again = await log.append([*events, *events])
    assert (again.inserted, again.duplicates, again.conflicts) == ({}, 14, [])
    expected = {
        "decisions": 1,
        "advices": 1,
        "agent_actions": 2,
        "outcomes": 1,
        "rationales": 1,
        "state_changes": 1,
        "late_advices": 1,
        "repetitions": 1,
    }
    assert await log.counts() == expected


async def test_repeats_within_one_batch_are_one_row(log: ShadowLog) -> None:
    event = build.decision_event("r-1")
    appended = await log.append([event, event, build.decision_event("r-2"), event])
    assert (appended.inserted["decisions"], appended.duplicates, appended.conflicts) == (2, 2, [])


async def test_the_same_id_with_another_request_is_a_conflict_and_the_first_stays(
    log: ShadowLog,
) -> None:
    first, other = build.decision("r-1"), build.decision("r-1", candidate__rsi=31.0)
    await log.append([Event.of_decision(first)])
    appended = await log.append([Event.of_decision(other)])
    assert (appended.inserted, appended.duplicates) == ({"put_aside": 1}, 0)
    assert appended.conflicts == [str(first.decision_id)]
    assert await log.decision(first.decision_id) == first
    assert await log.claim(first.decision_id) == first.request_hash
    in_one_batch = await log.append(
        [build.decision_event("r-2"), build.decision_event("r-2", candidate__rsi=31.0)]
    )
    assert (in_one_batch.inserted["decisions"], in_one_batch.conflicts) == (
        1,
        [str(decision_id("r-2"))],
    )


async def test_writers_side_by_side_write_every_event_once(log: ShadowLog) -> None:
    months = [datetime(2024, month, 1, tzinfo=UTC) for month in range(1, 7)]
    events = [build.decision_event(f"r-{n}", at=months[n % 6], control=True) for n in range(60)]
    appended = await asyncio.gather(
        log.append(events),
        log.append(events[::-1]),
        log.append(events[30:] + events[:30]),
        log.append(events[::2]),
    )
    assert sum(each.inserted.get("decisions", 0) for each in appended) == 60
    assert sum(each.duplicates for each in appended) == 150
    assert (await log.counts())["advices"] == 60


async def test_a_batch_with_an_impossible_event_writes_nothing(log: ShadowLog) -> None:
    broken = Event(EventKind.DECISION, str(uuid4()), "sha256:" + "1" * 64, b'{"decision_id": "no"}')
    with pytest.raises(InvalidRecord, match="decision_id"):
        await log.append([build.decision_event("r-1"), broken])
    assert (await log.counts())["decisions"] == 0


async def test_what_postgres_cannot_store_is_the_events_fault_and_leaves_nothing_behind(
    log: ShadowLog,
) -> None:
    good = build.decision_event("r-1")
    document = orjson.loads(good.payload) | {"request_id": "zero \x00 byte"}
    bad = good._replace(payload=orjson.dumps(document))
    with pytest.raises(Exception, match=r"NUL|0x00|u0000") as caught:
        await log.append([bad])
    assert not isinstance(caught.value, ShadowLogUnavailable)
    assert (await log.append([good])).inserted["decisions"] == 1, "its id is free again"


async def test_reports_may_come_before_their_decision(log: ShadowLog) -> None:
    await log.append([build.outcome_event("r-1", build.outcome(r=2.0)), build.action_event("r-1")])
    assert await log.get(decision_id("r-1")) is None
    await log.append([build.decision_event("r-1")])
    document = await log.get(decision_id("r-1"))
    assert document is not None
    assert [each["r_multiple"] for each in document["outcomes"]] == [2.0]


async def test_a_decision_is_read_back_with_everything_that_was_reported_oldest_first(
    log: ShadowLog,
) -> None:
    made = build.decision("r-1")
    await log.append(
        [
            build.outcome_event("r-1", build.outcome(r=1.5), minutes=90),
            build.outcome_event("r-1", build.outcome(r=1.0), minutes=60),
            Event.of_decision(made),
            build.action_event("r-1", build.agent_action(False, final_skip_reason="score")),
            build.rationale_event("r-1", "Trend and flow agree."),
        ]
    )
    document = await log.get(made.decision_id)
    assert document is not None
    assert document["decision"] == made.as_json()
    assert document["record_hash"] == made.hash()
    assert [each["final_skip_reason"] for each in document["agent_actions"]] == ["score"]
    assert [each["r_multiple"] for each in document["outcomes"]] == [1.0, 1.5]
    assert document["rationales"][0]["text"] == "Trend and flow agree."
    assert orjson.loads(orjson.dumps(document)) == document, "it is JSON throughout"
    assert await log.get(uuid4()) is None
    assert await log.decision(uuid4()) is None
    assert await log.claim(uuid4()) is None


async def test_the_newest_state_change_is_the_state(log: ShadowLog) -> None:
    assert await log.latest_state() is None
    halted, active = (
        build.state_event(TradingState.HALTED, minutes=5),
        build.state_event(TradingState.ACTIVE),
    )
    await log.append([halted, active])
    newest = await log.latest_state()
    assert newest == halted.record()


async def test_model_versions_are_immutable_and_aliases_move_with_their_history(
    log: ShadowLog, database_url: str
) -> None:
    first = build.manifest("m-1", provenance={"data": "sha256:x", "loss": 0.125})
    await log.register_model(first)
    await log.register_model(first)
    await log.register_model(build.manifest("m-2"))
    with pytest.raises(ManifestMismatch, match="versions are immutable"):
        await log.register_model(build.manifest("m-1", licence="MIT"))
    models = await log.models()
    assert [each["model_version"] for each in models] == ["m-1", "m-2"]
    assert models[0]["manifest"] == first.as_json()
    assert orjson.loads(orjson.dumps(models)) == models
    await log.set_alias("champion", "m-1", reason="first", by="tests")
    await log.set_alias("shadow", "m-2", reason="candidate", by="tests")
    await log.set_alias("champion", "m-2", reason="better", by="tests")
    assert await log.aliases() == {"champion": "m-2", "shadow": "m-2"}
    assert len(rows(database_url, "SELECT * FROM aliases WHERE alias = 'champion'")) == 2
    with pytest.raises(ManifestMismatch, match="m-9 is not registered"):
        await log.set_alias("champion", "m-9", reason="typo", by="tests")


async def test_of_two_who_move_an_alias_from_where_both_saw_it_one_is_refused(
    log: ShadowLog, database_url: str
) -> None:
    """Also of two replicas at once, and for the first move."""
    other = ShadowLog.connect(database_url)
    for name in ("m-1", "m-2"):
        await log.register_model(build.manifest(name))
    seen = ""
    for _ in range(3):
        ends = await asyncio.gather(
            log.set_alias("champion", "m-1", reason="mine", by="one", seen=seen),
            other.set_alias("champion", "m-2", reason="mine", by="two", seen=seen),
            return_exceptions=True,
        )
        [seen] = [end for end in ends if isinstance(end, str)]
        [refused] = [end for end in ends if isinstance(end, AliasRefused)]
        assert f"since it was looked at ({seen})" in str(refused)
        assert (await log.alias_moves())[-1]["changed_at"] == seen
    await other.set_alias("champion", "m-1", reason="whatever it is", by="two")
    await other.aclose()
    assert len(rows(database_url, "SELECT * FROM aliases")) == 4
    with pytest.raises(AliasRefused, match="it stands nowhere now"):
        await log.set_alias("shadow", "m-1", reason="old", by="tests", seen=seen)


@pytest.mark.parametrize(
    "table",
    [
        "decision_keys",
        "decisions",
        "advices",
        "agent_actions",
        "outcomes",
        "rationales",
        "state_changes",
    ],
)
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET recorded_by_nobody = 1", "DELETE FROM {}", "TRUNCATE {}"]
)
async def test_rows_cannot_be_changed_or_removed(
    log: ShadowLog, database_url: str, table: str, change: str
) -> None:
    await log.append(
        [
            build.decision_event("r-1", control=True),
            build.outcome_event("r-1", build.outcome(r=1.0)),
            build.rationale_event("r-1"),
            build.state_event(),
        ]
    )
    column = "changed_by" if table == "state_changes" else "decision_id"
    statement = change.replace("recorded_by_nobody = 1", f"{column} = {column}").format(table)
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        rows(database_url, statement)
    if table in ("decisions", "advices"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            rows(database_url, statement.replace(table, f"{table}_202611"))


async def test_a_move_of_an_alias_is_seen_also_when_a_later_one_was_seen_before(
    log: ShadowLog, database_url: str
) -> None:
    """Two replicas move aliases at once; who begins first may commit last."""
    move = (
        "INSERT INTO aliases (alias, model_version, reason, changed_by)"
        " VALUES (%s, 'm-1', 'tried', 'me')"
    )
    url = database_url.replace("+psycopg", "")
    assert await log.aliases() == {}
    with psycopg.connect(url) as slow, psycopg.connect(url) as quick:
        slow.execute(move, ["shadow"])
        quick.execute(move, ["champion"])
        quick.commit()
        assert await log.aliases() == {"champion": "m-1"}
        slow.commit()
        assert await log.aliases() == {"champion": "m-1", "shadow": "m-1"}
