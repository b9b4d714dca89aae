"""Connections to Postgres, and which of its errors mean "try again later".

Every connection has session settings of ours, whatever the server, the database or the role would
have it inherit, and gives up a server that is silent: at connecting, in the middle of an exchange,
and where a host has vanished without closing anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.domain.errors import InvalidRecord, ShadowLogRefused, ShadowLogUnavailable
from app.tasks import described

CONNECT_TIMEOUT_S = 5
POOL_SIZE = 5
POOL_TIMEOUT_S = 5
PATIENCE_S = 10.0
"""A server that is silent for this long in the middle of an exchange is given up."""
SERVER_SHARE = 0.8
"""Of the patience: after this the server itself gives a statement up, and keeps the connection."""
SILENT_SERVER_MS = 6_000
"""A connection whose server acknowledges nothing for this long is given up (TCP_USER_TIMEOUT)."""
BEGINNINGS = 10
"""Tries at a session's first statement, which has the time that a session inherits: where that is a
millisecond, a busy server may give it up before it has set its own."""
APPLICATION = "shadow-advisor"
CONNECT_ARGS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": SILENT_SERVER_MS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": APPLICATION,
}
TOO_LONG = (
    "Postgres gave the question up, since it took too long: ask about a shorter time (`days`,"
    " `since`, `until`), or look whether the server is overloaded"
)
LOCKED = (
    "another session of Postgres holds what this needs, a long query or an open transaction: try"
    " again when it has ended"
)
NO_SCHEMA = "the database lacks the schema of this release: run `advisor migrate`"
_EXAMPLE = "write postgresql://user:password@host:5432/database"
_VALUES_FAULT = ("22", "23", "54")
"""SQLSTATE classes that a row can cause: data exception, integrity violation, program limit
exceeded."""
_REFUSED = ("42", "25006")
"""What is not there or not allowed, and a server that is only read."""
_OTHER_SCHEMA = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
)
_UNSENDABLE = (ValueError, TypeError, OverflowError, struct.error)
"""What Python and psycopg raise for values that cannot be put into a message."""


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
    options = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    if unknown := sorted(set(parsed.query) - options):
        raise ShadowLogUnavailable(
            f"DATABASE_URL has options that Postgres does not know: {', '.join(unknown)}; "
            "take them out"
        )
    return parsed.set(drivername="postgresql+psycopg")


def session_settings(patience_s: float | None) -> str:
    """Statements that every session begins with. Without patience nothing is given up. The time for
    a statement comes first: until then what the session inherited counts."""
    limit_ms = 0 if patience_s is None else round(patience_s * SERVER_SHARE * 1000)
    settings = {
        "statement_timeout": f"{limit_ms}",
        "TimeZone": "'UTC'",
        "DateStyle": "'ISO, MDY'",
        "IntervalStyle": "'postgres'",
        "search_path": '"$user", public',
        "standard_conforming_strings": "on",
        "client_encoding": "'UTF8'",
        "bytea_output": "'hex'",
        "extra_float_digits": "1",
        "default_transaction_isolation": "'read committed'",
        "lock_timeout": f"{limit_ms}",
        "idle_in_transaction_session_timeout": f"{limit_ms}",
    }
    return "; ".join(f"SET {name} TO {value}" for name, value in settings.items())


def connect(url: str, *, patience_s: float | None = PATIENCE_S) -> AsyncEngine:
    """A pool at a SQLAlchemy or libpq URL. Connects when first used; a connection that died is
    replaced. `patience_s` bounds every exchange; None is for long queries of people, which
    TCP's own time-outs look after."""

    async def open_one(*args: Any, **options: Any) -> PatientConnection:
        try:
            connection = await PatientConnection.connect(*args, **options)
        except BaseException as error:
            # What was begun hangs on the frames that it failed in: its socket would stay open
            # until the garbage is collected, and the server keeps a process waiting behind it.
            traceback.clear_frames(error.__traceback__)
            raise
        connection.patience_s = patience_s
        try:
            await connection.set_autocommit(True)
            for left in reversed(range(BEGINNINGS)):
                try:
                    await connection.execute(session_settings(patience_s).encode())
                    break
                except psycopg.errors.QueryCanceled:
                    if not left:
                        raise
            await connection.set_autocommit(False)
        except BaseException:
            await connection.close()
            raise
        return connection

    return create_async_engine(
        async_url(url),
        pool_size=POOL_SIZE,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        json_deserializer=orjson.loads,  # JSONB writes 1e25 in full: no integer of 64 bits.
        connect_args={**CONNECT_ARGS, "async_creator_fn": open_one},
    )


def connect_once(url: URL) -> Engine:
    """For migrations: no pool, no event loop, and the same session settings."""
    engine = create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGS)

    @event.listens_for(engine, "do_connect")
    def open_one(dialect: Any, record: object, args: Any, options: dict[str, Any]) -> Any:
        connection = dialect.connect(*args, **options)
        try:
            connection.autocommit = True
            for left in reversed(range(BEGINNINGS)):
                try:
                    connection.execute(session_settings(None))
                    break
                except psycopg.errors.QueryCanceled:
                    if not left:
                        raise
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    return engine


class PatientConnection(psycopg.AsyncConnection[Any]):
    """Hangs up on a server that stays silent in an exchange.

    Such a connection cannot be given up in good order: libpq waits for the answer. Shutting its
    socket down ends the waiting as if the server had closed it.
    """

    patience_s: float | None = PATIENCE_S

    async def wait(self, *args: Any, **options: Any) -> Any:
        """As in psycopg, within the patience."""
        if self.patience_s is None:
            return await super().wait(*args, **options)
        watch = asyncio.get_running_loop().call_later(self.patience_s, self._hang_up)
        try:
            return await super().wait(*args, **options)
        finally:
            watch.cancel()

    def _hang_up(self) -> None:
        if not self.closed:
            with socket.socket(fileno=os.dup(self.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)


@contextmanager
def faults_of_values() -> Iterator[None]:
    """What a row's own values cause becomes `InvalidRecord`; everything else passes as it came."""
    try:
        yield
    except (psycopg.Error, StatementError, *_UNSENDABLE) as error:
        cause = error.orig if isinstance(error, StatementError) else error
        if isinstance(cause, _UNSENDABLE) or (
            isinstance(cause, psycopg.Error) and _is_the_values_fault(cause)
        ):
            raise InvalidRecord(described(cause)) from error
        raise


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
        if isinstance(cause, _OTHER_SCHEMA):
            raise ShadowLogRefused(NO_SCHEMA) from error
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if not lost and _is_the_values_fault(cause):
            return
        if isinstance(cause, psycopg.errors.QueryCanceled):
            raise ShadowLogUnavailable(TOO_LONG) from error
        if isinstance(cause, psycopg.errors.LockNotAvailable):
            raise ShadowLogUnavailable(LOCKED) from error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        refused = not lost and (cause.sqlstate or "").startswith(_REFUSED)
        raise (ShadowLogRefused if refused else ShadowLogUnavailable)(
            f"Postgres: {lines[0]}; check DATABASE_URL and the server"
        ) from error


def _is_the_values_fault(cause: psycopg.Error) -> bool:
    if cause.sqlstate is None:  # Raised by the driver: of its errors only this one is of values.
        return isinstance(cause, psycopg.DataError)
    return cause.sqlstate.startswith(_VALUES_FAULT)
