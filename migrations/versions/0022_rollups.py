"""What is asked over all time, added up by day as rows are compared: `agreement_daily` and
`veto_value` read some rows a day instead of every comparison.

Triggers on `comparisons` add what a statement changed, so late reports count on the day of their
decision, in whatever order they come and whoever changes a row. A transaction adds to rows of its
own slot, the first that nobody else uses: no two wait for each other, and there are as many rows of
a day as ever appended at once.

Revision: 0022, after 0021
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE agreement_days (
    day DATE NOT NULL,
    model_version TEXT NOT NULL,
    slot INTEGER NOT NULL,
    decisions BIGINT NOT NULL,
    agreements BIGINT NOT NULL,
    agent_approvals BIGINT NOT NULL,
    advice_approvals BIGINT NOT NULL,
    CONSTRAINT pk_agreement_days PRIMARY KEY (day, model_version, slot)
) WITH (fillfactor = 50);
CREATE TABLE veto_days (
    day DATE NOT NULL,
    code TEXT NOT NULL,
    slot INTEGER NOT NULL,
    refused BIGINT NOT NULL,
    with_outcome BIGINT NOT NULL,
    with_pnl BIGINT NOT NULL,
    alone_with_outcome BIGINT NOT NULL,
    losers BIGINT NOT NULL,
    winners BIGINT NOT NULL,
    r NUMERIC NOT NULL,
    pnl NUMERIC NOT NULL,
    r_alone NUMERIC NOT NULL,
    CONSTRAINT pk_veto_days PRIMARY KEY (day, code, slot)
) WITH (fillfactor = 50);
GRANT SELECT ON agreement_days, veto_days TO advisor_writer, advisor_reader;
"""

# Sums are of exact decimals: what is added and taken away again leaves nothing.
SOURCES = """
CREATE FUNCTION advisor_exact(number float8) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CAST(CAST(number AS text) AS numeric);
CREATE VIEW agreement_source AS
SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, 1 AS decisions,
       agree::int AS agreements, agent_approve::int AS agent_approvals,
       advice_approve::int AS advice_approvals
FROM comparisons WHERE agree IS NOT NULL;
COMMENT ON VIEW agreement_source IS 'What agreement_days adds up';
CREATE VIEW veto_source AS
SELECT day, code, 1 AS refused, (r IS NOT NULL)::int AS with_outcome,
       (pnl IS NOT NULL)::int AS with_pnl, (alone AND r IS NOT NULL)::int AS alone_with_outcome,
       coalesce(r < 0, false)::int AS losers, coalesce(r > 0, false)::int AS winners,
       coalesce(r, 0) AS r, coalesce(pnl, 0) AS pnl,
       CASE WHEN alone THEN coalesce(r, 0) ELSE 0 END AS r_alone
FROM (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, unnest(control_veto_codes) AS code,
           cardinality(control_veto_codes) = 1 AS alone,
           CASE WHEN agent_outcome <> 'not_traded' THEN advisor_exact(agent_r) END AS r,
           CASE WHEN agent_outcome <> 'not_traded' THEN advisor_exact(agent_pnl) END AS pnl
    FROM comparisons WHERE role = 'primary'
) refusals;
COMMENT ON VIEW veto_source IS 'What veto_days adds up';
GRANT SELECT ON agreement_source, veto_source TO advisor_writer, advisor_reader;
"""
KEYS = {"agreement": "model_version", "veto": "code"}
SUMS = {
    "agreement": ("decisions", "agreements", "agent_approvals", "advice_approvals"),
    "veto": (
        "refused",
        "with_outcome",
        "with_pnl",
        "alone_with_outcome",
        "losers",
        "winners",
        "r",
        "pnl",
        "r_alone",
    ),
}
SLOT_LOCK = 0x5AD5
SLOT = f"""
CREATE FUNCTION advisor_slot() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    slot integer := 0;
BEGIN
    WHILE NOT pg_try_advisory_xact_lock({SLOT_LOCK}, slot) LOOP
        slot := slot + 1;
    END LOOP;
    RETURN slot;
END $$;
REVOKE ALL ON FUNCTION advisor_slot FROM PUBLIC;
"""
TRIGGER = """
CREATE FUNCTION advisor_add_{event}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    mine integer;
BEGIN
    IF NOT EXISTS (SELECT FROM {first}) THEN
        RETURN NULL;
    END IF;
    mine := advisor_slot();
    {adding}
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION advisor_add_{event} FROM PUBLIC;
CREATE TRIGGER add_{event} AFTER {event} ON comparisons REFERENCING {references}
FOR EACH STATEMENT EXECUTE FUNCTION advisor_add_{event}();
"""
EVENTS = {
    "insert": {"NEW TABLE AS added": ("added", 1)},
    "update": {"OLD TABLE AS gone": ("gone", -1), "NEW TABLE AS added": ("added", 1)},
    "delete": {"OLD TABLE AS gone": ("gone", -1)},
}
ADDING = """
    INSERT INTO {name}_days AS kept (day, {key}, slot, {names})
    SELECT day, {key}, mine, {sums} FROM ({changes}) changed
    GROUP BY day, {key} HAVING {some} ORDER BY day, {key}
    ON CONFLICT (day, {key}, slot) DO UPDATE SET {kept};
"""
FILL = """
INSERT INTO {name}_days (day, {key}, slot, {names})
SELECT day, {key}, 0, {sums} FROM {name}_source GROUP BY day, {key};
"""
VIEWS = """
CREATE OR REPLACE VIEW agreement_daily AS
SELECT daily.*, agreements::float8 / decisions AS agreement,
       (decisions * agreements - by_chance)::float8
           / nullif(decisions * decisions - by_chance, 0) AS kappa
FROM (
    SELECT day, model_version, sum(decisions)::bigint AS decisions,
           sum(agreements)::bigint AS agreements, sum(agent_approvals)::bigint AS agent_approvals,
           sum(advice_approvals)::bigint AS advice_approvals
    FROM agreement_days GROUP BY day, model_version HAVING sum(decisions) > 0
) daily
CROSS JOIN LATERAL (
    SELECT agent_approvals * advice_approvals
           + (decisions - agent_approvals) * (decisions - advice_approvals) AS by_chance
) expected;
CREATE OR REPLACE VIEW veto_value AS
SELECT code, sum(refused)::bigint AS refused, sum(with_outcome)::bigint AS with_outcome,
       CASE WHEN sum(with_outcome) > 0 THEN -sum(r)::float8 END AS r_saved,
       (-sum(r) / nullif(sum(with_outcome), 0))::float8 AS mean_r_saved,
       CASE WHEN sum(with_pnl) > 0 THEN -sum(pnl)::float8 END AS pnl_saved,
       sum(losers)::bigint AS losers_avoided, sum(winners)::bigint AS winners_missed,
       CASE WHEN sum(alone_with_outcome) > 0 THEN -sum(r_alone)::float8 END AS r_saved_alone
FROM veto_days GROUP BY code HAVING sum(refused) > 0;
"""
REMOVED = """
CREATE OR REPLACE VIEW agreement_daily AS
SELECT * FROM agreement_daily_within('-infinity', 'infinity');
CREATE OR REPLACE VIEW veto_value AS SELECT * FROM veto_value_within('-infinity', 'infinity');
DROP TRIGGER add_insert ON comparisons;
DROP TRIGGER add_update ON comparisons;
DROP TRIGGER add_delete ON comparisons;
DROP FUNCTION advisor_add_insert, advisor_add_update, advisor_add_delete, advisor_slot;
DROP VIEW agreement_source, veto_source;
DROP FUNCTION advisor_exact;
DROP TABLE agreement_days, veto_days;
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(SOURCES)
    op.execute(SLOT)
    for event, tables in EVENTS.items():
        adding = "".join(_adding(name, list(tables.values())) for name in KEYS)
        references, first = " ".join(tables), next(iter(tables.values()))[0]
        trigger = {"event": event, "first": first, "adding": adding, "references": references}
        op.execute(TRIGGER.format(**trigger))
    for name, key in KEYS.items():
        sums = ", ".join(f"sum({each})" for each in SUMS[name])
        op.execute(FILL.format(name=name, key=key, names=", ".join(SUMS[name]), sums=sums))
    op.execute(VIEWS)


def downgrade() -> None:
    op.execute(REMOVED)


def _adding(name: str, tables: list[tuple[str, int]]) -> str:
    """The statement that adds what one statement changed; a source is read over what changed
    instead of the table."""
    body = SOURCES[SOURCES.index(f"CREATE VIEW {name}_source AS") :].split(";")[0]
    body = body.split(" AS\n", 1)[1]
    read = {table: body.replace("FROM comparisons", f"FROM {table}") for table, _ in tables}
    changes = " UNION ALL ".join(
        f"SELECT {sign} AS sign, * FROM ({read[table]}) {table}" for table, sign in tables
    )
    return ADDING.format(
        name=name,
        key=KEYS[name],
        names=", ".join(SUMS[name]),
        sums=", ".join(f"sum(sign * {each})" for each in SUMS[name]),
        changes=changes,
        some=" OR ".join(f"sum(sign * {each}) <> 0" for each in SUMS[name]),
        kept=", ".join(f"{each} = kept.{each} + excluded.{each}" for each in SUMS[name]),
    )
