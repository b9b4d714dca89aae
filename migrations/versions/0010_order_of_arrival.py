"""The newest report is the one that came last, whatever clocks said.

Rows that are there already keep no number: they are older than those that have one, and of two of
them the later by their clocks counts, as before.

Revision: 0010, after 0009
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

LATEST = """
CREATE OR REPLACE VIEW latest_actions AS
SELECT a.event_key, a.decision_id, a.recorded_at, a.decision, a.llm_confidence,
       a.final_skip_reason, a.size_usd, a.quantity, a.record
FROM agent_actions a
WHERE NOT EXISTS (
    SELECT FROM agent_actions newer
    WHERE newer.decision_id = a.decision_id AND {newer} > {a}
);
CREATE OR REPLACE VIEW latest_outcomes AS
SELECT o.event_key, o.decision_id, o.recorded_at, o.arm, o.model_version, o.source, o.outcome,
       o.exit_time, o.r_multiple, o.net_pnl, o.mae_r, o.mfe_r, o.exogenous_skip, o.record
FROM outcomes o
WHERE NOT EXISTS (
    SELECT FROM outcomes newer
    WHERE newer.decision_id = o.decision_id AND newer.arm = o.arm
      AND (o.arm = 'agent' OR newer.model_version = o.model_version) AND {newer} > {o}
);
"""
BY_ARRIVAL = "(coalesce({0}.arrival, 0), {0}.recorded_at, {0}.event_key)"
BY_CLOCK = "({0}.recorded_at, {0}.event_key)"
TABLES = ("agent_actions", "outcomes")


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ADD COLUMN arrival INTEGER")
    _order(BY_ARRIVAL)


def downgrade() -> None:
    _order(BY_CLOCK)
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} DROP COLUMN arrival")


def _order(row: str) -> None:
    op.execute(LATEST.format(**{alias: row.format(alias) for alias in ("newer", "a", "o")}))
