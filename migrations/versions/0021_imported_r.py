"""R of imported trades that are not complete: of the order itself, where its stop is on the losing
side.

Revision: 0021, after 0020
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

PLAN = """
CASE WHEN scenario IS NOT NULL THEN scenario -> 'plan'
     WHEN (direction = 'long') = ((action ->> 'stop')::float8 < (action ->> 'entry')::float8)
     THEN action END
"""


def _view(plan: str) -> str:
    return f"""
CREATE OR REPLACE VIEW imported AS
SELECT import_id, source, symbol, direction, as_of, decision, outcome, net_pnl,
       advisor_r({plan}, net_pnl, NULL) AS r,
       scenario IS NOT NULL AS complete, missing, recorded_in_log_at
FROM imported_trades
"""


def upgrade() -> None:
    op.execute(_view(PLAN))


def downgrade() -> None:
    op.execute(_view("scenario -> 'plan'"))
