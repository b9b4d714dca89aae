"""What decisions share, once under its hash.

Rows that are there already hold everything themselves and stay as they are.

Revision: 0017, after 0016
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE shared_parts (
    hash TEXT NOT NULL,
    content JSONB NOT NULL,
    CONSTRAINT pk_shared_parts PRIMARY KEY (hash)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON shared_parts
FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON shared_parts
FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change();
GRANT SELECT ON shared_parts TO advisor_writer, advisor_reader;
GRANT INSERT ON shared_parts TO advisor_writer;
"""

# A release of before reads whole records only. Absent nulls it reads as nulls.
WHOLE = """
ALTER TABLE {table} DISABLE TRIGGER append_only;
UPDATE {table} kept SET record = {record} WHERE {lean};
ALTER TABLE {table} ENABLE TRIGGER append_only;
"""
DECISION = """
jsonb_build_object(
    'decision_id', decision_id, 'request_id', request_id, 'received_at', received_at,
    'evaluated_at', evaluated_at, 'traceparent', traceparent, 'state', state,
    'prompt_hash', prompt_hash, 'limits_hash', limits_hash, 'principal', principal,
    'limits', (SELECT content FROM shared_parts WHERE hash = kept.limits_hash),
    'prompt', jsonb_build_array(
        prompt_version,
        (SELECT content FROM shared_parts WHERE hash = kept.record ->> 'prompt_head'),
        record ->> 'prompt_user'
    )
) || (record - 'prompt_head' - 'prompt_user')
"""
ADVICE = """
jsonb_build_object(
    'model_version', model_version, 'manifest_hash', manifest_hash, 'role', role,
    'status', status, 'abstain_reason', abstain_reason, 'approve', approve, 'action', action,
    'quantity', quantity, 'stop', stop
) || record || jsonb_build_object(
    'calibration', (SELECT content FROM shared_parts WHERE hash = kept.record ->> 'calibration')
)
"""


def upgrade() -> None:
    op.execute(TABLE)


def downgrade() -> None:
    for table, record, lean in (
        ("decisions", DECISION, "record ? 'prompt_head'"),
        ("advices", ADVICE, "jsonb_typeof(record -> 'calibration') = 'string'"),
    ):
        op.execute(WHOLE.format(table=table, record=record, lean=lean))
    op.execute("DROP TABLE shared_parts")
