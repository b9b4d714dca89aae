"""Connections to Postgres: our own session settings, and an end to waiting for who is silent."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from app.domain.canonical import decision_id
from app.domain.errors import InvalidRecord, ShadowLogUnavailable
from app.domain.record.decision import Decision
from app.domain.record.event import Entry, Event
from app.journal.drain import StreamDrain
from app.journal.stream import StreamJournal
from app.main import build
from app.processes.metrics import Metrics
from app.shadow_log import database
from app.shadow_log.database import (
    APPLICATION,
    PatientConnection,
    async_url,
    connect,
    connect_once,
    translated_errors,
)
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.tasks import end
from tests import builders as build_
from tests.service.journal.journal_events import dead_letters
from tests.service.running import settings_for, until

INHERITED = {
    "timezone": "Europe/Berlin",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "off",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
}

SLOW = "SELECT pg_sleep(1)"


def inherit(database_url: str, **settings: str) -> None:
    """What whoever keeps the database set for everybody."""
    with psycopg.connect(
        database_url.replace("+psycopg", ""), autocommit=True, options="-c statement_timeout=0"
    ) as connection:
        name = make_url(database_url).database
        for key, value in settings.items():
            connection.execute(f"ALTER DATABASE {name} SET {key} TO '{value}'")


async def test_what_a_database_would_have_sessions_inherit_does_not_count(
    database_url: str,
) -> None:
    inherit(database_url, **INHERITED)
    log = ShadowLog.connect(database_url)
    async with log.engine.connect() as connection:
        found = {
            name: await connection.scalar(text(f"SHOW {name}"))
            for name in ("TimeZone", "DateStyle", "statement_timeout", "extra_float_digits")
        }
    assert found == {
        "TimeZone": "UTC",
        "DateStyle": "ISO, MDY",
        "statement_timeout": "8s",
        "extra_float_digits": "1",
    }
    assert (await log.append([build_.decision_event("r-1")])).inserted["decisions"] == 1
    await log.aclose()
    assert (await verify_log(database_url)).findings == []


@pytest.mark.parametrize("given_up", [1, 9, 10])
async def test_a_session_whose_first_statement_is_given_up_begins_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, given_up: int
) -> None:
    """What a session inherits is the time of its first statement, before it has set its own."""
    left = {"await": given_up, "plain": given_up}

    def fails(how: str, statement: object) -> bool:
        first = str(statement).startswith(("b'SET statement_timeout", "SET statement_timeout"))
        left[how] -= first
        return first and left[how] >= 0

    class Hurried(psycopg.Connection[Any]):
        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            return super().execute(SLOW if fails("plain", query) else query, *args, **options)

    class HurriedToo(PatientConnection):
        async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            asked = SLOW if fails("await", query) else query
            return await super().execute(asked, *args, **options)

    inherit(database_url, statement_timeout="1ms")
    monkeypatch.setattr(database, "PatientConnection", HurriedToo)
    monkeypatch.setattr(psycopg, "connect", Hurried.connect)
    log, once = ShadowLog.connect(database_url), connect_once(async_url(database_url))
    with pytest.raises(ShadowLogUnavailable) if given_up == 10 else nullcontext():
        await log.ping()
    with (
        pytest.raises(OperationalError) if given_up == 10 else nullcontext(),
        once.connect() as connection,
    ):
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
    await log.aclose()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
async def test_a_log_verifies_whatever_the_time_zone_of_its_database(
    database_url: str, zone: str
) -> None:
    inherit(database_url, timezone=zone)
    moments = [
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),  # 02:30 in Berlin, twice that night
        datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
        datetime(2026, 11, 1, 5, 30, tzinfo=UTC),  # 01:30 in New York, twice
        datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
        datetime(1, 1, 1, 0, 0, tzinfo=UTC),
        datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    log = ShadowLog.connect(database_url)
    events = [build_.decision_event(f"r-{n}", at=at) for n, at in enumerate(moments)]
    await log.append(events)
    stored = [await log.decision(decision_id(f"r-{n}")) for n in range(len(moments))]
    await log.aclose()
    assert stored == [event.record() for event in events]
    report = await verify_log(database_url)
    assert (report.decisions, report.findings) == (len(moments), [])


class Proxy:
    """A way to a server that may fall silent: its connections stay open, and nothing passes."""

    def __init__(self) -> None:
        self.silent = False
        self._ways: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self._writers: list[asyncio.StreamWriter] = []

    def vanish(self) -> None:
        """What is connected now is never answered again; who connects anew is served."""
        for passing, _ in self._ways:
            passing.clear()

    async def carry(
        self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        to_server, from_client = await asyncio.open_connection(host, port)
        passing = asyncio.Event()
        passing.set()
        self._writers += [writer, from_client]
        for source, sink in ((reader, from_client), (to_server, writer)):
            self._ways.append((passing, asyncio.create_task(self._pass(source, sink, passing))))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        while data := await source.read(65536):
            await passing.wait()
            sink.write(data)
            await sink.drain()
        sink.close()

    async def aclose(self) -> None:
        await end([task for _, task in self._ways])
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    target = make_url(url)
    assert target.host
    assert target.port
    proxy, host, port = Proxy(), target.host, target.port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await proxy.carry(host, port, reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        here = target.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        try:
            yield proxy, here.render_as_string(hide_password=False)
        finally:
            await proxy.aclose()


async def test_a_writer_whose_postgres_vanishes_without_a_word_goes_on_with_a_new_connection(
    database_url: str, valkey_url: str
) -> None:
    stream = StreamJournal(valkey_url, timeout_s=5)
    async with proxied(database_url) as (proxy, url):
        log = ShadowLog.connect(url, patience_s=0.3)

        async def sink(events: Sequence[Entry]) -> None:
            await log.append(events)

        drain = StreamDrain(valkey_url, sink, block_ms=20)
        running = asyncio.create_task(drain.run())
        for number in range(3):
            await stream.append(build_.decision_event(f"r-{number}"))

            async def written(number: int = number) -> bool:
                try:
                    return await log.claim(decision_id(f"r-{number}")) is not None
                except ShadowLogUnavailable:
                    return False

            await until(written)
            proxy.vanish()
        await end([running])
        await drain.aclose()
        await log.aclose()
    await stream.aclose()
    assert dead_letters(valkey_url) == []
    assert (await verify_log(database_url)).decisions == 3


async def test_a_silent_connection_of_the_pool_is_replaced_within_the_patience(
    database_url: str,
) -> None:
    async with proxied(database_url) as (proxy, url):
        log = ShadowLog.connect(url, patience_s=0.2)
        await log.ping()
        proxy.vanish()
        begin = monotonic()
        assert (await log.append([build_.decision_event("r-1")])).inserted["decisions"] == 1
        assert monotonic() - begin < 10
        await log.aclose()


@pytest.mark.parametrize("option", ["pgbouncer=true", "sslmod=require", "schema=advisor"])
def test_an_option_that_postgres_does_not_know_is_refused_at_the_start(
    database_url: str, valkey_url: str, tmp_path: object, option: str
) -> None:
    url = f"{database_url}?{option}"
    name = option.split("=")[0]
    with pytest.raises(ShadowLogUnavailable, match=f"does not know: {name}; take them out"):
        async_url(url)
    with pytest.raises(ShadowLogUnavailable, match=name):
        build(settings_for(url, valkey_url, tmp_path), Metrics())  # type: ignore[arg-type]


async def test_only_values_are_an_events_fault(database_url: str) -> None:
    log = ShadowLog.connect(database_url)
    good = build_.decision_event("r-1")
    for bad in (
        Event(good.kind, good.key, good.claim, b"{"),
        Event(good.kind, good.key, good.claim, b'"text"'),
        Event(good.kind, good.key, "\x00", good.payload),
        Event(good.kind, good.key, "\ud800", good.payload),
    ):
        with pytest.raises(InvalidRecord):
            await log.append([bad])
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("ALTER TABLE advices RENAME COLUMN label TO lable")
        with pytest.raises(ShadowLogUnavailable):
            await log.append([good])
        connection.execute("ALTER TABLE advices RENAME COLUMN lable TO label")
    assert (await log.append([good])).inserted["decisions"] == 1
    await log.aclose()
    assert isinstance(good.record(), Decision)


async def test_a_writer_that_is_frozen_within_a_copy_loses_its_session(database_url: str) -> None:
    """Postgres waits for the rest of a COPY without any time-out; whoever needs the same keys would
    wait with it."""
    decision = build_.decision("r-1")
    log = ShadowLog.connect(database_url)
    with psycopg.connect(
        database_url.replace("+psycopg", ""),
        application_name=APPLICATION,
        options="-c statement_timeout=200 -c idle_in_transaction_session_timeout=200",
    ) as frozen:
        frozen.execute(
            "INSERT INTO decision_keys VALUES (%s, decode(repeat('01', 32), 'hex'), now())",
            [decision.decision_id],
        )
        copy = frozen.cursor().copy("COPY decisions (decision_id) FROM STDIN")
        copy.__enter__()
        other = asyncio.create_task(log.append([Event.of_decision(decision)]))
        assert await log.end_frozen(3600) == 0, "who is only slow keeps it"

        async def ended() -> bool:
            return await log.end_frozen(0.5) == 1

        await until(ended)
        assert (await other).inserted["decisions"] == 1
        frozen.close()
    assert (await verify_log(database_url)).counts == {}
    await log.aclose()


async def test_a_connection_that_is_given_up_while_it_begins_is_closed_at_once() -> None:
    """Not when garbage is collected: until then a server keeps a process for it, and nobody can
    drop the database."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        engine = connect(f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/none")
        gc.disable()
        try:
            connecting = asyncio.ensure_future(engine.connect().start())
            accepted, _ = await loop.sock_accept(listener)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            with accepted:
                accepted.setblocking(False)
                while await asyncio.wait_for(loop.sock_recv(accepted, 4096), 10):
                    pass  # What it began to say, to the end.
        finally:
            gc.enable()
            await engine.dispose()


async def test_ids_are_asked_for_on_one_connection_and_on_another_after_a_restart(
    database_url: str,
) -> None:
    log, other = ShadowLog.connect(database_url), ShadowLog.connect(database_url)
    await log.append([build_.decision_event("r-1")])
    ids = [decision_id("r-1"), decision_id("r-2")]
    ours = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%decision_keys%ANY%'"
    sessions = []
    async with other.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for end_it in (False, True, False):
            claims = await log.claims(ids)
            assert list(claims) == ids[:1]
            mine = f"{ours} AND pid <> pg_backend_pid() AND datname = current_database()"
            [pid] = await connection.scalars(text(mine))
            sessions.append(pid)
            if end_it:
                await connection.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))
    first, second, third = sessions
    assert first == second != third
    await other.aclose()
    await log.aclose()


async def test_a_question_that_takes_too_long_is_told_to_be_made_smaller(database_url: str) -> None:
    engine = connect(database_url, patience_s=0.1)
    with pytest.raises(ShadowLogUnavailable, match="ask about a shorter time"), translated_errors():
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(60)"))
    await engine.dispose()
