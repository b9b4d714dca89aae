"""A superuser deletes, edits or inserts one row, over and over: does `advisor verify` find it, or
else `advisor verify --checkpoints`?

Every table of the record is tried. Left out are what a log of statements about itself cannot say:
`chain_heads`, the columns of `UNCOVERED`, and the time in the key of a decision that retention
dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import orjson
import psycopg
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql
from psycopg.types.json import Jsonb

from app.domain.canonical import digest
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Decision
from app.domain.record.event import (
    Event,
    EventKind,
    LateAdvice,
    Rationale,
    Repetition,
    RepetitionKind,
    StateChange,
)
from app.domain.record.link import Link, Producer
from app.domain.rules.case import TradingState
from app.shadow_log.database import connect
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import Checkpointer, check_log
from app.shadow_log.proof.places import LogPlace
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema.migrate import upgrade
from bench.serving.service import a_decision, console, servers

Cursor = psycopg.Connection[dict[str, Any]]
IDENTITIES = {
    "decisions": "decision_id",
    "advices": "ordinal",
    "decision_keys": "decision_id",
    "agent_actions": "event_key",
    "outcomes": "event_key",
    "rationales": "event_key",
    "late_advices": "event_key",
    "repetitions": "event_key",
    "state_changes": "event_key",
    "model_versions": "model_version",
    "aliases": "id",
    "dropped_months": "id",
    "links": "seq",
    "link_producers": "name",
    "put_aside": "payload_hash",
    "comparisons": "decision_id",
    "advice_days": "model_version",
    "chance_days": "model_version",
    "veto_days": "code",
    "pair_days": "other",
    "shared_parts": "hash",
    "imported_trades": "import_id",
    "limits_proposals": "id",
    "limits_reports": "id",
    "limits_adoptions": "id",
}
"""Tables, and the column that makes an inserted row another one."""
UNCOVERED = {
    ("decisions", "recorded_in_log_at"),
    ("put_aside", "reason"),
    ("put_aside", "put_aside_at"),
    ("put_aside", "id"),
    ("links", "id"),
    ("advice_days", "slot"),
    ("chance_days", "slot"),
    ("veto_days", "slot"),
    ("pair_days", "slot"),
}


OWN_ROWS: dict[str, dict[str, Any]] = {
    "imported_trade": {
        "import_id": uuid4(),
        "source": "freqtrade",
        "symbol": "BTCUSDT",
        "direction": "long",
        "as_of": datetime(2026, 1, 1, tzinfo=UTC),
        "decision": True,
        "net_pnl": 0.5,
        "missing": ["candidate.atr"],
        "action": {"decision": True, "reason": "a test"},
    },
    "limits_proposal": {
        "profile": "",
        "toml": "version = 1",
        "hash": digest(b"limits"),
        "note": "a test",
        "proposed_by": "bench",
    },
    "limits_report": {"proposal_id": 1, "against": "now", "report": "none", "seconds": 0.1},
    "limits_adoption": {
        "profile": "",
        "previous": 0,
        "toml": "version = 1",
        "hash": digest(b"limits"),
        "file_hash": digest(b"file"),
        "reason": "a test",
        "changed_by": "bench",
    },
}
"""Rows of the log's own that no event of these brings."""


def linked(producer: Producer, event: Event) -> Event:
    """The event with its number, as the journal gives it."""
    link = producer.link(event.kind.value, event.key, event.claim, digest(event.payload))
    return event._replace(link=Link(link.producer, link.seq, link.previous))


def asked_elsewhere(made: Decision) -> tuple[Event, Event]:
    """Late advice on a decision, and the same question asked again."""
    advice, now = made.primary, made.received_at
    reading = advice.reading
    assert reading is not None
    late = LateAdvice(
        decision_id=made.decision_id, as_of=made.scenario.as_of, recorded_at=now, advice=advice
    )
    again = Repetition(
        decision_id=made.decision_id,
        recorded_at=now,
        model_version=advice.model_version,
        manifest_hash=advice.manifest_hash,
        kind=RepetitionKind.SAME,
        calibration=advice.calibration,
        first=reading,
        again=reading,
    )
    return Event.of_late_advice(late), Event.of_report(EventKind.REPETITION, again)


async def fill(url: str, decisions: int, more: list[Event], manifest: ModelManifest) -> None:
    """A log with rows in every table: two producers, a repeat, a second answer, a dropped month."""
    log = ShadowLog.connect(url)
    producers = Producer(), Producer()
    events = list(more)
    for number in range(decisions):
        made = a_decision(number)
        events.append(Event.of_decision(made))
        rationale = Rationale(
            decision_id=made.decision_id,
            recorded_at=made.received_at,
            model_version="bench",
            text=f"because of {number}",
        )
        events.append(Event.of_report(EventKind.RATIONALE, rationale))
        events += asked_elsewhere(made)
    change = StateChange(
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        state=TradingState.REDUCING,
        reason="a test",
        changed_by="bench",
    )
    events.append(Event.of_state_change(change))
    await log.append([linked(producers[n % 2], each) for n, each in enumerate(events)])
    second = a_decision(0).model_copy(update={"traceparent": "00-" + "1" * 32 + "-1-01"})
    await log.append([linked(producers[0], Event.of_decision(second))])
    await log.append([linked(producers[1], events[-1])])
    await log.register_model(manifest)
    await log.set_alias("shadow", manifest.model_version, reason="a test", by="bench")
    for kind, row in OWN_ROWS.items():
        await log.add_once(kind, [row])
    await log.drop_months_before(datetime(2024, 2, 1, tzinfo=UTC))
    await log.aclose()


class Tamperer:
    """One change of one row at a time, with the triggers off; `undo` takes it back."""

    def __init__(self, url: str, seed: int) -> None:
        self.connection: Cursor = psycopg.connect(
            url.replace("+psycopg", ""), autocommit=True, row_factory=psycopg.rows.dict_row
        )
        self.connection.execute("SET session_replication_role = replica")
        self.connection.execute("SET TIME ZONE 'UTC'")
        self._random = random.Random(seed)
        self.undo: Callable[[], None] = lambda: None

    def change(self) -> tuple[str, str]:
        """Do one that the database lets through; which operation, and on what."""
        while True:
            operation = self._random.choice(("delete", "edit", "insert"))
            table = self._random.choice(list(IDENTITIES))
            row = self._row(table)
            if row is None:
                continue
            what, new = table, None
            if operation == "insert":
                new = row | {IDENTITIES[table]: self._other(table, row)}
                if table == "model_versions":
                    new["manifest_hash"] = digest(self._random.randbytes(8))
            elif operation == "edit":
                column = self._random.choice(self._editable(table, row))
                what, new = f"{table}.{column}", row | {column: self._edited(row[column])}
            old = None if operation == "insert" else row
            try:
                stored = self._replace(table, old, new)
            except (psycopg.errors.IntegrityError, psycopg.errors.DataError):
                continue

            def back() -> None:
                self._replace(table, stored, old)  # noqa: B023

            self.undo = back
            return operation, what

    def _replace(
        self, table: str, old: dict[str, Any] | None, new: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Put one row in the place of another; how it is stored."""
        with self.connection.transaction():
            if old is not None:
                self._delete(table, old)
            return None if new is None else self._insert(table, new)

    def _row(self, table: str) -> dict[str, Any] | None:
        """One of a table's; None of an empty one."""
        query = sql.SQL("SELECT to_jsonb(t) AS row FROM {} t").format(sql.Identifier(table))
        rows = self.connection.execute(query).fetchall()
        return dict(self._random.choice(rows)["row"]) if rows else None

    def _editable(self, table: str, row: dict[str, Any]) -> list[str]:
        dropped = {
            each["month"] for each in self.connection.execute("SELECT * FROM dropped_months")
        }
        columns = [name for name in row if (table, name) not in UNCOVERED]
        if table == "decision_keys" and row["as_of"][:7].replace("-", "") in dropped:
            columns.remove("as_of")
        return columns

    def _delete(self, table: str, row: dict[str, Any]) -> None:
        query = sql.SQL("DELETE FROM {} t WHERE to_jsonb(t) = %s").format(sql.Identifier(table))
        assert self.connection.execute(query, [Jsonb(row, orjson.dumps)]).rowcount == 1

    def _insert(self, table: str, row: dict[str, Any]) -> dict[str, Any]:
        name = sql.Identifier(table)
        query = sql.SQL(
            "INSERT INTO {} AS t OVERRIDING SYSTEM VALUE"
            " SELECT * FROM jsonb_populate_record(null::{}, %s) RETURNING to_jsonb(t) AS row"
        ).format(name, name)
        [stored] = self.connection.execute(query, [Jsonb(row, orjson.dumps)]).fetchall()
        return dict(stored["row"])

    def _other(self, table: str, row: dict[str, Any]) -> Any:
        value = row[IDENTITIES[table]]
        if isinstance(value, int):
            return value + 1000 + self._random.randrange(1000)
        return str(uuid4()) if _is_uuid(value) else digest(self._random.randbytes(8))

    def _edited(self, value: Any) -> Any:
        """Something else of the same kind that the column takes."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        if value is None:
            return self._random.choice(("0", "1"))
        if isinstance(value, list):
            return [*value, "more"]
        if isinstance(value, dict):
            name = self._random.choice(list(value)) if value else "more"
            return value | {name: self._edited(value.get(name, "more"))}
        return _other_text(value)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _is_uuid(value: str) -> bool:
    return len(value) == 36 and value.count("-") == 4


def _other_text(value: str) -> str:
    """Another text; a time, an id or bytes stay what they are."""
    if _is_uuid(value):
        return str(uuid4())
    if value.startswith("\\x"):
        return value + "00"
    if value[4:5] == "-" and "T" in value:
        return str(int(value[:4]) + 1) + value[4:]
    return value + "x"


async def trials(url: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Trials by operation, and those that verification did not find."""
    done: Counter[str] = Counter()
    unseen = []
    engine = connect(url)
    signer = Ed25519PrivateKey.generate()
    checkpoint = await Checkpointer(engine, signer, LogPlace()).checkpoint()
    await engine.dispose()
    assert checkpoint is not None
    tamperer = Tamperer(url, seed)
    try:
        for _ in range(count):
            operation, what = tamperer.change()
            report = await verify_log(url)
            if not report.findings:
                await check_log(url, [checkpoint], report)
            tamperer.undo()
            done[operation] += 1
            if not report.findings:
                unseen.append(f"{operation} {what}")
    finally:
        tamperer.close()
    return done, unseen


def main(
    count: Annotated[int, typer.Option(min=1, help="Trials.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the random choices.")] = 0,
) -> None:
    """Tamper with one row at a time; exit 1 when anything was not found."""
    from tests import builders as build

    with servers() as (_, postgres, _):
        upgrade(postgres.url)
        more = [
            build.decision_event("old", at=datetime(2024, 1, 5, tzinfo=UTC)),
            build.decision_event("two", control=True, shadows=[("other", "A")]),
            build.decision_event("refused", candidate__spread_bps=500.0),
            build.action_event("two", build.agent_action(False, reason="late")),
            build.outcome_event("two", build.outcome(r=-1.0, extra={"a": 1.0})),
        ]
        asyncio.run(fill(postgres.url, 8, more, build.manifest()))
        before = asyncio.run(verify_log(postgres.url))
        assert not before.findings, before.findings
        done, unseen = asyncio.run(trials(postgres.url, count, seed))
        after = asyncio.run(verify_log(postgres.url))
        assert not after.findings, after.findings
    for operation, number in sorted(done.items()):
        missed = sum(each.startswith(operation) for each in unseen)
        console.print(f"{operation:8} {number - missed:5} of {number:5} found")
    for each in unseen:
        console.print(f"not found: {each}")
    raise typer.Exit(1 if unseen else 0)


if __name__ == "__main__":
    typer.run(main)
