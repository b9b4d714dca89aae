"""What still read every row of all time, at ten million decisions: how far versions agree is added
up by day (`pair_days`), a decision is found by the id of its request, reports by when they came.

Sums are kept as revisions 0022 and 0023 keep theirs, but for one thing: a pair is two rows of a
decision, and a statement may change one of them. So what is added is what the decisions that it
touched say now, less what they said before.

Revision: 0025, after 0024
"""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

# Reports come in the order of their times but for late ones: a block range index has one entry for
# each hundred pages, and is as good.
INDEXES = """
CREATE INDEX ix_decisions_request_id_hash ON decisions USING hash (request_id);
CREATE INDEX ix_agent_actions_recorded_at ON agent_actions
USING brin (recorded_at) WITH (autosummarize = on);
CREATE INDEX ix_outcomes_recorded_at ON outcomes
USING brin (recorded_at) WITH (autosummarize = on);
"""
TABLE = """
CREATE TABLE pair_days (
    day DATE NOT NULL,
    one TEXT NOT NULL,
    other TEXT NOT NULL,
    slot INTEGER NOT NULL,
    decisions BIGINT NOT NULL,
    agreements BIGINT NOT NULL,
    CONSTRAINT pk_pair_days PRIMARY KEY (day, one, other, slot)
) WITH (fillfactor = 50);
"""
# Grouped by decision, so that who asks for a span reads no more than that.
PAIRS = """
SELECT day, least(versions[a], versions[b]) AS one, greatest(versions[a], versions[b]) AS other,
       1 AS decisions, (approvals[a] = approvals[b])::int AS agreements, as_of
FROM (
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, as_of,
           array_agg(model_version) AS versions, array_agg(advice_approve) AS approvals
    FROM {comparisons} WHERE ordinal >= 0 AND advice_approve IS NOT NULL
    GROUP BY decision_id, as_of HAVING count(*) > 1
) answered
CROSS JOIN generate_subscripts(versions, 1) a JOIN generate_subscripts(versions, 1) b ON b > a
WHERE versions[a] <> versions[b]
"""
SOURCE = f"""
CREATE VIEW pair_source AS {PAIRS.format(comparisons="comparisons")};
COMMENT ON VIEW pair_source IS 'What pair_days adds up';
GRANT SELECT ON pair_days, pair_source TO advisor_writer, advisor_reader;
"""
FILL = """
INSERT INTO pair_days (day, one, other, slot, decisions, agreements)
SELECT day, one, other, 0, sum(decisions), sum(agreements)
FROM pair_source GROUP BY day, one, other
"""

# Most statements bring reports, which change no pair: then nothing else is read.
TRIGGER = """
CREATE FUNCTION advisor_pair_{event}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    ids uuid[];
    times timestamptz[];
    mine integer;
BEGIN
    SELECT array_agg(DISTINCT decision_id), array_agg(DISTINCT as_of) INTO ids, times
    FROM ({touched}) touched WHERE ordinal >= 0 AND advice_approve IS NOT NULL;
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;
    mine := advisor_slot();
    WITH now AS (
        SELECT {columns} FROM comparisons WHERE decision_id = ANY (ids) AND as_of = ANY (times)
    ), before AS (
        {before}
    )
    INSERT INTO pair_days AS kept (day, one, other, slot, decisions, agreements)
    SELECT day, one, other, mine, sum(sign * decisions), sum(sign * agreements)
    FROM (SELECT 1 AS sign, * FROM ({pairs_now}) added
          UNION ALL SELECT -1, * FROM ({pairs_before}) gone) changed
    GROUP BY day, one, other HAVING sum(sign * decisions) <> 0 OR sum(sign * agreements) <> 0
    ORDER BY day, one, other
    ON CONFLICT (day, one, other, slot) DO UPDATE
    SET decisions = kept.decisions + excluded.decisions,
        agreements = kept.agreements + excluded.agreements;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION advisor_pair_{event} FROM PUBLIC;
CREATE TRIGGER pair_{event} AFTER {event} ON comparisons REFERENCING {references}
FOR EACH STATEMENT EXECUTE FUNCTION advisor_pair_{event}();
"""
COLUMNS = "decision_id, as_of, ordinal, model_version, advice_approve"
ADDED, GONE = f"SELECT {COLUMNS} FROM added", f"SELECT {COLUMNS} FROM gone"
UNTOUCHED = f"SELECT {COLUMNS} FROM now EXCEPT {ADDED}"
EVENTS = {
    "insert": ("NEW TABLE AS added", ADDED, UNTOUCHED),
    "update": (
        "OLD TABLE AS gone NEW TABLE AS added",
        f"({ADDED} EXCEPT {GONE}) UNION ALL ({GONE} EXCEPT {ADDED})",
        f"({UNTOUCHED}) UNION {GONE} WHERE decision_id = ANY (ids)",
    ),
    "delete": (
        "OLD TABLE AS gone",
        GONE,
        f"SELECT {COLUMNS} FROM now UNION {GONE}",
    ),
}
REMOVED = """
DROP TRIGGER pair_insert ON comparisons;
DROP TRIGGER pair_update ON comparisons;
DROP TRIGGER pair_delete ON comparisons;
DROP FUNCTION advisor_pair_insert, advisor_pair_update, advisor_pair_delete;
DROP VIEW pair_source;
DROP TABLE pair_days;
DROP INDEX ix_decisions_request_id_hash, ix_agent_actions_recorded_at, ix_outcomes_recorded_at;
"""


def upgrade() -> None:
    op.execute(INDEXES)
    op.execute(TABLE)
    op.execute(SOURCE)
    for event, (references, touched, before) in EVENTS.items():
        op.execute(
            TRIGGER.format(
                event=event,
                references=references,
                touched=touched,
                before=before,
                columns=COLUMNS,
                pairs_now=PAIRS.format(comparisons="now"),
                pairs_before=PAIRS.format(comparisons="before"),
            )
        )
    op.execute(FILL)


def downgrade() -> None:
    op.execute(REMOVED)
