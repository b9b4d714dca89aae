"""Views for people, and a read-only role for analysts.

Revision: 0002, after 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SHADOW_COMPARISON = """
CREATE VIEW shadow_comparison AS
SELECT d.decision_id, d.request_id, d.as_of, d.received_at, d.symbol, d.session, d.setup_type, d.tier, d.regime,
       d.score, d.state, a.model_version, a.role,
       c.decision AS agent_approve, c.final_skip_reason, c.llm_confidence, d.control_veto_codes,
       a.status, a.abstain_reason, a.label, a.approve_probability, a.label_mass, a.approve AS advice_approve,
       a.action AS advice_action, a.quantity AS advice_quantity, a.stop AS advice_stop, a.veto_codes,
       a.approve = c.decision AS agree,
       oa.outcome AS agent_outcome, oa.source AS agent_outcome_source,
       oa.r_multiple AS agent_r, oa.net_pnl AS agent_pnl,
       ov.outcome AS advice_outcome, ov.source AS advice_outcome_source,
       ov.r_multiple AS advice_r, ov.net_pnl AS advice_pnl
FROM decisions d
JOIN advices a ON a.decision_id = d.decision_id AND a.as_of = d.as_of
LEFT JOIN LATERAL (
    SELECT * FROM agent_actions x
    WHERE x.decision_id = d.decision_id
    ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM outcomes x
    WHERE x.decision_id = d.decision_id AND x.arm = 'agent' AND NOT x.exogenous_skip
    ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) oa ON true
LEFT JOIN LATERAL (
    SELECT * FROM outcomes x
    WHERE x.decision_id = d.decision_id AND x.arm = 'advice' AND NOT x.exogenous_skip
      AND x.model_version = a.model_version
    ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) ov ON true;
COMMENT ON VIEW shadow_comparison IS
    'One row per decision and model version: scenario keys, control, advice, vetoes, and the outcomes of both arms as '
    'they were reported last. agree is null when the policy abstained or the control is not known. Skips for '
    'maintenance or an outage are left out';
"""

DISAGREEMENTS = """
CREATE VIEW disagreements AS
SELECT s.*, earned.agent_earned_r, earned.advice_earned_r,
       earned.advice_earned_r - earned.agent_earned_r AS advice_minus_agent_r,
       CASE sign(earned.advice_earned_r - earned.agent_earned_r)
           WHEN 1 THEN 'advice' WHEN -1 THEN 'agent' WHEN 0 THEN 'neither'
       END AS was_right
FROM shadow_comparison s
CROSS JOIN LATERAL (
    SELECT CASE WHEN s.agent_approve THEN s.agent_r ELSE 0 END AS agent_earned_r,
           CASE WHEN s.advice_approve THEN s.advice_r ELSE 0 END AS advice_earned_r
) earned
WHERE NOT s.agree;
COMMENT ON VIEW disagreements IS
    'One approved and the other rejected. Who rejects earns 0 R; who approves earns the R of its own outcome. '
    'was_right is null until the outcome of the approved trade is known';
"""

AGREEMENT_DAILY = """
CREATE VIEW agreement_daily AS
WITH daily AS (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, count(*) AS decisions,
           count(*) FILTER (WHERE agree) AS agreements,
           count(*) FILTER (WHERE agent_approve) AS agent_approvals,
           count(*) FILTER (WHERE advice_approve) AS advice_approvals
    FROM shadow_comparison
    WHERE agree IS NOT NULL
    GROUP BY 1, 2
)
SELECT daily.*, agreements::float8 / decisions AS agreement,
       (decisions * agreements - by_chance)::float8 / nullif(decisions * decisions - by_chance, 0) AS kappa
FROM daily
CROSS JOIN LATERAL (
    SELECT agent_approvals * advice_approvals
           + (decisions - agent_approvals) * (decisions - advice_approvals) AS by_chance
) expected;
COMMENT ON VIEW agreement_daily IS
    'Agreement and Cohen''s kappa, (p_o - p_e) / (1 - p_e), by UTC day of as_of and model version, over decisions in '
    'which both answered. kappa is null where agreement by chance is certain: both gave one and the same answer '
    'all day';
"""

VETO_VALUE = """
CREATE VIEW veto_value AS
SELECT code, count(*) AS refused, count(r) AS with_outcome, -sum(r) AS r_saved, -avg(r) AS mean_r_saved,
       -sum(net_pnl) AS pnl_saved, count(*) FILTER (WHERE r < 0) AS losers_avoided,
       count(*) FILTER (WHERE r > 0) AS winners_missed, -sum(r) FILTER (WHERE alone) AS r_saved_alone
FROM (
    SELECT unnest(d.control_veto_codes) AS code, cardinality(d.control_veto_codes) = 1 AS alone,
           o.r_multiple AS r, o.net_pnl
    FROM decisions d
    LEFT JOIN LATERAL (
        SELECT latest.* FROM (
            SELECT * FROM outcomes x
            WHERE x.decision_id = d.decision_id AND x.arm = 'agent' AND NOT x.exogenous_skip
            ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
        ) latest
        WHERE latest.outcome <> 'not_traded'
    ) o ON true
) refusals
GROUP BY code;
COMMENT ON VIEW veto_value IS
    'By veto code, over decisions whose rules refuse the agent''s own order: r_saved is minus the R of the agent''s '
    'arm, as traded or as simulated, so a loss avoided counts as saved and a gain missed as lost. A decision with '
    'several codes counts under each; r_saved_alone counts those that no other code would have refused';
"""

ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'advisor_analyst') THEN
        BEGIN
            CREATE ROLE advisor_analyst NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- Roles belong to the whole cluster: another database's migration was faster.
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'this user may not create the role advisor_analyst'
                    USING HINT = 'Let an administrator run: CREATE ROLE advisor_analyst NOLOGIN; then migrate again.';
        END;
    END IF;
    GRANT USAGE ON SCHEMA public TO advisor_analyst;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO advisor_analyst;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO advisor_analyst;
END $$;
"""

VIEWS = ("veto_value", "agreement_daily", "disagreements", "shadow_comparison")


def upgrade() -> None:
    for statement in (SHADOW_COMPARISON, DISAGREEMENTS, AGREEMENT_DAILY, VETO_VALUE, ROLE):
        op.execute(statement)


def downgrade() -> None:
    """The role stays: other databases of the cluster may use it."""
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM advisor_analyst"
    )
    op.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM advisor_analyst")
    op.execute("REVOKE USAGE ON SCHEMA public FROM advisor_analyst")
