"""`verify` passes what is as it was written, and finds every kind of tampering, even by a
superuser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
import pytest

from app.domain.canonical import content_hash, decision_id
from app.domain.errors import AbstainReason, ShadowLogUnavailable
from app.domain.record.decision import Abstention, Decision
from app.domain.record.event import Event
from app.domain.text import counted
from app.shadow_log.lean import lean
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.proof.verify import verify, verify_log
from app.shadow_log.rows import advice_rows, control_row, decision_row, report_row
from app.shadow_log.schema import tables
from app.shadow_log.stored import CHUNK
from tests import builders as build

TARGET = decision_id("r-1")


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    await opened.append(
        [
            build.decision_event("r-1", control=True, shadows=[("other", "A")]),
            build.decision_event(
                "r-2", candidate__spread_bps=50.0, candidate__cvd=1e22, candidate__macd=-0.0
            ),
            build.decision_event(
                "r-3", label=Abstention(AbstainReason.DEADLINE), at=datetime(2024, 1, 5, tzinfo=UTC)
            ),
            build.action_event("r-1", build.agent_action(False, reason="late")),
            build.outcome_event("r-1", build.outcome(r=-1.0, extra={"a": 1.0})),
            build.rationale_event("r-1"),
            build.state_event(),
        ]
    )
    await opened.register_model(build.manifest(provenance={"loss": 0.25}))
    yield opened
    await opened.aclose()


def tamper(url: str, statement: str, *parameters: Any) -> None:
    """What only a superuser can do: change rows with the triggers off."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        assert connection.execute(statement, parameters or None).rowcount > 0, (
            "the test tampered with nothing"
        )


async def test_an_untouched_log_has_no_faults(log: ShadowLog, database_url: str) -> None:
    seen: list[tuple[int, int]] = []
    report = await verify_log(database_url, lambda done, total: seen.append((done, total)))
    assert report.findings == []
    assert (report.decisions, report.reports) == (3, 4)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (
        report.summary()
        == "3 decisions, 4 reports: every hash matches, every decision replays, no gaps"
    )


LINK = {Fault.OTHER_THAN_LINKED}
ONE = f"WHERE decision_id = '{TARGET}'"
PRIMARY = f"{ONE} AND ordinal = 0"
OTHER = f"WHERE decision_id = '{decision_id('r-2')}'"
TAMPERING = {
    "scenario": (
        f"UPDATE decisions SET rsi = 57.2 {ONE}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "a value of the scenario beside its column": (
        f'UPDATE decisions SET scenario = \'{{"candidate": {{"rsi": 57.2}}}}\' {ONE}',
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "a column of the scenario that said nothing": (
        f"UPDATE decisions SET hurst = 0.5 {ONE}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "the columns of the scenario": (
        f"UPDATE decisions SET direction = NULL {ONE}",
        {Fault.UNREADABLE},
    ),
    "a field that no prompt shows": (
        (
            'UPDATE decisions SET scenario = scenario || \'{"candidate": {"extra": {"a":'
            f" 1}}}}}}' {ONE}"
        ),
        {Fault.HASH},
    ),
    "the prompt's head": (
        f"UPDATE decisions SET prompt_head = decode(repeat('01', 32), 'hex') {ONE}",
        {Fault.UNREADABLE},
    ),
    "what a column says of the record, once more in the record": (
        f'UPDATE decisions SET record = record || \'{{"prompt_user": "buy"}}\' {ONE}',
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "a calibration": (f"UPDATE advices SET calibration = NULL {PRIMARY}", {Fault.UNREADABLE}),
    "prompt": (
        f"UPDATE decisions SET prompt_user = 'buy' {ONE}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "limits": (
        "UPDATE decisions SET record = record || jsonb_build_object('limits', jsonb_set((SELECT"
        " content FROM shared_parts WHERE hash = advisor_hash_text(limits_hash)),"
        f" '{{spread,max_bps}}', '99')) {ONE}",
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "a second scenario, in the record": (
        f"UPDATE decisions SET record = jsonb_set(record, '{{scenario}}', '{{}}') {ONE}",
        {Fault.UNREADABLE},
    ),
    "second advices, in the record": (
        f"UPDATE decisions SET record = jsonb_set(record, '{{advices}}', '[]') {ONE}",
        {Fault.UNREADABLE},
    ),
    "limits hash": (
        f"UPDATE decisions SET limits_hash = '\\x{'11' * 32}' {ONE}",
        {Fault.UNREADABLE},
    ),
    "state": (
        f"UPDATE decisions SET record = jsonb_set(record, '{{state}}', '\"HALTED\"') {ONE}",
        {Fault.HASH, Fault.COLUMNS, Fault.REPLAY},
    ),
    "time of judgement": (
        (
            "UPDATE decisions SET record = jsonb_set(record, '{evaluated_at}',"
            f" '\"2026-11-23T11:00:00Z\"') {ONE}"
        ),
        {Fault.HASH, Fault.COLUMNS, Fault.REPLAY},
    ),
    "record hash": (
        f"UPDATE decisions SET record_hash = '\\x{'11' * 32}' {ONE}",
        LINK | {Fault.HASH},
    ),
    "a column that says what nothing else does": (
        f"UPDATE decisions SET symbol = 'BTCUSDT' {ONE}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "a column that follows from others": (
        f"UPDATE decisions SET regime = 'calm' {ONE}",
        {Fault.COLUMNS},
    ),
    "the control in the record": (
        f"UPDATE decisions SET record = jsonb_set(record, '{{control,decision}}', 'false') {ONE}",
        {Fault.HASH, Fault.CONTROL},
    ),
    "the control's row": (
        f"UPDATE agent_actions SET decision = false WHERE event_key = 'control:{TARGET}'",
        {Fault.CONTROL},
    ),
    "a control that vanished": (
        f"DELETE FROM agent_actions WHERE event_key = 'control:{TARGET}'",
        {Fault.CONTROL},
    ),
    "advice action": (
        f"UPDATE advices SET action = 'reject' {PRIMARY}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "a foretold chance": (
        f"UPDATE advices SET win_probability = 0.9 {PRIMARY}",
        {Fault.COLUMNS},
    ),
    "advice in the record": (
        f"UPDATE advices SET record = jsonb_set(record, '{{quantity}}', '9') {PRIMARY}",
        {Fault.HASH, Fault.COLUMNS, Fault.REPLAY},
    ),
    "log-probabilities": (
        f"UPDATE advices SET log_probabilities[1] = -0.001 {PRIMARY}",
        {Fault.HASH, Fault.REPLAY},
    ),
    "log-probabilities that are gone": (
        f"UPDATE advices SET log_probabilities = NULL {PRIMARY}",
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "one probability": (
        f"UPDATE advices SET probabilities[2] = 0.5 {PRIMARY}",
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "probabilities that are gone": (
        f"UPDATE advices SET probabilities = NULL {PRIMARY}",
        {Fault.HASH, Fault.REPLAY, Fault.COLUMNS},
    ),
    "a proposal beside that of the columns": (
        "UPDATE advices SET record = record || jsonb_build_object('proposal', jsonb_build_object("
        f"'label', label, 'probabilities', probabilities, 'label_mass', label_mass)) {PRIMARY}",
        {Fault.COLUMNS},
    ),
    "absurd log-probabilities": (
        f"UPDATE advices SET log_probabilities[1] = 1e300 {PRIMARY}",
        {Fault.UNREADABLE},
    ),
    "a veto that was removed": (
        f"UPDATE advices SET record = jsonb_set(record, '{{review,vetoes}}', '[]') {OTHER}",
        {Fault.HASH, Fault.COLUMNS, Fault.REPLAY},
    ),
    "veto codes": (f"UPDATE advices SET veto_codes = '{{}}' {OTHER}", {Fault.COLUMNS}),
    "role": (
        f"UPDATE advices SET record = jsonb_set(record, '{{role}}', '\"shadow\"') {PRIMARY}",
        {Fault.UNREADABLE},
    ),
    "an advice that vanished": (f"DELETE FROM advices {ONE} AND ordinal = 1", {Fault.HASH}),
    "every advice vanished": (f"DELETE FROM advices {ONE}", {Fault.NO_ADVICE}),
    "an unreadable record": (
        f"UPDATE decisions SET request_hash = NULL {ONE}",
        {Fault.UNREADABLE, Fault.ROW_WITHOUT_KEY},
    ),
    "what a column says, once more in the record": (
        f'UPDATE decisions SET record = record || \'{{"request_id": "r-1"}}\' {ONE}',
        {Fault.COLUMNS},
    ),
    "a null that was not stored": (
        'UPDATE decisions SET scenario = scenario || \'{"candidate": {"volume_profile":'
        f" null}}}}' {ONE}",
        {Fault.COLUMNS},
    ),
    "limits that many share": (
        "UPDATE shared_parts SET content = jsonb_set(content, '{spread,max_bps}', '99')"
        " WHERE content ? 'spread'",
        {Fault.HASH, Fault.REPLAY},
    ),
    "a record that is a number": (
        f"UPDATE decisions SET record = '7' {ONE}",
        {Fault.UNREADABLE},
    ),
    "an advice that is a number": (
        f"UPDATE advices SET record = '7' {PRIMARY}",
        {Fault.UNREADABLE},
    ),
    "who is said to have reported a control": (
        "UPDATE agent_actions SET reported_by = 'mallory' WHERE event_key LIKE 'control:%%'",
        {Fault.CONTROL},
    ),
    "a part that nobody uses": (
        f"INSERT INTO shared_parts VALUES ('sha256:{'1' * 64}', '1')",
        {Fault.HASH},
    ),
    "a part that vanished": ("DELETE FROM shared_parts", {Fault.UNREADABLE}),
    "a decision that vanished": (
        f"DELETE FROM decisions {ONE}",
        {Fault.KEY_WITHOUT_ROW, Fault.ORPHAN_ADVICE},
    ),
    "a key that vanished": (
        f"DELETE FROM decision_keys {ONE}",
        {
            Fault.ROW_WITHOUT_KEY,
            Fault.ORPHAN_REPORT,
            Fault.LINK_WITHOUT_ROW,
            Fault.ROW_WITHOUT_LINK,
        },
    ),
    "a key's claim": (
        f"UPDATE decision_keys SET request_hash = '\\x{'11' * 32}' {ONE}",
        LINK | {Fault.ROW_WITHOUT_KEY},
    ),
    "a key's time": (
        f"UPDATE decision_keys SET as_of = as_of + interval '1 hour' {ONE}",
        {Fault.ROW_WITHOUT_KEY, Fault.KEY_WITHOUT_ROW},
    ),
    "an outcome's R": ("UPDATE outcomes SET r_multiple = 3", {Fault.HASH}),
    "an outcome's R, said again": (
        "UPDATE outcomes SET record = record || jsonb_build_object('r_multiple', r_multiple)",
        {Fault.COLUMNS},
    ),
    "an outcome's record": (
        "UPDATE outcomes SET record = jsonb_set(record, '{r_multiple}', '3')",
        {Fault.HASH},
    ),
    "a reported action": (
        (
            "UPDATE agent_actions SET record = jsonb_set(record, '{reason}', '\"early\"') WHERE"
            " event_key LIKE 'sha256:%%'"
        ),
        {Fault.HASH},
    ),
    "an outcome moved to another decision": (
        f"UPDATE outcomes SET decision_id = '{decision_id('r-2')}'",
        {Fault.HASH},
    ),
    "a rationale": ("UPDATE rationales SET text = 'Buy.'", {Fault.HASH}),
    "a state change": ("UPDATE state_changes SET state = 'ACTIVE'", {Fault.HASH}),
    "an unreadable report": ("UPDATE state_changes SET state = 'OPEN'", {Fault.UNREADABLE}),
    "a manifest": (
        "UPDATE model_versions SET manifest = jsonb_set(manifest, '{licence}', '\"MIT\"')",
        LINK | {Fault.HASH},
    ),
    "a month detached": (
        "ALTER TABLE decisions DETACH PARTITION decisions_202401",
        {Fault.KEY_WITHOUT_ROW, Fault.ORPHAN_ADVICE},
    ),
}


def of_record(report: VerifyReport) -> set[Fault]:
    """Faults of what is recorded; what is derived from it may differ then."""
    return set(report.counts) - {Fault.COMPARISON}


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_is_found(log: ShadowLog, database_url: str, what: str) -> None:
    statement, expected = TAMPERING[what]
    if statement.startswith("ALTER"):
        with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
            connection.execute(statement)
    else:
        tamper(database_url, statement.replace("%%", "%"))
    report = await verify_log(database_url)
    assert of_record(report) == expected, report.findings
    assert len(report.findings) == sum(report.counts.values())
    assert report.summary().split("; ")[1].startswith(f"{counted(len(report.findings), 'fault')}: ")


@pytest.mark.parametrize(
    ("table", "column"),
    [("decisions", "as_of"), ("advices", "as_of"), ("outcomes", "recorded_at")],
)
@pytest.mark.parametrize("time", ["0044-03-15 BC", "infinity", "-infinity", "10000-01-01"])
async def test_a_time_that_no_calendar_of_ours_has_is_named(
    log: ShadowLog, database_url: str, table: str, column: str, time: str
) -> None:
    tamper(database_url, f"UPDATE {table} SET {column} = '{time}'")
    report = await verify_log(database_url)
    assert Fault.UNREADABLE in report.counts
    assert any(f"{table}.{column}, " in found for found in report.findings), report.findings


async def test_a_forged_record_with_a_matching_hash_does_not_replay(
    log: ShadowLog, database_url: str
) -> None:
    """Who also recomputes the hash and every column is found by replaying: the rules do not say
    so."""
    made = build.decision("r-1", control=True, shadows=[("other", "A")])
    bigger = made.primary.model_copy(update={"quantity": 9.0})
    forged = Event.of_decision(made.model_copy(update={"advices": (bigger, made.advices[1])}))
    document = orjson.loads(forged.payload)
    tamper(
        database_url,
        "UPDATE advices SET record = %s, quantity = 9 WHERE decision_id = %s AND ordinal = 0",
        orjson.dumps(lean(document).advices[0]).decode(),
        TARGET,
    )
    forged_hash = f"advisor_hash_bytes('{content_hash(document)}')"
    tamper(database_url, f"UPDATE decisions SET record_hash = {forged_hash} {ONE}")
    report = await verify_log(database_url)
    assert of_record(report) == LINK | {Fault.REPLAY}
    assert report.findings[0] == f"{TARGET}: replay gives another record (advices)"


async def test_months_that_retention_dropped_are_no_gaps(log: ShadowLog, database_url: str) -> None:
    assert await log.drop_months_before(datetime(2024, 6, 1, tzinfo=UTC)) == {"202401": 1}
    report = await verify_log(database_url)
    assert (report.findings, report.decisions) == ([], 2)


async def test_an_emptied_log_is_noticed(log: ShadowLog, database_url: str) -> None:
    tamper(database_url, "DELETE FROM decisions")
    tamper(database_url, "DELETE FROM advices")
    report = await verify_log(database_url)
    assert report.counts == {Fault.KEY_WITHOUT_ROW: 3, Fault.COMPARISON: 4}


async def test_a_range_of_time_is_checked_by_itself(log: ShadowLog, database_url: str) -> None:
    tamper(database_url, f"UPDATE decisions SET symbol = 'BTCUSDT' {ONE}")
    new_year = datetime(2025, 1, 1, tzinfo=UTC)
    before = await verify(log.engine, until=new_year)
    assert (before.decisions, before.findings) == (1, [])
    after = await verify(log.engine, since=new_year)
    assert (after.decisions, of_record(after)) == (2, {Fault.HASH, Fault.REPLAY})


async def test_more_than_one_chunk_is_checked(log: ShadowLog, database_url: str) -> None:
    many = [build.decision(f"n-{n}") for n in range(CHUNK + 7)]
    await log.append([Event.of_decision(each) for each in many])
    report = await verify_log(database_url)
    assert (report.decisions, report.findings) == (CHUNK + 10, [])


async def test_an_unmigrated_database_cannot_be_verified(empty_database_url: str) -> None:
    with pytest.raises(ShadowLogUnavailable, match="run `advisor migrate`"):
        await verify_log(empty_database_url)


def test_every_column_is_held_against_the_record_but_the_databases_own_time() -> None:
    decided = build.decision("r-1", control=True)
    apart, payload = lean(decided.as_json()), b""
    control = control_row(decided)
    assert control is not None
    late = build.late_advice_event(decided)
    for table, row in (
        (tables.decisions, decision_row(decided, apart, payload)),
        (tables.advices, advice_rows(decided, apart)[0]),
        (tables.agent_actions, control),
        (tables.agent_actions, of(build.action_event("r-1"))),
        (tables.outcomes, of(build.outcome_event("r-1", build.outcome(r=1.0)))),
        (tables.late_advices, of(late)),
        (tables.repetitions, of(build.repetition_event(decided))),
    ):
        assert set(table.c.keys()) - set(row) <= {"recorded_in_log_at"}, table.name


def of(event: Event) -> dict[str, object]:
    """The row of a report's event."""
    report = event.record()
    assert not isinstance(report, Decision)
    return report_row(event, report, event.document())
