"""Both books of each paper run, trade by trade.

Revision: 0004, after 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PAPER_BOOKS = r"""
CREATE VIEW paper_books AS
WITH asked AS (
    SELECT split_part(request_id, '/', 1) AS run, decision_id, as_of, symbol, scenario
    FROM decisions
    WHERE request_id ~ '^[A-Za-z0-9._-]+/[A-Z0-9]+/\d{8}T\d{4}$'
), began AS (
    SELECT DISTINCT ON (run) run, (scenario #>> '{account,equity}')::float8 AS start_equity
    FROM asked
    ORDER BY run, as_of
), newest AS (
    SELECT DISTINCT ON (a.run, o.decision_id, o.arm, o.model_version)
           a.run, a.decision_id, a.as_of, a.symbol, o.arm, o.model_version, o.exit_time, o.outcome,
           o.r_multiple, o.net_pnl, o.record #> '{extra,traded}' = 'true'::jsonb AS traded
    FROM asked a
    JOIN outcomes o ON o.decision_id = a.decision_id AND NOT o.exogenous_skip
    ORDER BY a.run, o.decision_id, o.arm, o.model_version, o.recorded_at DESC, o.event_key DESC
), ended AS (
    SELECT n.*, b.start_equity,
           row_number() OVER book AS trade,
           b.start_equity + sum(n.net_pnl) OVER book AS equity
    FROM newest n
    JOIN began b ON b.run = n.run
    WHERE n.traded AND n.net_pnl IS NOT NULL AND n.exit_time IS NOT NULL
    WINDOW book AS (PARTITION BY n.run, n.arm, n.model_version ORDER BY n.exit_time, n.as_of, n.decision_id)
), peaks AS (
    SELECT e.*, greatest(e.start_equity, max(e.equity) OVER book) AS peak
    FROM ended e
    WINDOW book AS (PARTITION BY e.run, e.arm, e.model_version ORDER BY e.trade)
)
SELECT run, arm, model_version, trade, decision_id, symbol, as_of, exit_time, outcome, r_multiple, net_pnl, equity,
       peak - equity AS drawdown, 1 - equity / nullif(peak, 0) AS drawdown_fraction
FROM peaks;
COMMENT ON VIEW paper_books IS
    'Both books of each paper run (request ids RUN/SYMBOL/TIME), one row per trade that has ended, in order of exit: '
    'arm agent is what the agent did, arm advice what a version''s advice would have done, one trade at a time each. '
    'equity begins with what the agent reported at the run''s first decision; drawdown is the fall from its peak. '
    'Money is net of costs, in quote currency';
"""


def upgrade() -> None:
    op.execute(PAPER_BOOKS)
    # Default privileges hold for the role that ran 0002; another one may run this.
    op.execute("GRANT SELECT ON paper_books TO advisor_analyst")


def downgrade() -> None:
    op.execute("DROP VIEW paper_books")
