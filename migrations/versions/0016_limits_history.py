"""Limits that were proposed, what they would have done, and which of them were adopted.

Revision: 0016, after 0015
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

NAMES = ("limits_proposals", "limits_reports", "limits_adoptions")
TABLES = """
CREATE TABLE limits_proposals (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    profile TEXT NOT NULL,
    toml TEXT NOT NULL,
    hash TEXT NOT NULL,
    note TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE,
    until TIMESTAMP WITH TIME ZONE,
    proposed_by TEXT NOT NULL,
    proposed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    CONSTRAINT pk_limits_proposals PRIMARY KEY (id)
);
CREATE TABLE limits_reports (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    proposal_id BIGINT NOT NULL,
    against TEXT NOT NULL,
    report TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    CONSTRAINT pk_limits_reports PRIMARY KEY (id)
);
CREATE INDEX ix_limits_reports_proposal_id ON limits_reports (proposal_id);
CREATE TABLE limits_adoptions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    profile TEXT NOT NULL,
    previous BIGINT NOT NULL,
    toml TEXT,
    hash TEXT NOT NULL,
    file_hash TEXT NOT NULL,
    proposal_id BIGINT,
    report_id BIGINT,
    reason TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    CONSTRAINT pk_limits_adoptions PRIMARY KEY (id),
    CONSTRAINT uq_limits_adoptions_profile_previous UNIQUE (profile, previous)
);
CREATE VIEW limits_history AS
SELECT id, CASE profile WHEN '' THEN 'general' ELSE profile END AS profile, changed_at, changed_by,
       reason, hash, toml IS NOT NULL AS adopted, proposal_id, report_id
FROM limits_adoptions;
COMMENT ON VIEW limits_history IS
    'Every time that limits were adopted in the place of a file, or the file was gone back to '
    '(adopted is false); hash is of the limits that judge from then on, as decisions record it';
"""


def upgrade() -> None:
    op.execute(TABLES)
    for name in NAMES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {name}"
            " FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {name}"
            " FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
        )
    op.execute(f"GRANT SELECT ON {', '.join(NAMES)} TO advisor_reader, advisor_writer")
    op.execute(f"GRANT INSERT ON {', '.join(NAMES)} TO advisor_writer")
    op.execute("GRANT SELECT ON limits_history TO advisor_analyst, advisor_reader, advisor_writer")


def downgrade() -> None:
    op.execute("DROP VIEW limits_history")
    for name in NAMES:
        op.execute(f"DROP TABLE {name}")
