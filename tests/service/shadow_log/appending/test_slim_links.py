"""Links take little room and say, byte for byte, what they said before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.canonical import decision_id
from app.domain.record.link import Fate, Producer
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import Checkpointer, check_log
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.proof.places import LogPlace
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema.migrate import downgrade, upgrade
from bench.record.tamper import linked
from tests import builders as build

IDS = "pg_get_serial_sequence('links', 'id')"


def change(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement)


def asked(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
async def filled_url(database_url: str) -> str:
    """Two producers, a decision, a report on it, its repeat, and a version of the log's own."""
    log = ShadowLog.connect(database_url)
    first, second = Producer(), Producer()
    report = build.outcome_event("r-1", build.outcome(r=1.0))
    await log.append([linked(first, build.decision_event("r-1"))])
    await log.append([linked(second, report)])
    await log.append([linked(first, report)])
    change(database_url, f"SELECT nextval({IDS}) FROM generate_series(1, 10)")  # As failures leave.
    await log.register_model(build.manifest())
    await log.aclose()
    return database_url


async def test_a_link_is_stored_as_bytes_and_read_as_it_was_given(filled_url: str) -> None:
    rows = asked(
        filled_url,
        "SELECT l.seq, octet_length(s.previous), l.claim = l.key, s.other_claim = '',"
        " octet_length(s.payload), l.payload ~ '^sha256:[0-9a-f]{64}$', l.kind, l.fate"
        " FROM event_links l JOIN links s USING (id) ORDER BY id",
    )
    assert rows == [
        (1, 0, False, False, 32, True, "decision", "event"),
        (1, 0, True, True, 32, True, "outcome", "event"),
        (2, 32, True, True, 32, True, "outcome", "repeat"),
        (1, 0, False, False, 32, True, "model", "event"),
    ]
    assert asked(filled_url, "SELECT count(*) FROM link_producers") == [(3,)]
    [[key]] = asked(filled_url, "SELECT key FROM event_links WHERE kind = 'decision'")
    assert UUID(key) == decision_id("r-1")


@pytest.mark.parametrize(
    "said", ["", "sha256:" + "a" * 64, "sha256:" + "A" * 64, "sha256:ab", "\\x00", "ä\n"]
)
async def test_whatever_a_link_names_is_kept_as_the_migration_would_have_moved_it(
    database_url: str, said: str
) -> None:
    log = ShadowLog.connect(database_url)
    link = Producer().link("outcome", "a key", "a claim", said)._replace(previous=said)
    await log.append([link._replace(fate=Fate.WITHDRAWN)])
    await log.aclose()
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        [(previous, payload, moved)] = connection.execute(
            "SELECT previous, payload, advisor_hash_bytes(%s) FROM links", [said]
        ).fetchall()
    assert previous == payload == moved


async def test_links_of_before_are_moved_and_a_checkpoint_signed_before_holds(
    filled_url: str,
) -> None:
    names = "id, producer, seq, fate, previous, kind, key, claim, payload"
    everything = f"SELECT {names} FROM event_links ORDER BY id"
    before = asked(filled_url, everything)
    downgrade(filled_url, "0019")
    assert asked(filled_url, everything) == before
    change(filled_url, "UPDATE event_links SET payload = 'no hash' WHERE id = 3")
    upgrade(filled_url)
    [(payload,)] = asked(filled_url, "SELECT payload FROM event_links WHERE id = 3")
    assert payload == "sha256:" + b"no hash".hex(), "what never fitted does not fit now"
    change(
        filled_url, f"UPDATE links SET payload = advisor_hash_bytes('{before[2][8]}') WHERE id = 3"
    )
    assert asked(filled_url, everything) == before
    log = ShadowLog.connect(filled_url)
    signer = Checkpointer(log.engine, Ed25519PrivateKey.generate(), LogPlace())
    signed = await signer.checkpoint()
    assert signed is not None
    await log.engine.dispose()
    downgrade(filled_url, "0019")
    upgrade(filled_url)
    await log.append([build.decision_event("r-2")])
    await log.aclose()
    report = await verify_log(filled_url)
    assert (report.findings, report.links, report.producers) == ([], 5, 4)
    held = VerifyReport()
    await check_log(filled_url, [signed], held)
    assert held.findings == []
    assert [row[0] for row in asked(filled_url, "SELECT id FROM links ORDER BY id")][:4] == [
        1,
        2,
        3,
        14,
    ]


@pytest.mark.parametrize(
    ("tampered", "fault"),
    [
        ("DELETE FROM link_producers WHERE id = 1", Fault.UNREADABLE),
        ("UPDATE link_producers SET name = name || 'x' WHERE id = 1", Fault.BROKEN_CHAIN),
        ("INSERT INTO link_producers (name) VALUES ('nobody')", Fault.ROW_WITHOUT_LINK),
        (
            "UPDATE links SET other_claim = 'x' WHERE seq = 1 AND kind = 'decision'",
            Fault.BROKEN_CHAIN,
        ),
        (
            "UPDATE links SET payload = payload || '\\x00' WHERE kind = 'outcome'",
            Fault.OTHER_THAN_LINKED,
        ),
    ],
)
async def test_whoever_tampers_with_what_links_are_made_of_is_found(
    filled_url: str, tampered: str, fault: Fault
) -> None:
    change(filled_url, tampered)
    report = await verify_log(filled_url)
    assert fault in report.counts, report.counts
