"""The commands `up`, `serve`, `writer` and `migrate`."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from app.cli.options import AsJson, console, database_url, tell
from app.settings import Settings, read_settings
from app.tasks import put_off_garbage_collection, spare_from_collection
from app.telemetry import configure_log

PRIVATE = 0o077
"""What a process of the service writes is for its own user."""


def up(
    then: Annotated[
        str | None, typer.Option(help="Command to run once all is ready; it gets ADVISOR_URL.")
    ] = None,
    leave: Annotated[
        bool, typer.Option("--exit", help="End after that command, with its status.")
    ] = False,
) -> None:
    """Start Postgres and Valkey from wheels, migrate, import the small model, serve and write; stay
    until Ctrl-C."""
    from app.local.up import run_up

    raise typer.Exit(run_up(read_settings(), then, leave))


def serve(
    processes: Annotated[
        int | None,
        typer.Option(help="API processes on that port. Default: ADVISOR_PROCESSES, or 1."),
    ] = None,
) -> None:
    """Serve the API on ADVISOR_HOST:ADVISOR_PORT, with Postgres at DATABASE_URL and Valkey at
    REDIS_URL."""
    put_off_garbage_collection()
    from app.main import serve as serve_api

    spare_from_collection()
    os.umask(PRIVATE)
    serve_api(_settings(processes=processes))


def writer() -> None:
    """Move events from the journal into Postgres until stopped. As many may run as are needed."""
    import uvloop

    put_off_garbage_collection()
    from app.writer import run_writer

    spare_from_collection()
    os.umask(PRIVATE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_writer(_settings()))


def _settings(**overrides: object) -> Settings:
    """What a process of the service reads; it logs as they say from then on."""
    settings = read_settings(**overrides)
    configure_log(settings.logs_json)
    return settings


def migrate(as_json: AsJson = False) -> None:
    """Bring the database at DATABASE_URL to the newest schema, and let its roles log in with
    ADVISOR_WRITER_PASSWORD, ADVISOR_READER_PASSWORD and ADVISOR_ANALYST_PASSWORD, where they are
    set. Refused while processes run that the new schema would break."""
    from app.shadow_log.schema.logins import give_logins
    from app.shadow_log.schema.migrate import current, upgrade

    settings = read_settings()
    url = database_url(settings, owner=True)
    upgrade(url)
    give_logins(url, settings.logins)
    if as_json:
        tell({"revision": current(url)})
    else:
        console.print(f"database is at revision {current(url)}")
