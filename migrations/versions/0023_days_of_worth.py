"""What people ask of a year or of everything is added up by day: beside agreement what both arms
earned (`advice_days`, in the place of `agreement_days`), and whether chances came true
(`chance_days`). Kept as revision 0022 keeps its sums.

Sources say when (`as_of`), so that a span that begins within a day adds the rest of that day.

Revision: 0023, after 0022
"""

from __future__ import annotations

from alembic import context, op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

REPLACED = """
DROP TRIGGER add_insert ON comparisons;
DROP TRIGGER add_update ON comparisons;
DROP TRIGGER add_delete ON comparisons;
DROP FUNCTION advisor_add_insert, advisor_add_update, advisor_add_delete;
"""
TABLES = """
CREATE TABLE advice_days (
    day DATE NOT NULL,
    model_version TEXT NOT NULL,
    role TEXT NOT NULL,
    slot INTEGER NOT NULL,
    decisions BIGINT NOT NULL,
    abstained BIGINT NOT NULL,
    compared BIGINT NOT NULL,
    agreements BIGINT NOT NULL,
    agent_approvals BIGINT NOT NULL,
    advice_approvals BIGINT NOT NULL,
    judged BIGINT NOT NULL,
    agent_r NUMERIC NOT NULL,
    advice_r NUMERIC NOT NULL,
    CONSTRAINT pk_advice_days PRIMARY KEY (day, model_version, role, slot)
) WITH (fillfactor = 50);
CREATE TABLE chance_days (
    day DATE NOT NULL,
    model_version TEXT NOT NULL,
    what TEXT NOT NULL,
    fifth INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    decisions BIGINT NOT NULL,
    won BIGINT NOT NULL,
    told NUMERIC NOT NULL,
    CONSTRAINT pk_chance_days PRIMARY KEY (day, model_version, what, fifth, slot)
) WITH (fillfactor = 50);
GRANT SELECT ON advice_days, chance_days TO advisor_writer, advisor_reader;
"""

# Who rejects earns 0 R, who abstains has no opinion; R counts where that of both arms is known.
SOURCES = """
CREATE VIEW advice_source AS
SELECT day, model_version, role, 1 AS decisions, (status = 'abstained')::int AS abstained,
       (agree IS NOT NULL)::int AS compared, coalesce(agree, false)::int AS agreements,
       (agree IS NOT NULL AND agent_approve)::int AS agent_approvals,
       (agree IS NOT NULL AND advice_approve)::int AS advice_approvals,
       (num_nulls(agent_earned, advice_earned) = 0)::int AS judged,
       CASE WHEN num_nulls(agent_earned, advice_earned) = 0 THEN agent_earned ELSE 0 END AS agent_r,
       CASE WHEN num_nulls(agent_earned, advice_earned) = 0 THEN advice_earned ELSE 0 END
           AS advice_r,
       as_of
FROM (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, role, status, agree,
           agent_approve, advice_approve, as_of,
           CASE WHEN agent_approve THEN advisor_exact(agent_r) WHEN NOT agent_approve THEN 0 END
               AS agent_earned,
           CASE WHEN advice_approve THEN advisor_exact(advice_r) WHEN NOT advice_approve THEN 0 END
               AS advice_earned
    FROM comparisons
) earned;
COMMENT ON VIEW advice_source IS 'What advice_days adds up';
CREATE VIEW chance_source AS
SELECT day, model_version, what, least(floor(5 * chance), 4)::int AS fifth, 1 AS decisions,
       (agent_r > 0)::int AS won, advisor_exact(chance) AS told, as_of
FROM (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, model_version, foretold.what, foretold.chance,
           agent_r, as_of
    FROM comparisons
    CROSS JOIN LATERAL (
        VALUES ('approve', approve_probability), ('win', win_probability)
    ) AS foretold (what, chance)
    WHERE ordinal >= 0 AND agent_r IS NOT NULL AND agent_outcome <> 'not_traded'
      AND foretold.chance IS NOT NULL
) chances;
COMMENT ON VIEW chance_source IS 'What chance_days adds up';
CREATE OR REPLACE VIEW veto_source AS
SELECT day, code, 1 AS refused, (r IS NOT NULL)::int AS with_outcome,
       (pnl IS NOT NULL)::int AS with_pnl, (alone AND r IS NOT NULL)::int AS alone_with_outcome,
       coalesce(r < 0, false)::int AS losers, coalesce(r > 0, false)::int AS winners,
       coalesce(r, 0) AS r, coalesce(pnl, 0) AS pnl,
       CASE WHEN alone THEN coalesce(r, 0) ELSE 0 END AS r_alone, as_of
FROM (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, unnest(control_veto_codes) AS code, as_of,
           cardinality(control_veto_codes) = 1 AS alone,
           CASE WHEN agent_outcome <> 'not_traded' THEN advisor_exact(agent_r) END AS r,
           CASE WHEN agent_outcome <> 'not_traded' THEN advisor_exact(agent_pnl) END AS pnl
    FROM comparisons WHERE role = 'primary'
) refusals;
GRANT SELECT ON advice_source, chance_source TO advisor_writer, advisor_reader;
"""
KEYS = {"advice": "model_version, role", "chance": "model_version, what, fifth", "veto": "code"}
SUMS = {
    "advice": (
        "decisions",
        "abstained",
        "compared",
        "agreements",
        "agent_approvals",
        "advice_approvals",
        "judged",
        "agent_r",
        "advice_r",
    ),
    "chance": ("decisions", "won", "told"),
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
AGREEMENT = """
CREATE OR REPLACE VIEW agreement_daily AS
SELECT daily.*, agreements::float8 / decisions AS agreement,
       (decisions * agreements - by_chance)::float8
           / nullif(decisions * decisions - by_chance, 0) AS kappa
FROM (
    SELECT day, model_version, sum(compared)::bigint AS decisions,
           sum(agreements)::bigint AS agreements, sum(agent_approvals)::bigint AS agent_approvals,
           sum(advice_approvals)::bigint AS advice_approvals
    FROM advice_days GROUP BY day, model_version HAVING sum(compared) > 0
) daily
CROSS JOIN LATERAL (
    SELECT agent_approvals * advice_approvals
           + (decisions - agent_approvals) * (decisions - advice_approvals) AS by_chance
) expected;
DROP VIEW agreement_source;
DROP TABLE agreement_days;
"""
REMOVED = """
CREATE OR REPLACE VIEW agreement_daily AS
SELECT * FROM agreement_daily_within('-infinity', 'infinity');
CREATE OR REPLACE VIEW veto_value AS SELECT * FROM veto_value_within('-infinity', 'infinity');
DROP VIEW advice_source, chance_source, veto_source;
DROP FUNCTION advisor_exact, advisor_slot;
DROP TABLE advice_days, chance_days, veto_days;
"""


def upgrade() -> None:
    op.execute(REPLACED)
    op.execute(TABLES)
    op.execute(SOURCES)
    for event, tables in EVENTS.items():
        adding = "".join(_adding(name, list(tables.values())) for name in KEYS)
        references, first = " ".join(tables), next(iter(tables.values()))[0]
        trigger = {"event": event, "first": first, "adding": adding, "references": references}
        op.execute(TRIGGER.format(**trigger))
    for name in ("advice", "chance"):
        sums = ", ".join(f"sum({each})" for each in SUMS[name])
        op.execute(FILL.format(name=name, key=KEYS[name], names=", ".join(SUMS[name]), sums=sums))
    op.execute(AGREEMENT)


def downgrade() -> None:
    """The sums of before are made anew."""
    op.execute(REPLACED)
    op.execute(REMOVED)
    context.script.get_revision("0022").module.upgrade()  # type: ignore[union-attr]


def _adding(name: str, tables: list[tuple[str, int]]) -> str:
    """The statement that adds what one statement changed; a source is read over what changed
    instead of the table."""
    body = SOURCES[SOURCES.index(f"VIEW {name}_source AS") :].split(";")[0].split(" AS\n", 1)[1]
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
