"""Tables of the shadow log, append-only.

Revision: 0001, after nothing
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE advices (
    decision_id UUID NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    ordinal INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    manifest_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    abstain_reason TEXT,
    label TEXT,
    approve_probability DOUBLE PRECISION,
    label_mass DOUBLE PRECISION,
    veto_codes TEXT[] NOT NULL,
    approve BOOLEAN,
    action TEXT,
    quantity DOUBLE PRECISION,
    stop DOUBLE PRECISION,
    record JSONB NOT NULL,
    CONSTRAINT pk_advices PRIMARY KEY (decision_id, as_of, ordinal)
)
 PARTITION BY RANGE (as_of);
CREATE INDEX ix_advices_model_version_as_of ON advices (model_version, as_of);
CREATE TABLE agent_actions (
    event_key TEXT NOT NULL,
    decision_id UUID NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    decision BOOLEAN NOT NULL,
    llm_confidence DOUBLE PRECISION,
    final_skip_reason TEXT,
    size_usd DOUBLE PRECISION,
    quantity DOUBLE PRECISION,
    record JSONB NOT NULL,
    CONSTRAINT pk_agent_actions PRIMARY KEY (event_key)
);
CREATE INDEX ix_agent_actions_decision_id ON agent_actions (decision_id);
CREATE TABLE aliases (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    alias TEXT NOT NULL,
    model_version TEXT NOT NULL,
    reason TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_aliases PRIMARY KEY (id)
);
CREATE TABLE decision_keys (
    decision_id UUID NOT NULL,
    request_hash TEXT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_decision_keys PRIMARY KEY (decision_id)
);
CREATE TABLE decisions (
    decision_id UUID NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    request_id TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    evaluated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    symbol TEXT NOT NULL,
    session TEXT NOT NULL,
    setup_type TEXT NOT NULL,
    tier TEXT,
    regime TEXT NOT NULL,
    score DOUBLE PRECISION NOT NULL,
    state TEXT NOT NULL,
    status TEXT NOT NULL,
    approve BOOLEAN,
    control_veto_codes TEXT[] NOT NULL,
    prompt_version TEXT NOT NULL,
    prompt_hash TEXT NOT NULL,
    limits_version TEXT NOT NULL,
    limits_hash TEXT NOT NULL,
    traceparent TEXT,
    scenario JSONB NOT NULL,
    record JSONB NOT NULL,
    record_hash TEXT NOT NULL,
    recorded_in_log_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_decisions PRIMARY KEY (decision_id, as_of)
)
 PARTITION BY RANGE (as_of);
CREATE INDEX ix_decisions_as_of ON decisions (as_of);
CREATE INDEX ix_decisions_symbol_as_of ON decisions (symbol, as_of);
CREATE TABLE model_versions (
    model_version TEXT NOT NULL,
    manifest_hash TEXT NOT NULL,
    manifest JSONB NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_model_versions PRIMARY KEY (model_version),
    CONSTRAINT uq_model_versions_manifest_hash UNIQUE (manifest_hash)
);
CREATE TABLE outcomes (
    event_key TEXT NOT NULL,
    decision_id UUID NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    arm TEXT NOT NULL,
    model_version TEXT,
    source TEXT NOT NULL,
    outcome TEXT NOT NULL,
    exit_time TIMESTAMP WITH TIME ZONE,
    r_multiple DOUBLE PRECISION,
    net_pnl DOUBLE PRECISION,
    mae_r DOUBLE PRECISION,
    mfe_r DOUBLE PRECISION,
    exogenous_skip BOOLEAN NOT NULL,
    record JSONB NOT NULL,
    CONSTRAINT pk_outcomes PRIMARY KEY (event_key)
);
CREATE INDEX ix_outcomes_decision_id ON outcomes (decision_id);
CREATE TABLE rationales (
    event_key TEXT NOT NULL,
    decision_id UUID NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    model_version TEXT NOT NULL,
    text TEXT NOT NULL,
    CONSTRAINT pk_rationales PRIMARY KEY (event_key)
);
CREATE INDEX ix_rationales_decision_id ON rationales (decision_id);
CREATE TABLE state_changes (
    event_key TEXT NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    CONSTRAINT pk_state_changes PRIMARY KEY (event_key)
);
"""

APPEND_ONLY = """
CREATE FUNCTION advisor_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'raise_exception';
END $$;
"""

NAMES = (
    "decision_keys",
    "decisions",
    "advices",
    "agent_actions",
    "outcomes",
    "rationales",
    "state_changes",
    "model_versions",
    "aliases",
)


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(APPEND_ONLY)
    for name in NAMES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
        )


def downgrade() -> None:
    for name in reversed(NAMES):
        op.execute(f"DROP TABLE {name}")
    op.execute("DROP FUNCTION advisor_refuse_change()")
