"""Verification of links: every producer's chain is whole, and every row has its link and every link
its row."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import digest
from app.domain.record.link import BEFORE, FIRST, Fate, Linked
from app.shadow_log.appending.batch import REPORTS
from app.shadow_log.appending.links import COLUMNS, heads
from app.shadow_log.appending.promises import Promises, forgotten
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.rows import row_hash
from app.shadow_log.schema import tables
from app.shadow_log.stored import chunks

CHUNK = 2000


async def check_chain(connection: AsyncConnection, report: VerifyReport) -> None:
    """Numbers without gaps, each link after the one before, as far as each producer told."""
    told = await heads(connection)
    last: Linked | None = None
    async for linked in _links(connection):
        report.links += 1
        if last is None or linked.producer != last.producer:
            _end(report, last, told)
            report.producers += 1
            last = None
        last = _follow(report, last, linked)
    _end(report, last, told)
    for producer, seq in told.items():  # Of these not one link is left.
        _gap(report, seq, f"producer {producer} of which nothing is stored")


async def check_promises(connection: AsyncConnection, report: VerifyReport) -> None:
    """Name the accepted requests that were lost, and count those that wait."""
    for kind, key in await forgotten(connection):
        report.missing += 1
        report.add(Fault.FORGOTTEN, f"{kind} {key}")
    everything = Promises(most=report.links + 1)
    report.waiting = len(await everything.undecided(connection, None))


async def payloads_of(
    connection: AsyncConnection, kind: str, keys: Sequence[str]
) -> dict[str, str]:
    """Hashes of the payloads that links name."""
    c = tables.event_links.c
    rows = await connection.execute(
        select(c.key, c.payload).where(c.key.in_(keys), c.kind == kind, c.fate == Fate.EVENT)
    )
    return {row.key: row.payload for row in rows}


async def check_links(connection: AsyncConnection, report: VerifyReport) -> None:
    """Each row has one link, each link its row, and both say the same."""
    for fault, query in _QUERIES:
        for row in await connection.execute(text(query)):
            report.add(fault, f"{row.kind} {row.key}")
    for kind, table in tables.OWN_TABLES.items():
        await _check_own_rows(connection, report, kind, table)
    columns = tables.put_aside.c
    async for row in await connection.stream(select(tables.put_aside).order_by(columns.id)):
        if digest(row.payload) != row.payload_hash:
            report.add(Fault.HASH, f"put_aside {row.kind} {row.key}")


async def _links(connection: AsyncConnection) -> AsyncIterator[Linked]:
    """Every link, by producer and number; of several with one number, the event's first."""
    c = tables.event_links.c
    query = select(*(c[name] for name in COLUMNS)).order_by(c.producer, c.seq, c.fate)
    async for row in await connection.stream(query):
        values = row._mapping
        yield Linked(**{name: values[name] for name in COLUMNS[:-1]}, fate=_fate(row.fate))


def _fate(name: str) -> Fate:
    return Fate(name) if name in set(Fate) else Fate.WITHDRAWN


def _follow(report: VerifyReport, last: Linked | None, linked: Linked) -> Linked:
    """The newest link of its producer, after it was held against the one before."""
    what = f"link {linked.seq} of {linked.producer} ({linked.kind} {linked.key})"
    before = last.seq if last else 0
    if linked.producer == BEFORE:
        if linked.seq != before + 1:
            _gap(report, linked.seq - before - 1, what)
        return linked
    if last is not None and linked.seq == last.seq:
        if linked.hash() != last.hash():
            report.add(Fault.BROKEN_CHAIN, what)
        return last
    if linked.seq != before + 1:
        after = f"{last.kind} {last.key}" if last else "the first"
        _gap(report, linked.seq - before - 1, f"{what}, after {after}")
    elif linked.previous != (last.hash() if last else FIRST):
        report.add(Fault.BROKEN_CHAIN, what)
    return linked


def _gap(report: VerifyReport, size: int, what: str) -> None:
    report.missing += max(size, 0)
    report.add(Fault.GAP, what, f"{size} before it")


def _end(report: VerifyReport, last: Linked | None, told: dict[str, int]) -> None:
    if last is None:
        return
    beyond = told.pop(last.producer, 0) - last.seq
    if beyond > 0:
        report.missing += beyond
        what = f"link {last.seq} of {last.producer} ({last.kind} {last.key})"
        report.add(Fault.GAP, what, f"{beyond} after it")


async def _check_own_rows(
    connection: AsyncConnection, report: VerifyReport, kind: str, table: Table
) -> None:
    """Rows that the log linked by itself, held against their links whole."""
    column = table.c[tables.OWN_KEYS[kind][0]]
    async for rows in chunks(connection, select(table), column):
        keys = [str(row[column.name]) for row in rows]
        payloads = await payloads_of(connection, kind, keys)
        for key, row in zip(keys, rows, strict=True):
            if payloads.get(key) not in (None, "", row_hash(row)):
                report.add(Fault.OTHER_THAN_LINKED, f"{kind} {key}")


_ROWS = [
    ("decision", "decision_keys", "decision_id::text", "advisor_hash_text(request_hash)"),
    *((kind.value, str(table.name), "event_key", "event_key") for kind, table in REPORTS.items()),
    *(
        (kind, str(table.name), f"{tables.OWN_KEYS[kind][0]}::text", tables.OWN_KEYS[kind][1])
        for kind, table in tables.OWN_TABLES.items()
    ),
]
"""Kind, table, key and claim of whatever has a link."""


def _queries() -> list[tuple[Fault, str]]:
    """Each query gives kind and key of what has a fault."""
    queries = []
    for kind, table, key, claim in _ROWS:
        rows = f"SELECT {key} AS key, {claim} AS claim FROM {table}"
        if table == "agent_actions":
            rows += " WHERE event_key NOT LIKE 'control:%'"
        links = f"SELECT * FROM event_links WHERE kind = '{kind}' AND fate = 'event'"
        both = f"FROM ({links}) l FULL JOIN ({rows}) r ON r.key = l.key"
        select_one = f"SELECT '{kind}' AS kind, coalesce(l.key, r.key) AS key {both} WHERE"
        queries += [
            (Fault.LINK_WITHOUT_ROW, f"{select_one} r.key IS NULL"),
            (Fault.ROW_WITHOUT_LINK, f"{select_one} l.key IS NULL"),
            (Fault.OTHER_THAN_LINKED, f"{select_one} r.claim <> l.claim"),
        ]
    return queries


_QUERIES = [
    *_queries(),
    (
        Fault.OTHER_THAN_LINKED,
        "SELECT l.kind, l.key FROM decisions d JOIN event_links l ON l.key = d.decision_id::text"
        " AND l.kind = 'decision' AND l.fate = 'event'"
        " WHERE l.payload <> '' AND l.payload <> advisor_hash_text(d.record_hash)",
    ),
    (
        Fault.LINKED_TWICE,
        "SELECT kind, key FROM event_links WHERE fate = 'event' GROUP BY kind, key"
        " HAVING count(*) > 1",
    ),
    (
        Fault.REPEAT_OF_NOTHING,
        "SELECT kind, key FROM event_links r WHERE fate = 'repeat' AND NOT EXISTS (SELECT FROM"
        " event_links l WHERE l.key = r.key AND l.kind = r.kind AND l.fate = 'event')",
    ),
    (
        Fault.UNREADABLE,
        f"SELECT kind, key FROM event_links WHERE fate NOT IN {tuple(map(str, Fate))}"
        " OR producer IS NULL",
    ),
    (
        Fault.LINK_WITHOUT_ROW,
        "SELECT kind, key FROM event_links l WHERE fate = 'aside' AND NOT EXISTS (SELECT FROM"
        " put_aside p WHERE p.kind = l.kind AND p.key = l.key AND p.claim = l.claim"
        " AND p.payload_hash = l.payload)",
    ),
    (
        Fault.ROW_WITHOUT_LINK,
        "SELECT 'producer' AS kind, name AS key FROM link_producers p WHERE NOT EXISTS"
        " (SELECT FROM links l WHERE l.producer_id = p.id)",
    ),
    (
        Fault.ROW_WITHOUT_LINK,
        "SELECT kind, key FROM put_aside p WHERE NOT EXISTS (SELECT FROM event_links l WHERE"
        " p.kind = l.kind AND p.key = l.key AND p.claim = l.claim AND p.payload_hash = l.payload"
        " AND fate = 'aside')",
    ),
    (
        Fault.ROW_WITHOUT_LINK,
        "SELECT 'control of decision' AS kind, event_key AS key FROM agent_actions a"
        " WHERE event_key LIKE 'control:%' AND NOT EXISTS (SELECT FROM decision_keys k"
        " WHERE 'control:' || k.decision_id = a.event_key)",
    ),
]
