"""Migrations, run by Alembic under a lock, so that several starters do not collide."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import text

from app.domain.errors import ShadowLogUnavailable
from app.shadow_log.database import APPLICATION, async_url, connect_once, translated_errors

SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND (starts_with(application_name, :application)
         OR (application_name IS NULL AND usename = 'advisor_writer'))
"""
"""A pool in between may add to the name; who is no superuser may not see it."""
BESIDE_THE_PACKAGE = Path(__file__).parents[3] / "migrations"


def upgrade(url: str, revision: str = "head", migrations: Path | None = None) -> None:
    """Bring the schema to `revision`.

    Parameters
    ----------
    url : SQLAlchemy or libpq URL.
    revision : a revision, or `head` for the newest.
    migrations : their directory; by default the one beside the package, else the one in the working
        directory.

    Raises
    ------
    ShadowLogUnavailable : Postgres does not answer, or a lock was not to be had, or there are no
        migrations; or processes of the service use the database, and it is to be changed in a way
        that those of an earlier release cannot read or write (`stops_earlier` in a migration).
    """
    _require_stopped(url, revision, migrations)
    _run(command.upgrade, url, revision, migrations)


def downgrade(url: str, revision: str, migrations: Path | None = None) -> None:
    """Take the schema back to `revision`; `base` drops every table. Raises as `upgrade`."""
    _run(command.downgrade, url, revision, migrations)


def current(url: str) -> str | None:
    """The revision that the database is at; None before the first migration. Raises
    `ShadowLogUnavailable`."""
    engine = connect_once(async_url(url))
    try:
        with translated_errors(), engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _require_stopped(url: str, revision: str, migrations: Path | None) -> None:
    at = current(url)
    scripts = ScriptDirectory.from_config(config(url, migrations))
    try:
        coming = list(scripts.iterate_revisions(revision, at)) if at else []
    except RevisionError:  # Of a newer release: whoever migrates is told.
        return
    stops = [each.revision for each in coming if getattr(each.module, "stops_earlier", False)]
    engine = connect_once(async_url(url))
    try:
        with translated_errors(), engine.connect() as connection:
            sessions = connection.scalar(text(SESSIONS), {"application": APPLICATION})
    finally:
        engine.dispose()
    if stops and sessions:
        raise ShadowLogUnavailable(
            f"migration {min(stops)} changes what processes of an earlier release read and write,"
            f" and {sessions} of their sessions are connected: stop API and writers (events wait in"
            " the journal), run `advisor migrate`, and start those of this release"
        )


def config(url: str, migrations: Path | None = None) -> Config:
    """Alembic's configuration for a database. Raises `ShadowLogUnavailable` when there are no
    migrations."""
    directory = migrations or _find()
    if not (directory / "env.py").is_file():
        raise ShadowLogUnavailable(
            f"no migrations in {directory}: run from the directory that holds `migrations`, as the"
            " repository does"
        )
    settings = Config()
    settings.set_main_option("script_location", str(directory).replace("%", "%%"))
    settings.attributes["url"] = async_url(url)
    return settings


def _find() -> Path:
    """A checkout has them beside the package; where the package is installed, the image has them
    where it works."""
    return BESIDE_THE_PACKAGE if BESIDE_THE_PACKAGE.is_dir() else Path.cwd() / "migrations"


def _run(step: object, url: str, revision: str, migrations: Path | None) -> None:
    assert callable(step)
    settings = config(url, migrations)
    try:
        with translated_errors():
            step(settings, revision)
    except CommandError as error:
        raise ShadowLogUnavailable(
            f"migrations: {error}; is the database from a newer release?"
        ) from error
