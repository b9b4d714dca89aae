"""Trades that other programs recorded, in a table of their own.

Revision: 0014, after 0013
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE imported_trades (
    import_id UUID NOT NULL,
    source TEXT NOT NULL,
    symbol TEXT NOT NULL,
    direction TEXT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    decision BOOLEAN NOT NULL,
    outcome TEXT,
    net_pnl DOUBLE PRECISION,
    missing TEXT[] NOT NULL,
    scenario JSONB,
    action JSONB NOT NULL,
    outcome_record JSONB,
    recorded_in_log_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    CONSTRAINT pk_imported_trades PRIMARY KEY (import_id)
);
CREATE INDEX ix_imported_trades_as_of ON imported_trades (as_of);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON imported_trades
FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON imported_trades
FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change();
CREATE VIEW imported AS
SELECT import_id, source, symbol, direction, as_of, decision, outcome, net_pnl,
       advisor_r(scenario -> 'plan', net_pnl, NULL) AS r,
       scenario IS NOT NULL AS complete, missing, recorded_in_log_at
FROM imported_trades;
COMMENT ON VIEW imported IS
    'Trades that other programs recorded, and what is missing of each; r is net profit over the '
    'risk of their own plan, null until both are known. They are no decisions of this service: no '
    'other view reads them';
GRANT SELECT ON imported_trades TO advisor_reader;
GRANT SELECT ON imported_trades, imported TO advisor_writer;
GRANT INSERT ON imported_trades TO advisor_writer;
GRANT SELECT ON imported TO advisor_analyst, advisor_reader;
"""


def upgrade() -> None:
    op.execute(TABLE)


def downgrade() -> None:
    op.execute("DROP VIEW imported")
    op.execute("DROP TABLE imported_trades")
