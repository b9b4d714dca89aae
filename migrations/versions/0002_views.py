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
SELECT d.decision_id, d.request_id, d.as_of, d.received_at, d.symbol, d.session, d.setup_type, d.tier, d.regime, d.score, d.state,
       a.model_version, a.role, a.status, a.abstain_reason, a.label, a.approve_probability, a.label_mass,
       a.approve AS advice_approve, a.action AS advice_action, a.quantity AS advice_quantity, a.stop AS advice_stop, a.veto_codes,
       c.decision AS agent_approve, c.final_skip_reason, d.control_veto_codes,
       a.approve = c.decision AS agree,
       oa.outcome AS agent_outcome, oa.source AS agent_outcome_source, oa.r_multiple AS agent_r, oa.net_pnl AS agent_pnl,
       ov.outcome AS advice_outcome, ov.source AS advice_outcome_source, ov.r_multiple AS advice_r, ov.net_pnl AS advice_pnl
FROM decisions d
JOIN advices a ON a.decision_id = d.decision_id AND a.as_of = d.as_of
LEFT JOIN LATERAL (
    SELECT * FROM agent_actions x WHERE x.decision_id = d.decision_id ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM outcomes x WHERE x.decision_id = d.decision_id AND x.arm = 'agent' AND NOT x.exogenous_skip
    ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) oa ON true
LEFT JOIN LATERAL (
    SELECT * FROM outcomes x WHERE x.decision_id = d.decision_id AND x.arm = 'advice' AND NOT x.exogenous_skip
                               AND x.model_version = a.model_version
    ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
) ov ON true;
COMMENT ON VIEW shadow_comparison IS
    'One row per decision and model version: scenario keys, control, advice, vetoes, both outcomes (latest report of each)';
"""

DISAGREEMENTS = """
CREATE VIEW disagreements AS
SELECT *, advice_r - agent_r AS advice_minus_agent_r,
       CASE WHEN advice_r > agent_r THEN 'advice' WHEN advice_r < agent_r THEN 'agent' WHEN advice_r = agent_r THEN 'neither' END AS was_right
FROM shadow_comparison
WHERE NOT agree;
COMMENT ON VIEW disagreements IS 'Decisions in which one approved and the other rejected; was_right is null until both outcomes are known';
"""

AGREEMENT_DAILY = """
CREATE VIEW agreement_daily AS
WITH daily AS (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, count(*) AS decisions,
           avg(agree::int)::float8 AS agreement, avg(advice_approve::int)::float8 AS advice_approval, avg(agent_approve::int)::float8 AS agent_approval
    FROM shadow_comparison
    WHERE agree IS NOT NULL
    GROUP BY 1, 2
)
SELECT daily.*, (agreement - chance) / nullif(1 - chance, 0) AS kappa
FROM daily
CROSS JOIN LATERAL (SELECT advice_approval * agent_approval + (1 - advice_approval) * (1 - agent_approval) AS chance) expected;
COMMENT ON VIEW agreement_daily IS 'Agreement and Cohen''s kappa by UTC day and model version; kappa is null where chance agreement is certain';
"""

VETO_VALUE = """
CREATE VIEW veto_value AS
SELECT code, count(*) AS refused, count(r_multiple) AS with_outcome, -sum(r_multiple) AS r_saved, -avg(r_multiple) AS mean_r_saved
FROM (
    SELECT d.decision_id, unnest(d.control_veto_codes) AS code, o.r_multiple
    FROM decisions d
    LEFT JOIN LATERAL (
        SELECT CASE WHEN x.outcome <> 'not_traded' THEN x.r_multiple END AS r_multiple
        FROM outcomes x WHERE x.decision_id = d.decision_id AND x.arm = 'agent' AND NOT x.exogenous_skip
        ORDER BY x.recorded_at DESC, x.event_key DESC LIMIT 1
    ) o ON true
) refusals
GROUP BY code;
COMMENT ON VIEW veto_value IS
    'By veto code: trades of the agent that the rule would have refused, and the R this would have saved (negative: lost)';
"""

ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'advisor_analyst') THEN
        BEGIN
            CREATE ROLE advisor_analyst NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    GRANT USAGE ON SCHEMA public TO advisor_analyst;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO advisor_analyst;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO advisor_analyst;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'advisor_analyst: this user may not create roles; create it as docs/shadow_log.md says';
END $$;
"""


def upgrade() -> None:
    for statement in (SHADOW_COMPARISON, DISAGREEMENTS, AGREEMENT_DAILY, VETO_VALUE, ROLE):
        op.execute(statement)


def downgrade() -> None:
    for view in ("veto_value", "agreement_daily", "disagreements", "shadow_comparison"):
        op.execute(f"DROP VIEW {view}")
    op.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM advisor_analyst")
    op.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM advisor_analyst")
