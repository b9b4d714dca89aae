"""Links of events, what was put aside, and how far each producer has come.

Rows that are older than links get links of the producer `before-0006`: they are counted, so that
one that vanishes is missed; what they hold is held against their own hashes, as before.

Revision: 0006, after 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE event_links (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    producer TEXT NOT NULL,
    seq BIGINT NOT NULL,
    fate TEXT NOT NULL,
    previous TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    claim TEXT NOT NULL,
    payload TEXT NOT NULL,
    CONSTRAINT pk_event_links PRIMARY KEY (id),
    CONSTRAINT uq_event_links_producer_seq_fate UNIQUE (producer, seq, fate)
);
CREATE INDEX ix_event_links_key ON event_links (key);
CREATE TABLE put_aside (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    claim TEXT NOT NULL,
    payload_hash TEXT NOT NULL,
    payload BYTEA NOT NULL,
    reason TEXT NOT NULL,
    put_aside_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_put_aside PRIMARY KEY (id),
    CONSTRAINT uq_put_aside_kind_key_payload_hash UNIQUE (kind, key, payload_hash)
);
CREATE TABLE chain_heads (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    producer TEXT NOT NULL,
    seq BIGINT NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_chain_heads PRIMARY KEY (id)
);
CREATE INDEX ix_chain_heads_producer_seq ON chain_heads (producer, seq);
"""

EARLIER = """
INSERT INTO event_links (producer, seq, fate, previous, kind, key, claim, payload)
SELECT 'before-0006', row_number() OVER (ORDER BY kind, key), 'event', '', kind, key, claim, payload
FROM (
    SELECT 'decision' AS kind, k.decision_id::text AS key, k.request_hash AS claim,
           coalesce(d.record_hash, '') AS payload
    FROM decision_keys k LEFT JOIN decisions d USING (decision_id, as_of)
    UNION ALL SELECT 'agent_action', event_key, event_key, '' FROM agent_actions
              WHERE event_key NOT LIKE 'control:%'
    UNION ALL SELECT 'outcome', event_key, event_key, '' FROM outcomes
    UNION ALL SELECT 'rationale', event_key, event_key, '' FROM rationales
    UNION ALL SELECT 'state_change', event_key, event_key, '' FROM state_changes
    UNION ALL SELECT 'model', model_version, manifest_hash, '' FROM model_versions
    UNION ALL SELECT 'alias', id::text, model_version, '' FROM aliases
    UNION ALL SELECT 'month', id::text, month, '' FROM dropped_months
) earlier;
"""
NAMES = ("event_links", "put_aside", "chain_heads")


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(EARLIER)
    for table in NAMES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
        )
        # Default privileges hold for the role that ran 0002; another one may run this.
        op.execute(f"GRANT SELECT ON {table} TO advisor_analyst")


def downgrade() -> None:
    for table in reversed(NAMES):
        op.drop_table(table)
