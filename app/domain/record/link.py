"""Links: how events are numbered and chained by whoever makes them.

A producer is one run of one process. It numbers its events from 1, and each link names the hash of
the link before it, so that whoever has a producer's last link can tell whether any of the earlier
ones was changed, left out or put in between.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple
from uuid import uuid4

from app.domain.canonical import canonical_json, digest

FIRST = ""
"""What a producer's first link names as the one before."""
BEFORE = "before-0006"
"""Producer of the links that a migration made for rows that are older than links: they are counted,
not chained."""


class Link(NamedTuple):
    """An event's place: whose, which, after what."""

    producer: str
    seq: int
    previous: str


class Fate(StrEnum):
    """What became of a numbered event."""

    EVENT = "event"
    REPEAT = "repeat"
    ASIDE = "aside"
    WITHDRAWN = "withdrawn"
    ACCEPTED = "accepted"
    """A request that was answered 202: its decision is to come, under a number of its own."""
    FORGOTTEN = "forgotten"
    """An accepted request that was lost before it was decided."""


class Linked(NamedTuple):
    """A link and what it links, by hash: a row of `event_links`, which outlives the event."""

    producer: str
    seq: int
    previous: str
    kind: str
    key: str
    claim: str
    payload: str
    fate: Fate = Fate.EVENT

    def hash(self) -> str:
        """What the next link names. All values are strings and an integer: this canonical JSON is
        RFC 8785. The fate is not part of it: it is known only later."""
        document = self._asdict()
        del document["fate"]
        return digest(canonical_json(document))

    def leaf(self) -> bytes:
        """The hash of this row in the tree of a checkpoint (RFC 6962), its fate included."""
        return hashlib.sha256(b"\x00" + canonical_json(self._asdict())).digest()


class Producer:
    """Numbers the events of one process, in the order in which they are given to it."""

    def __init__(self) -> None:
        self.name = uuid4().hex
        self.seq = 0
        self._last = FIRST

    def link(self, kind: str, key: str, claim: str, payload: str) -> Linked:
        """The next link."""
        self.seq += 1
        linked = Linked(self.name, self.seq, self._last, kind, key, claim, payload)
        self._last = linked.hash()
        return linked

    def take_back(self, newest: Linked) -> None:
        """Forget the newest link, which nobody has seen."""
        assert newest.seq == self.seq
        self.seq, self._last = newest.seq - 1, newest.previous
