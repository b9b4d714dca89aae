"""Every event of a process arrives with its number, or its number is withdrawn."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.record.event import Aside, Event, EventKind
from app.domain.record.link import Fate, Link, Linked
from app.journal.journal import Journal
from app.journal.keys import EVENTS
from app.journal.segment import decode, encode
from app.journal.spool import Spool
from app.journal.stream import AcceptedRequest, StreamJournal, entry_of
from app.local.servers import EmbeddedValkey
from tests.service.journal.journal_events import client, event

NEVER_S = 3600.0


def journal(url: str, directory: Path, max_bytes: int = 1_000_000) -> Journal:
    return Journal(StreamJournal(url), Spool(directory, max_bytes), retry_s=NEVER_S)


def in_stream(url: str) -> list[tuple[int, str, Fate]]:
    """Number, key and fate of every entry, by number; each producer's chain is followed."""
    with client(url) as connection:
        stored: Any = connection.xrange(EVENTS)
    links: list[Linked] = []
    for _, fields in stored:
        entry = entry_of(fields)
        assert not isinstance(entry, Aside)
        links.append(entry.linked() if isinstance(entry, Event) else entry)
    links.sort()
    for before, after in pairwise(links):
        if before.seq != after.seq:
            assert after.previous == before.hash()
    return [(each.seq, each.key, each.fate) for each in links]


async def test_repeats_and_conflicts_leave_their_numbers(valkey_url: str, tmp_path: Path) -> None:
    first = journal(valkey_url, tmp_path)
    await first.start()
    await first.append(event("one"))
    assert (await first.append(event("one"))).repeated
    with pytest.raises(RequestConflict):
        await first.append(event("one", claim="sha256:b"))
    await first.append(event("two"))
    numbered = first.numbered()
    await first.aclose()
    assert in_stream(valkey_url) == [
        (1, "one", Fate.EVENT),
        (2, "one", Fate.REPEAT),
        (3, "one", Fate.REPEAT),
        (4, "two", Fate.EVENT),
    ]
    assert numbered is not None
    assert numbered[1] == 4


async def test_numbers_pass_through_the_spool(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        first = journal(server.url, tmp_path / "spool")
        await first.start()
        await first.append(event("one"))
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*(first.append(event(f"spooled-{n}")) for n in range(3)))
        assert first.numbered() is None, "what waits on disk is in no stream"
        assert (await first.append(event("spooled-1"))).repeated
        await asyncio.to_thread(server.start)
        await first.drain()
        await first.append(event("last"))
        await first.drain()
        numbered = first.numbered()
        await first.aclose()
        found = in_stream(server.url)
    assert [seq for seq, _, fate in found if fate is Fate.EVENT] == [1, 2, 3, 4, 5]
    assert [key for _, key, _ in found] == ["one", "spooled-0", "spooled-1", "spooled-2", "last"]
    assert numbered is not None
    assert numbered[1] == 5


async def test_numbers_of_events_that_were_refused_are_given_again(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        first = journal(server.url, tmp_path / "spool", max_bytes=400)
        await first.start()
        await first.append(event("one"))
        await asyncio.to_thread(server.kill)
        # Of unknown effect: it was sent, and found no room on disk either.
        with pytest.raises(JournalUnavailable):
            await first.append(event("sent", text="x" * 400))
        refused = [first.append(event(f"refused-{n}", text="x" * 400)) for n in range(5)]
        outcomes = await asyncio.gather(*refused, return_exceptions=True)
        assert {type(each) for each in outcomes} == {JournalUnavailable}
        await first.append(event("small"))
        await asyncio.to_thread(server.start)
        await first.drain()
        numbered = first.numbered()
        await first.aclose()
        assert in_stream(server.url) == [
            (1, "one", Fate.EVENT),
            (2, "sent", Fate.WITHDRAWN),
            (3, "small", Fate.EVENT),
        ]
    assert numbered is not None
    assert numbered[1] == 3


async def test_two_at_once_of_one_event_that_find_the_stream_away_leave_one_and_a_withdrawal(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        first = journal(server.url, tmp_path / "spool")
        await first.start()
        await asyncio.to_thread(server.kill)
        both = await asyncio.gather(*(first.append(event("one")) for _ in range(2)))
        assert [tuple(receipt[:2]) for receipt in both] == [("spool", False), ("spool", True)]
        await asyncio.to_thread(server.start)
        await first.drain()
        numbered = first.numbered()
        await first.aclose()
        assert in_stream(server.url) == [(1, "one", Fate.EVENT), (2, "one", Fate.WITHDRAWN)]
    assert numbered is not None
    assert numbered[1] == 2


def test_spool_lines_carry_the_link_and_those_of_an_earlier_release_have_none() -> None:
    plain = event("one")
    assert decode(encode(plain)) == plain
    linked = plain._replace(link=Link("p", 7, "sha256:aa"))
    assert decode(encode(linked)) == linked
    body = b'["decision","key","claim","{}"]'
    earlier = b"%08x %s\n" % (crc32(body), body)
    assert decode(earlier) == Event(EventKind.DECISION, "key", "claim", b"{}")


async def test_accepted_requests_get_numbers_and_what_could_not_be_left_is_withdrawn(
    tmp_path: Path,
) -> None:
    requests = [AcceptedRequest(name, f"sha256:{name}", b"{}") for name in ("one", "two")]
    with EmbeddedValkey(tmp_path / "valkey") as server:
        first = journal(server.url, tmp_path / "spool")
        await first.start()
        await first.promise(requests)
        await first.append(event("three"))
        await asyncio.to_thread(server.kill)
        with pytest.raises(JournalUnavailable):
            await first.promise(requests)
        await asyncio.to_thread(server.start)
        await first.drain()
        numbered = first.numbered()
        await first.aclose()
        assert in_stream(server.url) == [
            (1, "one", Fate.ACCEPTED),
            (2, "two", Fate.ACCEPTED),
            (3, "three", Fate.EVENT),
            (4, "one", Fate.WITHDRAWN),
            (5, "two", Fate.WITHDRAWN),
        ]
    assert numbered is not None
    assert numbered[1] == 5
