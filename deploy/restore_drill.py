"""Does the backup restore? Dump the shadow log, restore it into a database of its own, verify every
row there, and drop it again. The service goes on meanwhile, and notices nothing.

usage: DATABASE_URL=... python deploy/restore_drill.py DUMP [--server URL] [--keep]

DUMP is the file that is written. The database is made on the server of DATABASE_URL, or of --server
(its owner's address), as advisor_drill_TIME. `pg_dump` and `pg_restore` must be on PATH, as new as
the server. Exit status 1 when something that was restored does not verify. No password is seen in a
list of processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import psycopg
from sqlalchemy import URL, make_url

from app.settings import with_environment
from app.shadow_log.proof.verify import verify_log

ROLES = ("advisor_analyst", "advisor_writer", "advisor_reader")
"""They belong to a server, and are in no dump."""


def drill(source: str, dump: Path, server: str | None = None, *, keep: bool = False) -> int:
    """The exit status."""
    of, name = make_url(source), f"advisor_drill_{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    place = make_url(server) if server else of
    target = place.set(database=name)
    began = perf_counter()
    _run(of, "pg_dump", "--format=custom", f"--file={dump}")
    say(f"dumped {dump.stat().st_size / 1e6:.1f} MB in {perf_counter() - began:.1f} s")
    with _connected(place) as owner:
        for role in ROLES:
            if not owner.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                owner.execute(f"CREATE ROLE {role} NOLOGIN".encode())
        owner.execute(f"CREATE DATABASE {name}".encode())
        try:
            return _restored(target, dump)
        finally:
            if keep:
                say(f"{name} stays")
            else:
                owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _restored(target: URL, dump: Path) -> int:
    began = perf_counter()
    _run(target, "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={target.database}", dump)
    say(f"restored in {perf_counter() - began:.1f} s")
    began = perf_counter()
    report = asyncio.run(verify_log(target.render_as_string(hide_password=False)))
    say(f"verified {report.decisions} decisions in {perf_counter() - began:.1f} s")
    for finding in report.findings:
        say(f"wrong: {finding}")
    return 1 if report.findings else 0


def _run(url: URL, *command: str | Path) -> None:
    """A program of Postgres, told where by its environment. Raises `CalledProcessError`."""
    told = {
        "PGHOST": url.host or "",
        "PGPORT": str(url.port or 5432),
        "PGUSER": url.username or "",
        "PGPASSWORD": str(url.password or ""),
        "PGDATABASE": url.database or "",
    }
    environment = with_environment({name: value for name, value in told.items() if value})
    subprocess.run(command, env=environment, check=True)


def _connected(url: URL) -> psycopg.Connection:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr)


def main() -> int:
    """The drill as asked for."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    asked.add_argument("dump", type=Path)
    asked.add_argument("--server")
    asked.add_argument("--keep", action="store_true")
    given = asked.parse_args()
    source = os.environ.get("DATABASE_URL")
    if not source:
        asked.error("DATABASE_URL names no database")
    return drill(source, given.dump, given.server, keep=given.keep)


if __name__ == "__main__":
    sys.exit(main())
