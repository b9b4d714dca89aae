"""Roles: who may write, read, and look at views.

`advisor_writer` is the service's: it adds rows, and months by one function that runs as the owner.
`advisor_reader` reads every table: training, `advisor verify`. `advisor_analyst`, which read every
table before, reads views, within time-outs; it takes no lock, makes no large object and no
temporary table. The owner of the schema migrates and drops months.

What is taken from everybody (advisory locks, large objects, notifications) takes a superuser;
otherwise Postgres warns, and an administrator may run the statements.

Revision: 0009, after 0008
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ROLES = ("advisor_writer", "advisor_reader")
MAKE_ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        BEGIN
            CREATE ROLE {role} NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- Roles belong to the whole cluster: another migration was faster.
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'this user may not create the role {role}'
                    USING HINT = 'Let an administrator run: CREATE ROLE {role} NOLOGIN; '
                                 'then migrate again.';
        END;
    END IF;
END $$;
"""
WRITTEN = (
    "decision_keys",
    "decisions",
    "advices",
    "agent_actions",
    "outcomes",
    "rationales",
    "state_changes",
    "model_versions",
    "aliases",
    "event_links",
    "put_aside",
    "chain_heads",
)
VIEWS = (
    "latest_actions",
    "latest_outcomes",
    "shadow_comparison",
    "disagreements",
    "agreement_daily",
    "veto_value",
    "paper_books",
)
ANALYST = {
    "default_transaction_read_only": "on",
    "statement_timeout": "60s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "60s",
    "transaction_timeout": "10min",
}
"""For who logs in as this role. A session may set them anew: they are against accidents."""
TAKEN = "proname ~ '^pg_(try_)?advisory_' OR proname IN ('pg_notify', 'pg_logical_emit_message')"
LARGE_OBJECTS = (
    "proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lo_open', 'lowrite',"
    " 'lo_truncate', 'lo_truncate64', 'lo_unlink', 'lo_import', 'lo_export')"
)

MAKE_PARTITION = """
CREATE FUNCTION advisor_make_partition(parent text, suffix text, bounds text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    partition text := parent || '_' || suffix;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                   partition, parent);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES ', parent, partition) || bounds;
    -- Attaching copies row triggers from the parent, but not this one.
    EXECUTE format('CREATE TRIGGER never_truncated BEFORE TRUNCATE ON %I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()', partition);
END $$;
CREATE FUNCTION advisor_make_month(month text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    begins timestamptz;
    parent text;
BEGIN
    IF month !~ '^20[1-3][0-9](0[1-9]|1[0-2])$' THEN
        RAISE EXCEPTION 'no month between 2010 and 2039: %', month
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(23248); -- PARTITION_LOCK of app/shadow_log/schema/partitions.py
    begins := make_timestamptz(left(month, 4)::int, right(month, 2)::int, 1, 0, 0, 0, 'UTC');
    FOREACH parent IN ARRAY ARRAY['decisions', 'advices'] LOOP
        IF to_regclass(parent || '_' || month) IS NULL THEN
            PERFORM advisor_make_partition(parent, month, format(
                'FROM (%L) TO (%L)', begins,
                (begins AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'));
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION advisor_make_partition, advisor_make_month FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advisor_make_month TO advisor_writer;
"""
FUNCTIONS = """
DO $$
DECLARE
    named regprocedure;
BEGIN
    FOR named IN SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
                 AND ({which}) LOOP
        EXECUTE format('{statement}', named);
    END LOOP;
END $$;
"""
DATABASE = """
DO $$
BEGIN
    EXECUTE format('{}', current_database());
END $$;
"""


def upgrade() -> None:
    for role in ROLES:
        op.execute(MAKE_ROLE.format(role=role))
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        op.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {role}")
    op.execute(f"GRANT INSERT ON {', '.join(WRITTEN)} TO advisor_writer")
    op.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM advisor_analyst")
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM advisor_analyst"
    )
    op.execute(f"GRANT SELECT ON {', '.join(VIEWS)} TO advisor_analyst")
    op.execute(MAKE_PARTITION)
    for which in (TAKEN, LARGE_OBJECTS):
        _functions(which, "REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC")
    _functions(TAKEN, "GRANT EXECUTE ON FUNCTION %s TO advisor_writer, CURRENT_USER")
    _database("REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC")
    op.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    for name, value in ANALYST.items():
        _database(f"ALTER ROLE advisor_analyst IN DATABASE %I SET {name} = ''{value}''")


def downgrade() -> None:
    """Roles stay: other databases of the cluster may use them."""
    for name in ANALYST:
        _database(f"ALTER ROLE advisor_analyst IN DATABASE %I RESET {name}")
    _database("GRANT TEMPORARY ON DATABASE %I TO PUBLIC")
    for which in (TAKEN, LARGE_OBJECTS):
        _functions(which, "GRANT EXECUTE ON FUNCTION %s TO PUBLIC")
    _functions(TAKEN, "REVOKE EXECUTE ON FUNCTION %s FROM advisor_writer")
    op.execute("DROP FUNCTION advisor_make_month")
    op.execute("DROP FUNCTION advisor_make_partition")
    op.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO advisor_analyst")
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO advisor_analyst"
    )
    op.execute(f"REVOKE INSERT ON {', '.join(WRITTEN)} FROM advisor_writer")
    for role in ROLES:
        op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM {role}")
        op.execute(f"REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM {role}")
        op.execute(f"REVOKE USAGE ON SCHEMA public FROM {role}")


def _functions(which: str, statement: str) -> None:
    op.execute(FUNCTIONS.format(which=which, statement=statement))


def _database(statement: str) -> None:
    op.execute(DATABASE.format(statement))
