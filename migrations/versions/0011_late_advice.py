"""Advice that comes after the reply, of models elsewhere, beside that which was the reply; and what
they say when they are asked again.

Revision: 0011, after 0010
"""

from __future__ import annotations

from alembic import context, op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE late_advices (
    event_key TEXT NOT NULL,
    decision_id UUID NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    question TEXT,
    seconds DOUBLE PRECISION,
    cost DOUBLE PRECISION,
    record JSONB NOT NULL,
    CONSTRAINT pk_late_advices PRIMARY KEY (event_key)
);
CREATE INDEX ix_late_advices_decision_id ON late_advices (decision_id);
CREATE INDEX ix_late_advices_model_version_as_of ON late_advices (model_version, as_of);
CREATE TABLE repetitions (
    event_key TEXT NOT NULL,
    decision_id UUID NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    model_version TEXT NOT NULL,
    manifest_hash TEXT NOT NULL,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    again_label TEXT NOT NULL,
    flipped BOOLEAN NOT NULL,
    distance DOUBLE PRECISION NOT NULL,
    record JSONB NOT NULL,
    CONSTRAINT pk_repetitions PRIMARY KEY (event_key)
);
CREATE INDEX ix_repetitions_decision_id ON repetitions (decision_id);
CREATE INDEX ix_repetitions_model_version_recorded_at ON repetitions (model_version, recorded_at);
"""
NAMES = ("late_advices", "repetitions")
SHARED = (
    "decision_id, as_of, model_version, manifest_hash, role, status, abstain_reason, label,"
    " approve_probability, label_mass, veto_codes, approve, action, quantity, stop"
)
ALL_ADVICES = f"""
CREATE VIEW all_advices AS
SELECT {SHARED}, ordinal, false AS late, NULL::float8 AS seconds, NULL::float8 AS cost
FROM advices
UNION ALL
SELECT {SHARED}, NULL, true, seconds, cost
FROM late_advices;
COMMENT ON VIEW all_advices IS
    'One row per decision and version: advice that was in the decision''s record, and advice of '
    'models elsewhere, which are asked after the reply (late). seconds and cost (US dollars) are '
    'what asking them took';
CREATE VIEW flips AS
SELECT model_version, kind, count(*) AS asked_again, count(*) FILTER (WHERE flipped) AS flipped,
       avg(flipped::int) AS flip_rate, avg(distance) AS mean_distance
FROM repetitions
GROUP BY model_version, kind;
COMMENT ON VIEW flips IS
    'How often a version proposes another action when it is asked the same again: kind order is '
    'with its options in another order, same with none changed. mean_distance is the total '
    'variation between both distributions, 0 to 1';
"""


def upgrade() -> None:
    op.execute(TABLES)
    for name in NAMES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
        )
    op.execute(ALL_ADVICES)
    # Default privileges hold for the role that ran 0009; another one may run this.
    op.execute(f"GRANT SELECT ON {', '.join(NAMES)} TO advisor_writer, advisor_reader")
    op.execute(f"GRANT INSERT ON {', '.join(NAMES)} TO advisor_writer")
    op.execute(
        "GRANT SELECT ON all_advices, flips TO advisor_writer, advisor_reader, advisor_analyst"
    )
    _read_from("all_advices")


def downgrade() -> None:
    _read_from("advices")
    op.execute("DROP VIEW flips")
    op.execute("DROP VIEW all_advices")
    for name in NAMES:
        op.execute(f"DROP TABLE {name}")


def _read_from(advices: str) -> None:
    """The views of 0005 over another relation of advices."""
    written = context.script.get_revision("0005").module  # type: ignore[union-attr]
    for view, text in (
        ("shadow_comparison", written.SHADOW_COMPARISON),
        ("paper_books", written.PAPER_BOOKS),
    ):
        statement = text[text.index(f"CREATE OR REPLACE VIEW {view}") :]
        op.execute(statement.replace("JOIN advices a", f"JOIN {advices} a"))
