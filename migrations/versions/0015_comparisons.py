"""One flat row per advice, kept by whoever appends; the views that compare read it.

What a row is follows from the tables by the view `comparison_source`; `advisor_compare` makes the
rows of decisions anew. Rows that are there already are compared here.

Revision: 0015, after 0014
"""

from __future__ import annotations

import re

from alembic import context, op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE comparisons (
    decision_id UUID NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    ordinal INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    request_id TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    symbol TEXT NOT NULL,
    session TEXT NOT NULL,
    setup_type TEXT NOT NULL,
    tier TEXT,
    regime TEXT NOT NULL,
    score DOUBLE PRECISION,
    state TEXT NOT NULL,
    role TEXT NOT NULL,
    agent_approve BOOLEAN,
    final_skip_reason TEXT,
    llm_confidence DOUBLE PRECISION,
    control_veto_codes TEXT[] NOT NULL,
    status TEXT NOT NULL,
    abstain_reason TEXT,
    label TEXT,
    approve_probability DOUBLE PRECISION,
    label_mass DOUBLE PRECISION,
    advice_approve BOOLEAN,
    advice_action TEXT,
    advice_quantity DOUBLE PRECISION,
    advice_stop DOUBLE PRECISION,
    veto_codes TEXT[] NOT NULL,
    agree BOOLEAN,
    agent_outcome TEXT,
    agent_outcome_source TEXT,
    agent_r DOUBLE PRECISION,
    agent_pnl DOUBLE PRECISION,
    advice_outcome TEXT,
    advice_outcome_source TEXT,
    advice_r DOUBLE PRECISION,
    advice_pnl DOUBLE PRECISION,
    win_probability DOUBLE PRECISION,
    stopped_probability DOUBLE PRECISION,
    range_atr DOUBLE PRECISION,
    expected_r DOUBLE PRECISION,
    CONSTRAINT pk_comparisons PRIMARY KEY (decision_id, as_of, ordinal, model_version)
)
 PARTITION BY RANGE (as_of);
CREATE INDEX ix_comparisons_as_of_decision_id ON comparisons (as_of, decision_id);
CREATE INDEX ix_decisions_request_id ON decisions (request_id)
WHERE request_id ~ '^[A-Za-z0-9._-]+/[A-Z0-9]+/\\d{8}T\\d{4}$';
"""

# OFFSET 0 keeps the planner from joining all reports with all others: each is looked up by its key.
SOURCE = """
CREATE VIEW comparison_source AS
SELECT d.decision_id, d.as_of, a.ordinal, a.model_version, d.request_id, d.received_at, d.symbol,
       d.session, d.setup_type, d.tier, d.regime, d.score, d.state, a.role,
       c.decision AS agent_approve, c.final_skip_reason, c.llm_confidence, d.control_veto_codes,
       a.status, a.abstain_reason, a.label, a.approve_probability, a.label_mass,
       a.approve AS advice_approve, a.action AS advice_action, a.quantity AS advice_quantity,
       a.stop AS advice_stop, a.veto_codes, a.approve = c.decision AS agree,
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
       ov.net_pnl AS advice_pnl,
       a.win_probability, a.stopped_probability, a.range_atr, a.expected_r
FROM decisions d
CROSS JOIN LATERAL (
    SELECT ordinal, model_version, role, status, abstain_reason, label, approve_probability,
           label_mass, veto_codes, approve, action, quantity, stop, win_probability,
           stopped_probability, range_atr, expected_r
    FROM advices WHERE decision_id = d.decision_id AND as_of = d.as_of
    UNION ALL
    SELECT -1, model_version, role, status, abstain_reason, label, approve_probability,
           label_mass, veto_codes, approve, action, quantity, stop, NULL, NULL, NULL, NULL
    FROM late_advices WHERE decision_id = d.decision_id AND as_of = d.as_of
    OFFSET 0
) a
LEFT JOIN LATERAL (
    SELECT * FROM latest_actions WHERE decision_id = d.decision_id OFFSET 0
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM latest_outcomes
    WHERE decision_id = d.decision_id AND arm = 'agent' AND NOT exogenous_skip OFFSET 0
) oa ON true
LEFT JOIN LATERAL (
    SELECT * FROM latest_outcomes
    WHERE decision_id = d.decision_id AND arm = 'advice' AND model_version = a.model_version
        AND NOT exogenous_skip OFFSET 0
) ov ON true;
COMMENT ON VIEW comparison_source IS
    'What the rows of comparisons follow from: decisions, advices, and the reports that count';
"""

# Whoever writes may call it and may not change a row otherwise. Two who report on one decision wait
# for each other at its rows, and the second sees what the first committed: each statement looks
# anew (READ COMMITTED). Statistics of a table that grows by thousands of rows a minute are always
# old: looking up by keys is right whatever they say.
COMPARE = """
CREATE FUNCTION advisor_compare(ids uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off AS $$
DECLARE
    times timestamptz[];
    changed bigint;
BEGIN
    SELECT array_agg(DISTINCT as_of) INTO times FROM decision_keys WHERE decision_id = ANY (ids);
    PERFORM FROM comparisons
    WHERE decision_id = ANY (ids) AND as_of = ANY (times)
    ORDER BY decision_id, as_of, ordinal, model_version
    FOR NO KEY UPDATE;
    INSERT INTO comparisons AS kept ({columns})
    SELECT {columns} FROM comparison_source
    WHERE decision_id = ANY (ids) AND as_of = ANY (times)
    ON CONFLICT (decision_id, as_of, ordinal, model_version) DO UPDATE SET {excluded}
    WHERE kept IS DISTINCT FROM excluded;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END $$;
COMMENT ON FUNCTION advisor_compare IS
    'Make the rows of decisions in comparisons what comparison_source says; how many changed';
REVOKE ALL ON FUNCTION advisor_compare FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advisor_compare TO advisor_writer;
GRANT SELECT ON comparisons, comparison_source TO advisor_writer, advisor_reader;
"""
KEY = ("decision_id", "as_of", "ordinal", "model_version")
COLUMNS = tuple(re.findall(r"^    ([a-z_]+) ", TABLE, re.MULTILINE))

SHADOW_COMPARISON = """
CREATE OR REPLACE VIEW shadow_comparison AS
SELECT decision_id, request_id, as_of, received_at, symbol, session, setup_type, tier, regime,
       score, state, model_version, role, agent_approve, final_skip_reason, llm_confidence,
       control_veto_codes, status, abstain_reason, label, approve_probability, label_mass,
       advice_approve, advice_action, advice_quantity, advice_stop, veto_codes, agree,
       agent_outcome, agent_outcome_source, agent_r, agent_pnl, advice_outcome,
       advice_outcome_source, advice_r, advice_pnl
FROM comparisons;
CREATE OR REPLACE VIEW foretold AS
SELECT decision_id, as_of, symbol, setup_type, regime, model_version, role, advice_approve,
       agent_approve, win_probability, stopped_probability, range_atr, expected_r, agent_outcome,
       agent_outcome_source, agent_r, agent_r > 0 AS won
FROM comparisons
WHERE num_nonnulls(win_probability, stopped_probability, range_atr, expected_r) > 0;
"""

WITHIN = """
CREATE FUNCTION agreement_daily_within(since timestamptz, until timestamptz)
RETURNS TABLE (
    day date, model_version text, decisions bigint, agreements bigint, agent_approvals bigint,
    advice_approvals bigint, agreement float8, kappa float8
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
WITH daily AS (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, count(*) AS decisions,
           count(*) FILTER (WHERE agree) AS agreements,
           count(*) FILTER (WHERE agent_approve) AS agent_approvals,
           count(*) FILTER (WHERE advice_approve) AS advice_approvals
    FROM shadow_comparison
    WHERE agree IS NOT NULL AND as_of >= since AND as_of < until
    GROUP BY 1, 2
)
SELECT daily.*, agreements::float8 / decisions AS agreement,
       (decisions * agreements - by_chance)::float8 / nullif(decisions * decisions - by_chance, 0)
FROM daily
CROSS JOIN LATERAL (
    SELECT agent_approvals * advice_approvals
           + (decisions - agent_approvals) * (decisions - advice_approvals) AS by_chance
) expected
$$;
CREATE FUNCTION veto_value_within(since timestamptz, until timestamptz)
RETURNS TABLE (
    code text, refused bigint, with_outcome bigint, r_saved float8, mean_r_saved float8,
    pnl_saved float8, losers_avoided bigint, winners_missed bigint, r_saved_alone float8
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
SELECT code, count(*), count(r), -sum(r), -avg(r), -sum(net_pnl), count(*) FILTER (WHERE r < 0),
       count(*) FILTER (WHERE r > 0), -sum(r) FILTER (WHERE alone)
FROM (
    SELECT unnest(control_veto_codes) AS code, cardinality(control_veto_codes) = 1 AS alone,
           CASE WHEN agent_outcome <> 'not_traded' THEN agent_r END AS r,
           CASE WHEN agent_outcome <> 'not_traded' THEN agent_pnl END AS net_pnl
    FROM shadow_comparison
    WHERE role = 'primary' AND as_of >= since AND as_of < until
) refusals
GROUP BY code
$$;
"""
RANGED = """
COMMENT ON FUNCTION {view}_within IS
    'The view {view} over decisions with since <= as_of < until: no other month is read';
CREATE OR REPLACE VIEW {view} AS SELECT * FROM {view}_within('-infinity', 'infinity');
"""

PARTITIONS = """
CREATE OR REPLACE FUNCTION advisor_make_partition(parent text, suffix text, bounds text)
RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    partition text := parent || '_' || suffix;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                   partition, parent);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES ', parent, partition) || bounds;
    IF parent = 'comparisons' THEN -- Its rows change: room for it on their own page.
        EXECUTE format('ALTER TABLE %I SET (fillfactor = 80)', partition);
    ELSE -- Attaching copies row triggers from the parent, but not this one.
        EXECUTE format('CREATE TRIGGER never_truncated BEFORE TRUNCATE ON %I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()', partition);
    END IF;
END $$;
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT replace(c.relname, 'decisions_', '') AS suffix,
               replace(pg_get_expr(c.relpartbound, c.oid), 'FOR VALUES ', '') AS bounds
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'decisions'::regclass
    LOOP
        PERFORM advisor_make_partition('comparisons', part.suffix, part.bounds);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    op.execute(TABLE)
    op.execute(SOURCE)
    op.execute(_compare())
    op.execute(PARTITIONS)
    op.execute(_months("'decisions', 'advices', 'comparisons'"))
    names = ", ".join(COLUMNS)
    op.execute(f"INSERT INTO comparisons ({names}) SELECT {names} FROM comparison_source")
    op.execute("ANALYZE comparisons")
    op.execute(SHADOW_COMPARISON)
    op.execute(WITHIN)
    for view in ("agreement_daily", "veto_value"):
        op.execute(RANGED.format(view=view))


def downgrade() -> None:
    """The views of before come back as their revisions wrote them."""
    op.execute(_view("0005", "SHADOW_COMPARISON", "shadow_comparison", "JOIN advices a"))
    op.execute(_view("0002", "AGREEMENT_DAILY", "agreement_daily"))
    op.execute(_view("0005", "VETO_VALUE", "veto_value"))
    op.execute(_view("0013", "FORETOLD", "foretold"))
    for function in ("agreement_daily_within", "veto_value_within", "advisor_compare"):
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP VIEW comparison_source")
    op.execute("DROP TABLE comparisons")
    op.execute("DROP INDEX ix_decisions_request_id")
    op.execute(
        _written("0009", "MAKE_PARTITION")
        .split("CREATE FUNCTION advisor_make_month")[0]
        .replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    )
    op.execute(_months("'decisions', 'advices'"))


def _compare() -> str:
    excluded = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in KEY)
    return COMPARE.format(columns=", ".join(COLUMNS), excluded=excluded)


def _months(parents: str) -> str:
    """The function that makes a month, for these tables."""
    made = _written("0009", "MAKE_PARTITION")
    made = made[made.index("CREATE FUNCTION advisor_make_month") : made.index("REVOKE ALL")]
    made = made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    return made.replace("'decisions', 'advices'", parents)


def _view(number: str, name: str, view: str, *joined: str) -> str:
    """The statement that made a view, and not those beside it."""
    text = _written(number, name).replace("CREATE VIEW", "CREATE OR REPLACE VIEW")
    text = text[text.index(f"CREATE OR REPLACE VIEW {view}") :].split(";")[0]
    for relation in joined:
        text = text.replace(relation, "JOIN all_advices a")
    return text


def _written(number: str, name: str) -> str:
    script = context.script.get_revision(number)  # type: ignore[union-attr]
    written: str = getattr(script.module, name)  # type: ignore[union-attr]
    return written
