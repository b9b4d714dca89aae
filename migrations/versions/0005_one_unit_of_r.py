"""R over the risk of the agent's plan in every view; the newest report in one place.

Revision: 0005, after 0004
"""

from __future__ import annotations

from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LATEST = """
CREATE VIEW latest_actions AS
SELECT a.* FROM agent_actions a
WHERE NOT EXISTS (
    SELECT FROM agent_actions newer
    WHERE newer.decision_id = a.decision_id
      AND (newer.recorded_at, newer.event_key) > (a.recorded_at, a.event_key)
);
COMMENT ON VIEW latest_actions IS
    'The newest control of each decision: the one that counts';
CREATE VIEW latest_outcomes AS
SELECT o.* FROM outcomes o
WHERE NOT EXISTS (
    SELECT FROM outcomes newer
    WHERE newer.decision_id = o.decision_id AND newer.arm = o.arm
      AND (o.arm = 'agent' OR newer.model_version = o.model_version)
      AND (newer.recorded_at, newer.event_key) > (o.recorded_at, o.event_key)
);
COMMENT ON VIEW latest_outcomes IS
    'The newest outcome of each decision and arm, in the arm advice of each model version: the one '
    'that counts, skips for maintenance or an outage included. r_multiple is as it was reported: '
    'over the own risk of the order';
"""

# A number that no market has (1e308, 1e-300) is not known, rather than an overflow that would end
# every query over the view.
UNIT = """
CREATE FUNCTION advisor_risk(
    plan jsonb, quantity float8 DEFAULT NULL, entry float8 DEFAULT NULL, stop float8 DEFAULT NULL
) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN size BETWEEN 1e-15 AND 1e15 AND distance BETWEEN 1e-15 AND 1e15 THEN size * distance
    END
    FROM (
        SELECT coalesce(quantity, (plan ->> 'quantity')::float8) AS size,
               abs(coalesce(entry, (plan ->> 'entry')::float8)
                   - coalesce(stop, (plan ->> 'stop')::float8)) AS distance
    ) an_order;
END;
COMMENT ON FUNCTION advisor_risk IS
    'quantity x |entry - stop| in quote currency; what is null is the plan''s';
CREATE FUNCTION advisor_r(
    plan jsonb, net_pnl float8, r_multiple float8,
    quantity float8 DEFAULT NULL, entry float8 DEFAULT NULL, stop float8 DEFAULT NULL
) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN net_pnl = 0 OR net_pnl IS NULL AND r_multiple = 0 THEN 0
    WHEN abs(net_pnl) BETWEEN 1e-15 AND 1e15 THEN net_pnl / advisor_risk(plan)
    WHEN net_pnl IS NULL AND abs(r_multiple) BETWEEN 1e-15 AND 1e15
    THEN r_multiple * advisor_risk(plan, quantity, entry, stop) / advisor_risk(plan)
END;
COMMENT ON FUNCTION advisor_r IS
    'R: net profit over the risk of the agent''s plan. From net_pnl, else from what was reported '
    'over the own risk of the order (quantity, entry, stop; what is null is the plan''s)';
"""

SHADOW_COMPARISON = """
CREATE OR REPLACE VIEW shadow_comparison AS
SELECT d.decision_id, d.request_id, d.as_of, d.received_at, d.symbol, d.session, d.setup_type,
       d.tier, d.regime, d.score, d.state, a.model_version, a.role,
       c.decision AS agent_approve, c.final_skip_reason, c.llm_confidence, d.control_veto_codes,
       a.status, a.abstain_reason, a.label, a.approve_probability, a.label_mass,
       a.approve AS advice_approve,
       a.action AS advice_action, a.quantity AS advice_quantity, a.stop AS advice_stop,
       a.veto_codes,
       a.approve = c.decision AS agree,
       oa.outcome AS agent_outcome, oa.source AS agent_outcome_source,
       CASE WHEN c.decision AND oa.source = 'reported'
           THEN advisor_r(d.scenario -> 'plan', oa.net_pnl, oa.r_multiple, c.quantity,
                          (c.record ->> 'entry')::float8, (c.record ->> 'stop')::float8)
           ELSE advisor_r(d.scenario -> 'plan', oa.net_pnl, oa.r_multiple)
       END AS agent_r,
       oa.net_pnl AS agent_pnl,
       ov.outcome AS advice_outcome, ov.source AS advice_outcome_source,
       advisor_r(d.scenario -> 'plan', ov.net_pnl, ov.r_multiple, coalesce(a.quantity, 0), NULL,
                 a.stop) AS advice_r,
       ov.net_pnl AS advice_pnl
FROM decisions d
JOIN advices a ON a.decision_id = d.decision_id AND a.as_of = d.as_of
LEFT JOIN latest_actions c ON c.decision_id = d.decision_id
LEFT JOIN latest_outcomes oa ON oa.decision_id = d.decision_id AND oa.arm = 'agent'
      AND NOT oa.exogenous_skip
LEFT JOIN latest_outcomes ov ON ov.decision_id = d.decision_id AND ov.arm = 'advice'
      AND ov.model_version = a.model_version AND NOT ov.exogenous_skip;
COMMENT ON VIEW shadow_comparison IS
    'One row per decision and model version: scenario keys, control, advice, vetoes, and the '
    'outcomes of both arms as they were reported last. agent_r and advice_r are R: net profit over '
    'the risk of the agent''s plan. agree is null when the policy abstained or the control is not '
    'known. Skips for maintenance or an outage are left out';
COMMENT ON VIEW disagreements IS
    'One approved and the other rejected. Who rejects earns 0 R; who approves earns the R of its '
    'own outcome, both over the risk of the agent''s plan. was_right is null until the outcome of '
    'the approved trade is known';
"""

VETO_VALUE = """
CREATE OR REPLACE VIEW veto_value AS
SELECT code, count(*) AS refused, count(r) AS with_outcome, -sum(r) AS r_saved,
       -avg(r) AS mean_r_saved, -sum(net_pnl) AS pnl_saved,
       count(*) FILTER (WHERE r < 0) AS losers_avoided,
       count(*) FILTER (WHERE r > 0) AS winners_missed,
       -sum(r) FILTER (WHERE alone) AS r_saved_alone
FROM (
    SELECT unnest(control_veto_codes) AS code, cardinality(control_veto_codes) = 1 AS alone,
           CASE WHEN agent_outcome <> 'not_traded' THEN agent_r END AS r,
           CASE WHEN agent_outcome <> 'not_traded' THEN agent_pnl END AS net_pnl
    FROM shadow_comparison
    WHERE role = 'primary'
) refusals
GROUP BY code;
COMMENT ON VIEW veto_value IS
    'By veto code, over decisions whose rules refuse the agent''s own order: r_saved is minus the '
    'R of the agent''s arm (net profit over the risk of its plan), as traded or as simulated, so a '
    'loss avoided counts as saved and a gain missed as lost. A decision with several codes counts '
    'under each; r_saved_alone counts those that no other code would have refused';
"""

PAPER_BOOKS = r"""
ALTER VIEW paper_books RENAME COLUMN r_multiple TO r;
CREATE OR REPLACE VIEW paper_books AS
WITH asked AS (
    SELECT split_part(request_id, '/', 1) AS run, decision_id, as_of, symbol, scenario
    FROM decisions
    WHERE request_id ~ '^[A-Za-z0-9._-]+/[A-Z0-9]+/\d{8}T\d{4}$'
), began AS (
    SELECT DISTINCT ON (run) run, (scenario #>> '{account,equity}')::float8 AS start_equity
    FROM asked
    ORDER BY run, as_of
), ended AS (
    SELECT k.run, k.decision_id, k.as_of, k.symbol, o.arm, o.model_version, o.exit_time, o.outcome,
           o.net_pnl, k.scenario -> 'plan' AS plan, a.quantity, a.stop, b.start_equity,
           row_number() OVER book AS trade,
           b.start_equity + sum(o.net_pnl) OVER book AS equity
    FROM asked k
    JOIN began b ON b.run = k.run
    JOIN latest_outcomes o ON o.decision_id = k.decision_id
    LEFT JOIN advices a ON o.arm = 'advice' AND a.decision_id = k.decision_id
          AND a.as_of = k.as_of AND a.model_version = o.model_version
    WHERE NOT o.exogenous_skip AND o.record #> '{extra,traded}' = 'true'::jsonb
      AND abs(o.net_pnl) <= 1e15 AND o.exit_time IS NOT NULL
    WINDOW book AS (
        PARTITION BY k.run, o.arm, o.model_version ORDER BY o.exit_time, k.as_of, k.decision_id
    )
), peaks AS (
    SELECT e.*, greatest(e.start_equity, max(e.equity) OVER book) AS peak
    FROM ended e
    WINDOW book AS (PARTITION BY e.run, e.arm, e.model_version ORDER BY e.trade)
)
SELECT run, arm, model_version, trade, decision_id, symbol, as_of, exit_time, outcome,
       advisor_r(plan, net_pnl, NULL) AS r, net_pnl, equity,
       peak - equity AS drawdown, 1 - equity / nullif(peak, 0) AS drawdown_fraction,
       net_pnl / advisor_risk(plan, quantity, NULL, stop) AS return_on_own_risk
FROM peaks;
COMMENT ON VIEW paper_books IS
    'Both books of each paper run (request ids RUN/SYMBOL/TIME), one row per trade that has ended, '
    'in order of exit: arm agent is what the agent did, arm advice what a version''s advice would '
    'have done, one trade at a time each. r is net profit over the risk of the agent''s plan, '
    'return_on_own_risk over that of the order itself. equity begins with what the agent reported '
    'at the run''s first decision; drawdown is the fall from its peak. Money is net of costs, in '
    'quote currency';
"""


def upgrade() -> None:
    for statement in (LATEST, UNIT, SHADOW_COMPARISON, VETO_VALUE, PAPER_BOOKS):
        op.execute(statement)
    # Default privileges hold for the role that ran 0002; another one may run this.
    op.execute("GRANT SELECT ON latest_actions, latest_outcomes TO advisor_analyst")


def downgrade() -> None:
    """The views of 0002 and 0004 come back as those revisions wrote them."""
    written = {
        number: context.script.get_revision(number).module  # type: ignore[union-attr]
        for number in ("0002", "0004")
    }
    for view in ("paper_books", *written["0002"].VIEWS, "latest_outcomes", "latest_actions"):
        op.execute(f"DROP VIEW {view}")
    op.execute("DROP FUNCTION advisor_r")
    op.execute("DROP FUNCTION advisor_risk")
    views = written["0002"]
    for statement in (
        views.SHADOW_COMPARISON,
        views.DISAGREEMENTS,
        views.AGREEMENT_DAILY,
        views.VETO_VALUE,
        written["0004"].PAPER_BOOKS,
    ):
        op.execute(statement)
    op.execute(f"GRANT SELECT ON paper_books, {', '.join(views.VIEWS)} TO advisor_analyst")
