"""What a version foretells of the agent's plan, beside its advice; and whether it came so.

Rows that are there already keep no number: their versions were not asked.

Revision: 0013, after 0012
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

COLUMNS = ("win_probability", "stopped_probability", "range_atr", "expected_r")
FORETOLD = """
CREATE VIEW foretold AS
SELECT s.decision_id, s.as_of, s.symbol, s.setup_type, s.regime, s.model_version, s.role,
       s.advice_approve, s.agent_approve, a.win_probability, a.stopped_probability, a.range_atr,
       a.expected_r, s.agent_outcome, s.agent_outcome_source, s.agent_r, s.agent_r > 0 AS won
FROM shadow_comparison s
JOIN advices a ON a.decision_id = s.decision_id AND a.as_of = s.as_of
     AND a.model_version = s.model_version AND a.role = s.role
WHERE num_nonnulls(a.win_probability, a.stopped_probability, a.range_atr, a.expected_r) > 0;
COMMENT ON VIEW foretold IS
    'One row per decision and model version that foretells something of the agent''s plan: its '
    'chances of winning and of the initial stop, the range until the time exit in ATR, the '
    'expected R; beside what became of the plan, as it was traded or simulated. won is null until '
    'that is known';
GRANT SELECT ON foretold TO advisor_analyst;
"""


def upgrade() -> None:
    for column in COLUMNS:
        op.execute(f"ALTER TABLE advices ADD COLUMN {column} DOUBLE PRECISION")
    op.execute(FORETOLD)


def downgrade() -> None:
    op.execute("DROP VIEW foretold")
    for column in COLUMNS:
        op.execute(f"ALTER TABLE advices DROP COLUMN {column}")
