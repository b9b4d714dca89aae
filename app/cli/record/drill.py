"""The command `drill`: does the backup restore?"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import DRIVER, AsJson, database_url, for_programs, say, tell
from app.domain.text import counted
from app.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from sqlalchemy import URL

ROLES = ("advisor_analyst", "advisor_writer", "advisor_reader")
"""They belong to a server, and are in no dump."""


def drill(
    dump: Annotated[Path, typer.Argument(help="The file to write.")],
    server: Annotated[
        str | None,
        typer.Option(help="Restore there: its owner's address. Default: where the log is."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the restored database.")] = False,
    as_json: AsJson = False,
) -> None:
    """Dump the shadow log, restore it into a database of its own, verify every row there and drop
    it; exit 1 when something does not verify. The service goes on meanwhile. `pg_dump` and
    `pg_restore` must be there, as new as the server; those of `advisor up` are."""
    import psycopg
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from app.local.servers import postgres_tools

    settings = read_settings()
    source = database_url(settings, owner=True)
    tools = None if settings.database_url else postgres_tools()
    try:
        place = make_url(server or source)
        began = perf_counter()
        _run(tools, "pg_dump", source, "--format=custom", f"--file={dump}")
        dumped_s = perf_counter() - began
        say(f"dumped {dump.stat().st_size / 1e6:.1f} MB in {dumped_s:.1f} s")
        with _database_beside(place, keep) as target:
            told = _restored(tools, target, dump)
    except ArgumentError as error:
        raise SettingsError("--server is no address of a Postgres") from error
    except psycopg.Error as error:
        raise SettingsError(f"Postgres says: {' '.join(str(error).split())}") from error
    if as_json:
        tell({"dump": dump, "bytes": dump.stat().st_size, "dumped_s": dumped_s, **told})
    raise typer.Exit(1 if told["findings"] else 0)


@contextmanager
def _database_beside(place: URL, keep: bool) -> Iterator[str]:
    """The address of an empty database on the server, which is dropped afterwards."""
    import psycopg

    name = f"advisor_drill_{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    plain = place.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as owner:
        for role in ROLES:
            if not owner.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                owner.execute(f"CREATE ROLE {role} NOLOGIN".encode())
        owner.execute(f"CREATE DATABASE {name}".encode())
        try:
            target = place.set(drivername=f"postgresql{DRIVER}", database=name)
            yield target.render_as_string(hide_password=False)
        finally:
            if keep:
                say(f"{name} stays")
            else:
                owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _restored(tools: Path | None, target: str, dump: Path) -> dict[str, Any]:
    """Restore and verify, and say how it went; what is wrong is under `findings`."""
    from app.shadow_log.proof.verify import verify_log

    began = perf_counter()
    _run(tools, "pg_restore", target, "--exit-on-error", "--no-owner", str(dump))
    restored_s = perf_counter() - began
    say(f"restored in {restored_s:.1f} s")
    began = perf_counter()
    report = asyncio.run(verify_log(target))
    verified_s = perf_counter() - began
    say(f"verified {counted(report.decisions, 'decision')} in {verified_s:.1f} s")
    findings = [str(finding) for finding in report.findings]
    for finding in findings:
        say(f"wrong: {finding}")
    times = {"restored_s": restored_s, "verified_s": verified_s}
    return {**times, "decisions": report.decisions, "findings": findings}


def _run(tools: Path | None, program: str, url: str, *options: str) -> None:
    """A program of Postgres on a database; of `tools`, where they are known."""
    target, environment = for_programs(url)
    if tools is not None:
        environment["PATH"] = f"{tools}:{environment.get('PATH', '')}"
    try:
        subprocess.run([program, f"--dbname={target}", *options], env=environment, check=True)
    except FileNotFoundError as error:
        raise SettingsError(f"{program} is not installed (Debian: postgresql-client)") from error
    except subprocess.CalledProcessError as error:
        raise SettingsError(f"{program} gave up, with status {error.returncode}") from error
