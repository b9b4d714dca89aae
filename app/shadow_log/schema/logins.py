"""Logins of the database's roles: the owner gives a role that a migration made a password."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql
from sqlalchemy import URL

from app.shadow_log.database import async_url, connect_once, translated_errors

WRITER, READER, ANALYST = "advisor_writer", "advisor_reader", "advisor_analyst"


def give_logins(url: str, passwords: Mapping[str, str]) -> None:
    """Let each role log in with its password, as the owner at `url`. What the server logs of the
    statement is the hash alone. Raises `ShadowLogUnavailable`."""
    engine = connect_once(async_url(url))
    try:
        with translated_errors(), engine.begin() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            for role, password in passwords.items():
                hashed = raw.pgconn.encrypt_password(
                    password.encode(), role.encode(), b"scram-sha-256"
                )
                statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(hashed.decode())
                )
                raw.execute(statement)
    finally:
        engine.dispose()


def url_as(url: str, role: str, password: str) -> str:
    """The same database, asked as another."""
    parsed: URL = async_url(url).set(username=role, password=password)
    return parsed.render_as_string(hide_password=False)
