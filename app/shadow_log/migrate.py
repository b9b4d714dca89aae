"""Migrations, run by Alembic under a lock, so that several starters do not collide."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from app.domain.errors import ShadowLogUnavailable
from app.shadow_log.log import async_url, translated_errors

MIGRATIONS = Path(__file__).parents[2] / "migrations"
"""Beside the package in a checkout; the container copies it to the same place under its working directory."""


def config(url: str) -> Config:
    """Alembic's configuration for a database."""
    directory = MIGRATIONS if MIGRATIONS.is_dir() else Path.cwd() / "migrations"
    if not (directory / "env.py").exists():
        raise ShadowLogUnavailable(f"no migrations at {MIGRATIONS} or {directory}: run from the project's directory")
    settings = Config()
    settings.set_main_option("script_location", str(directory).replace("%", "%%"))
    settings.attributes["url"] = async_url(url)
    return settings


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`. Raises `ShadowLogUnavailable` when Postgres does not answer."""
    with translated_errors():
        command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision`."""
    with translated_errors():
        command.downgrade(config(url), revision)


def current(url: str) -> str | None:
    """The revision that the database is at."""
    engine = create_engine(async_url(url), connect_args={"connect_timeout": 5})
    try:
        with translated_errors(), engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
