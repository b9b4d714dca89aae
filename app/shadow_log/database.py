"""Connections to Postgres, and which of its errors mean "try again later"."""

from __future__ import annotations

import psycopg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.domain.errors import ShadowLogUnavailable

CONNECT_TIMEOUT_S = 5
POOL_SIZE = 5
POOL_TIMEOUT_S = 5
SILENT_SERVER_MS = 20_000
"""A connection whose server acknowledges nothing for this long is given up (TCP_USER_TIMEOUT)."""
NO_SCHEMA = "the database lacks the schema of this release: run `advisor migrate`"
_EXAMPLE = "write postgresql://user:password@host:5432/database"
_EVENTS_FAULT = ("22", "23", "54")
"""SQLSTATE classes that a row can cause: data exception, integrity violation, program limit
exceeded."""


def async_url(url: str) -> URL:
    """The URL with the psycopg driver, which speaks both ways. Raises `ShadowLogUnavailable`."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ShadowLogUnavailable(f"DATABASE_URL cannot be read; {_EXAMPLE}") from error
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ShadowLogUnavailable(
            f"DATABASE_URL names {parsed.get_backend_name()}, not Postgres; {_EXAMPLE}"
        )
    return parsed.set(drivername="postgresql+psycopg")


def connect(url: str) -> AsyncEngine:
    """A pool at a SQLAlchemy or libpq URL. Connects when first used; a connection that died is
    replaced."""
    return create_async_engine(
        async_url(url),
        pool_size=POOL_SIZE,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args=CONNECT_ARGS,
    )


CONNECT_ARGS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": SILENT_SERVER_MS,
    "application_name": "shadow-advisor",
}


class translated_errors:
    """Whatever is not the fault of a row becomes `ShadowLogUnavailable`; what is passes as it came.

    The difference decides whether the writer waits, or puts an event aside. Missing rights, a
    read-only server or a schema of another release are no event's fault: the journal keeps the
    events until somebody has mended it.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, PoolTimeout | OSError):
            raise ShadowLogUnavailable(f"Postgres: {error}") from error
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, psycopg.Error):
            return
        if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise ShadowLogUnavailable(NO_SCHEMA) from error
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if not lost and _is_the_events_fault(cause):
            return
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ShadowLogUnavailable(
            f"Postgres: {lines[0]}; check DATABASE_URL and the server"
        ) from error


def _is_the_events_fault(cause: psycopg.Error) -> bool:
    if (
        cause.sqlstate is None
    ):  # Raised by the driver: a connection that is gone, or a value that it cannot send.
        return not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return cause.sqlstate.startswith(_EVENTS_FAULT)
