"""Logins of the database's roles: the owner gives a role that a migration made a password."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql
from sqlalchemy import URL

from app.shadow_log.database import async_url, connect_once, translated_errors

WRITER, READER, ANALYST = "advisor_writer", "advisor_reader", "advisor_analyst"
MOST_CONNECTIONS = {READER: 24, ANALYST: 12}
"""Of all who are logged in as one, together. Postgres has 100 by default: whoever took them all
would shut the service out."""
MOST_DISK = "4GB"
"""That one of their connections may fill with what it sorts: a full disk ends the server."""
_BOUND_DISK = """
DO $$
BEGIN
    EXECUTE format('ALTER ROLE %I SET temp_file_limit = %L', {role}, {limit});
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'the disk that % may fill is not bounded: it takes a superuser', {role};
END $$
"""


def give_logins(url: str, passwords: Mapping[str, str]) -> None:
    """Let each role log in with its password, as the owner at `url`, and bound what those that only
    read can take from others. What the server logs of a password is the hash alone. Raises
    `ShadowLogUnavailable`."""
    engine = connect_once(async_url(url))
    try:
        with translated_errors(), engine.begin() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            for role, password in passwords.items():
                hashed = raw.pgconn.encrypt_password(
                    password.encode(), role.encode(), b"scram-sha-256"
                )
                statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(
                    sql.Identifier(role),
                    sql.Literal(hashed.decode()),
                    sql.Literal(MOST_CONNECTIONS.get(role, -1)),
                )
                raw.execute(statement)
                if role in MOST_CONNECTIONS:
                    bounds = {"role": sql.Literal(role), "limit": sql.Literal(MOST_DISK)}
                    raw.execute(sql.SQL(_BOUND_DISK).format(**bounds))
    finally:
        engine.dispose()


def url_as(url: str, role: str, password: str) -> str:
    """The same database, asked as another."""
    parsed: URL = async_url(url).set(username=role, password=password)
    return parsed.render_as_string(hide_password=False)
