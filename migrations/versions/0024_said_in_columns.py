"""What columns say is not said again in JSON: what a model read and proposed is two more columns of
`advices`, and a report's row holds in JSON what has no column.

`latest_actions` and `latest_outcomes` show the report as it was made. Rows that are there already
stay as they are; what they hold twice is the same.

Revision: 0024, after 0023
"""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

COLUMNS = """
ALTER TABLE advices ADD COLUMN log_probabilities DOUBLE PRECISION[];
ALTER TABLE advices ADD COLUMN probabilities DOUBLE PRECISION[];
"""
VIEWS = """
CREATE OR REPLACE VIEW latest_actions AS
SELECT a.event_key, a.decision_id, a.recorded_at, a.decision, a.llm_confidence,
       a.final_skip_reason, a.size_usd, a.quantity, {action} AS record
FROM agent_actions a
WHERE NOT EXISTS (
    SELECT FROM agent_actions newer
    WHERE newer.decision_id = a.decision_id
      AND (coalesce(newer.arrival, 0), newer.recorded_at, newer.event_key)
          > (coalesce(a.arrival, 0), a.recorded_at, a.event_key)
);
CREATE OR REPLACE VIEW latest_outcomes AS
SELECT o.event_key, o.decision_id, o.recorded_at, o.arm, o.model_version, o.source, o.outcome,
       o.exit_time, o.r_multiple, o.net_pnl, o.mae_r, o.mfe_r, o.exogenous_skip,
       {outcome} AS record
FROM outcomes o
WHERE NOT EXISTS (
    SELECT FROM outcomes newer
    WHERE newer.decision_id = o.decision_id AND newer.arm = o.arm
      AND (o.arm = 'agent' OR newer.model_version = o.model_version)
      AND (coalesce(newer.arrival, 0), newer.recorded_at, newer.event_key)
          > (coalesce(o.arrival, 0), o.recorded_at, o.event_key)
);
"""
ACTION = """jsonb_strip_nulls(jsonb_build_object(
    'decision', {0}.decision, 'llm_confidence', {0}.llm_confidence,
    'final_skip_reason', {0}.final_skip_reason, 'size_usd', {0}.size_usd, 'quantity', {0}.quantity
)) || {0}.record"""
OUTCOME = """jsonb_strip_nulls(jsonb_build_object(
    'arm', {0}.arm, 'model_version', {0}.model_version, 'source', {0}.source,
    'outcome', {0}.outcome, 'exit_time', {0}.exit_time, 'r_multiple', {0}.r_multiple,
    'net_pnl', {0}.net_pnl, 'mae_r', {0}.mae_r, 'mfe_r', {0}.mfe_r,
    'exogenous_skip', {0}.exogenous_skip
)) || {0}.record"""
NO_VETO = """'{"vetoes": [], "caps": []}'::jsonb"""
ADVICE = f"""kept.record
|| CASE WHEN probabilities IS NULL OR kept.record ? 'proposal' THEN '{{}}' ELSE jsonb_build_object(
    'proposal', jsonb_build_object(
        'label', label, 'probabilities', probabilities, 'label_mass', label_mass
    )
) END
|| CASE WHEN log_probabilities IS NULL THEN '{{}}' ELSE jsonb_build_object(
    'reading',
    jsonb_build_object('log_probabilities', log_probabilities) || (kept.record -> 'reading')
) END
|| CASE WHEN kept.record ? 'review' THEN jsonb_build_object(
    'review', {NO_VETO} || CASE WHEN approve
        THEN jsonb_build_object('quantity', quantity, 'stop', stop) ELSE '{{}}' END
    || (kept.record -> 'review')
) ELSE '{{}}' END"""
DECISION = f"""kept.record || jsonb_build_object(
    'control_review', {NO_VETO} || jsonb_build_object(
        'quantity', scenario #> '{{plan,quantity}}', 'stop', scenario #> '{{plan,stop}}'
    ) || (kept.record -> 'control_review')
)"""
WHOLE = """
ALTER TABLE {table} DISABLE TRIGGER append_only;
UPDATE {table} kept SET record = {record} WHERE {lean};
ALTER TABLE {table} ENABLE TRIGGER append_only;
"""


def upgrade() -> None:
    op.execute(COLUMNS)
    op.execute(VIEWS.format(action=ACTION.format("a"), outcome=OUTCOME.format("o")))


def downgrade() -> None:
    """A release of before looks for all of it in the JSON."""
    for table, record, lean in (
        ("agent_actions", ACTION.format("kept"), "NOT kept.record ? 'decision'"),
        ("outcomes", OUTCOME.format("kept"), "NOT kept.record ? 'arm'"),
        ("advices", ADVICE, "jsonb_typeof(kept.record -> 'calibration') = 'string'"),
        ("decisions", DECISION, "kept.record ? 'prompt_head'"),
    ):
        op.execute(WHOLE.format(table=table, record=record, lean=lean))
    op.execute(VIEWS.format(action="a.record", outcome="o.record"))
    op.execute("ALTER TABLE advices DROP COLUMN log_probabilities, DROP COLUMN probabilities")
