"""A backup of a database, and its restoration in the place of what was written since."""

from __future__ import annotations

import psycopg

from tests.conftest import administration


def back_up(url: str) -> str:
    """The name of a copy of the database at a URL. Whoever is connected is sent away."""
    name, copy = _name(url), f"{_name(url)}_backup"
    with administration(url) as connection:
        _alone(connection, name)
        connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    return copy


def restore(url: str, copy: str) -> None:
    """Put the copy in the place of the database, under its name."""
    name = _name(url)
    with administration(url) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.execute(f"ALTER DATABASE {copy} RENAME TO {name}")


def _alone(connection: psycopg.Connection, name: str) -> None:
    connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
    )


def _name(url: str) -> str:
    return url.rsplit("/", 1)[1]
