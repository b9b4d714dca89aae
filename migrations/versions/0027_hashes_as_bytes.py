"""Hashes of decisions are 32 bytes instead of 71 letters; the prompt, and all that reports say, are
columns instead of JSON.

`whole_decisions`, `latest_actions` and `latest_outcomes` show hashes as text and reports as they
were made. Tables of decisions, advices and keys are written anew, under a lock: events wait in the
journal meanwhile. What earlier rows hold in JSON stays there.

Revision: 0027, after 0026
"""

from __future__ import annotations

from typing import Any

from alembic import context, op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None
stops_earlier = True

HASHES = {
    "decisions": ("prompt_hash", "limits_hash", "record_hash"),
    "advices": ("manifest_hash",),
    "decision_keys": ("request_hash",),
}
ACTION = {
    "entry": "DOUBLE PRECISION",
    "stop": "DOUBLE PRECISION",
    "atr_at_entry": "DOUBLE PRECISION",
    "decided_at": "TIMESTAMP WITH TIME ZONE",
    "llm_decision": "BOOLEAN",
    "llm_approval": "BOOLEAN",
    "targets": "DOUBLE PRECISION[]",
    "llm_error": "TEXT",
    "llm_model": "TEXT",
    "reason": "TEXT",
    "take_profit_strategy": "TEXT",
    "micro_plan": "TEXT",
}
OUTCOME = {
    "exit_price": "DOUBLE PRECISION",
    "fees": "DOUBLE PRECISION",
    "slippage": "DOUBLE PRECISION",
    "pnl_pct": "DOUBLE PRECISION",
    "max_price": "DOUBLE PRECISION",
    "holding_seconds": "DOUBLE PRECISION",
    "outcome_word": "TEXT",
    "exit_reason": "TEXT",
}
ADDED = {
    "decisions": {
        "request_hash": "BYTEA",
        "prompt_head": "BYTEA",
        "prompt_user": "TEXT",
        "schema_version": "TEXT",
    },
    "advices": {"calibration": "BYTEA"},
    "agent_actions": ACTION,
    "outcomes": OUTCOME,
}
WHOLE = """
CREATE VIEW whole_decisions AS
SELECT {columns},
       coalesce(advisor_hash_text(d.request_hash), d.record ->> 'request_hash') AS request_hash,
       coalesce(advisor_hash_text(d.prompt_head), d.record ->> 'prompt_head') AS prompt_head,
       coalesce(d.prompt_user, d.record ->> 'prompt_user') AS prompt_user,
       coalesce(d.schema_version, d.record ->> 'schema_version') AS schema_version,
       CASE WHEN d.direction IS NULL THEN d.scenario ELSE {scenario} END AS scenario
FROM decisions d;
COMMENT ON VIEW whole_decisions IS
    'Decisions, with the scenario as it was made: what columns say of it, and what they do not';
GRANT SELECT ON whole_decisions TO advisor_writer, advisor_reader;
"""
# Entry and stop by themselves, so that who asks for them alone makes no JSON.
ACTIONS = """
CREATE OR REPLACE VIEW latest_actions AS
SELECT a.event_key, a.decision_id, a.recorded_at, a.decision, a.llm_confidence,
       a.final_skip_reason, a.size_usd, a.quantity, {record} AS record,
       coalesce(a.entry, (a.record ->> 'entry')::float8) AS entry,
       coalesce(a.stop, (a.record ->> 'stop')::float8) AS stop
FROM agent_actions a
WHERE NOT EXISTS (
    SELECT FROM agent_actions newer
    WHERE newer.decision_id = a.decision_id
      AND (coalesce(newer.arrival, 0), newer.recorded_at, newer.event_key)
          > (coalesce(a.arrival, 0), a.recorded_at, a.event_key)
);
"""
DECISIONS_JSON = """kept.record || CASE WHEN kept.record ? 'control_review' THEN '{}'::jsonb
    ELSE '{"control_review": {}}'::jsonb END || jsonb_build_object(
    'request_hash', advisor_hash_text(kept.request_hash),
    'prompt_head', advisor_hash_text(kept.prompt_head), 'prompt_user', kept.prompt_user,
    'schema_version', kept.schema_version)"""
ADVICES_JSON = """
    CASE WHEN kept.log_probabilities IS NULL THEN '{}'::jsonb ELSE '{"reading": {}}'::jsonb END
    || CASE WHEN kept.record ? 'review' THEN '{}'::jsonb ELSE '{"review": {}}'::jsonb END
    || CASE WHEN kept.record -> 'review' = 'null'::jsonb THEN kept.record - 'review'
            ELSE kept.record END
    || jsonb_build_object('calibration', advisor_hash_text(kept.calibration))"""
JSON_AGAIN = """
ALTER TABLE {table} DISABLE TRIGGER append_only;
UPDATE {table} kept SET record = {record} WHERE num_nonnulls({columns}) > 0;
ALTER TABLE {table} ENABLE TRIGGER append_only;
"""


def upgrade() -> None:
    op.execute("DROP VIEW whole_decisions")
    for table, columns in ADDED.items():
        added = ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in columns.items())
        op.execute(f"ALTER TABLE {table} {added}")
    op.execute(_all_advices("NULL::text"))
    _retype("BYTEA", "advisor_hash_bytes")
    op.execute(_all_advices("advisor_hash_text(manifest_hash)"))
    op.execute(_whole_decisions())
    _views("latest_outcomes", _earlier("OUTCOME"), OUTCOME)
    op.execute(ACTIONS.format(record=_record("a", _earlier("ACTION"), ACTION)))
    op.execute(
        _source()
        .replace("(c.record ->> 'entry')::float8", "c.entry")
        .replace("(c.record ->> 'stop')::float8", "c.stop")
    )


def downgrade() -> None:
    """A release of before looks for all of it in the JSON."""
    for table, record in (
        ("decisions", DECISIONS_JSON),
        ("advices", ADVICES_JSON),
        ("agent_actions", f"{_said('kept', ACTION)} || kept.record"),
        ("outcomes", f"{_said('kept', OUTCOME)} || kept.record"),
    ):
        columns = ", ".join(f"kept.{name}" for name in ADDED[table])
        op.execute(JSON_AGAIN.format(table=table, record=record, columns=columns))
    op.execute("DROP VIEW comparison_source, latest_actions")
    _views("latest_actions", _earlier("ACTION"), {})
    op.execute(_source())
    op.execute(
        "COMMENT ON VIEW latest_actions IS"
        " 'The newest control of each decision: the one that counts';"
        "COMMENT ON VIEW comparison_source IS 'What the rows of comparisons follow from: decisions,"
        " advices, and the reports that count';"
        "GRANT SELECT ON latest_actions TO advisor_writer, advisor_reader, advisor_analyst;"
        "GRANT SELECT ON comparison_source TO advisor_writer, advisor_reader"
    )
    _views("latest_outcomes", _earlier("OUTCOME"), {})
    op.execute("DROP VIEW whole_decisions")
    op.execute(_all_advices("NULL::text"))
    _retype("TEXT", "advisor_hash_text")
    op.execute(_all_advices("manifest_hash"))
    for table, columns in ADDED.items():
        dropped = ", ".join(f"DROP COLUMN {name}" for name in columns)
        op.execute(f"ALTER TABLE {table} {dropped}")
    before = _revision("0026")
    op.execute(before.whole_decisions())


def _retype(kind: str, function: str) -> None:
    for table, columns in HASHES.items():
        changed = ", ".join(
            f"ALTER COLUMN {name} TYPE {kind} USING {function}({name})" for name in columns
        )
        op.execute(f"ALTER TABLE {table} {changed}")


def _all_advices(manifest_hash: str) -> str:
    text = _revision("0011").ALL_ADVICES.replace("CREATE VIEW", "CREATE OR REPLACE VIEW")
    first, rest = text[: text.index("COMMENT")].split("UNION ALL")
    return first.replace("manifest_hash", f"{manifest_hash} AS manifest_hash") + "UNION ALL" + rest


def _whole_decisions() -> str:
    before = _revision("0026")
    new = {*ADDED["decisions"], "scenario"}
    columns = (
        f"advisor_hash_text(d.{name}) AS {name}" if name in HASHES["decisions"] else f"d.{name}"
        for name in before.columns_of_before()
        if name not in new
    )
    return WHOLE.format(columns=", ".join(columns), scenario=before.scenario())


def _earlier(name: str) -> str:
    """The JSON that revision 0024 makes of a report's row `{0}`."""
    text: str = getattr(_revision("0024"), name)
    return text


def _views(view: str, earlier: str, added: dict[str, str]) -> None:
    """A view of revision 0024 with more of a report in its columns."""
    made = _revision("0024").VIEWS.format(
        action=_record("a", earlier, added), outcome=_record("o", earlier, added)
    )
    for statement in made.split(";"):
        if f"VIEW {view} " in statement:
            op.execute(statement)


def _record(row: str, earlier: str, added: dict[str, str]) -> str:
    said = f"{_said(row, added)} || " if added else ""
    return said + earlier.format(row)


def _said(row: str, columns: dict[str, str]) -> str:
    pairs = ", ".join(
        f"'{name}', " + (f"advisor_instant({row}.{name})" if "TIME" in kind else f"{row}.{name}")
        for name, kind in columns.items()
    )
    return f"jsonb_strip_nulls(jsonb_build_object({pairs}))"


def _source() -> str:
    """`comparison_source` as revision 0026 left it."""
    text: str = _revision("0026").source()
    return text


def _revision(number: str) -> Any:
    return context.script.get_revision(number).module  # type: ignore[union-attr]
