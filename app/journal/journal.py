"""The journal's front: the stream, or the spool while the stream is away; what it confirms is on
disk. What was spooled moves into the stream; `drain` takes it out of there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from app.domain.canonical import digest
from app.domain.errors import (
    InvalidRecord,
    JournalUnavailable,
    RequestConflict,
    ShadowLogUnavailable,
)
from app.domain.record.event import (
    CORRECTABLE,
    CorrectableReport,
    Event,
    EventKind,
    StateChange,
    content_of,
)
from app.domain.record.ledger import Note
from app.domain.record.link import Fate, Link, Linked, Producer
from app.journal import ledger
from app.journal.condition import UNTOLD
from app.journal.keys import NEEDED, MisplacedKey
from app.journal.segment import Segment
from app.journal.spool import Spool
from app.journal.stream import (
    NOTHING_YET,
    AcceptedRequest,
    Memory,
    MemoryReplaced,
    Place,
    Receipt,
    StreamJournal,
    state_change,
)
from app.tasks import Supervisor
from app.telemetry import UNOBSERVED, LossCause, Task, Telemetry

__all__ = ["Journal", "Place", "Receipt"]

log = structlog.get_logger()
RETRY_S = 1.0
DRAIN_BATCH = 64
REMEMBERED = 10_000

Holds = Callable[[Sequence[Event]], Awaitable[bool]]


async def _holds_nothing(events: Sequence[Event]) -> bool:
    """What is not known to be stored is kept."""
    return not events


def wall_clock() -> datetime:
    return datetime.now(UTC)


class Journal:
    """Durable append with one idempotency key space over stream and spool.

    After a failure of the stream everything goes to the spool at once, until a background task,
    which tries every `retry_s`, reaches the stream again: no request waits for a server that is
    away. Spooled events that met others in the stream are told to `telemetry` as lost.

    The same task looks at the stream's condition. While the stream may forget what it confirms,
    events go to both, the stream for its one key space and the spool for its disk, and stay in the
    spool until `holds` says that the shadow log has them.

    Every event gets a number and the hash of the one before it (`app/domain/record/link.py`). A
    number whose event came to nothing is withdrawn, so that a gap means a loss and nothing else.
    """

    def __init__(
        self,
        stream: StreamJournal,
        spool: Spool,
        telemetry: Telemetry = UNOBSERVED,
        *,
        holds: Holds = _holds_nothing,
        retry_s: float = RETRY_S,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self._stream = stream
        self._spool = spool
        self._telemetry = telemetry
        self._holds = holds
        self._retry_s = retry_s
        self._now = now
        self._started = now()
        self._producer = Producer()
        self._unsettled: dict[int, Linked] = {}
        self._unused: dict[int, bool] = {}
        self._moved: dict[Path, tuple[object, ...]] = {}
        """Segments that are in a forgetful stream already, and in which memory."""
        self.condition = UNTOLD
        """The stream's, as it was seen last."""
        self.memory: Memory | None = None
        """The stream's, as it was seen last."""
        self._supervisor = Supervisor(telemetry)
        self._told = ""
        """Why the spool waits, as it was last logged."""
        self._newest: OrderedDict[str, Place] = OrderedDict()
        """The newest report on each subject, of those that came to this process not long ago."""
        self._unnoted: OrderedDict[tuple[str, str], ledger.Entry] = OrderedDict()
        """Entries of the ledger that could not be kept yet."""
        self._filled: str | None = None
        """The memory whose ledger this process made whole."""
        self._owed: set[str] = set()
        """Events that tell of a trade, and of which the ledger may have no note: until the record
        tells them, it tells nothing."""
        self._owing = 0
        """How often such events were found."""
        self._noted_after: tuple[str, ledger.StreamId] | None = None
        """A memory, and a place in its stream: what lies behind it is noted, of the rest the record
        tells."""
        self._others_wait = False
        """Whether another process that shares the spool's directory has events on it, of which the
        ledger may have no note."""
        self.reachable = True
        """Whether the stream answered last. While it does not, what was written to it cannot be
        found."""

    @property
    def durable(self) -> bool | None:
        """Whether the stream keeps what it confirms; None while it did not tell."""
        return self.condition.durable

    @property
    def remembers_since(self) -> datetime:
        """From when on every key is found here. While the stream is away only what came to this
        process is."""
        if self.reachable and self.memory is not None:
            return self.memory.covers(self._now())
        return self._started

    async def start(self) -> None:
        """Open the spool and start draining it. A spool that cannot be used is left aside while the
        stream can be; /readyz says so. Raises `JournalUnavailable` when neither can be used."""
        unusable: JournalUnavailable | None = None
        try:
            await self._spool.open()
        except JournalUnavailable as error:
            unusable = error
        try:
            await self._meet()
        except JournalUnavailable as error:
            if unusable is not None:
                raise unusable from error
            self._leave(error)
        if unusable is not None:
            log.error("the spool cannot be used", error=str(unusable))
        self._owe(self._told_on_disk())
        self._supervisor.start(Task.SPOOL_DRAIN, self._look_after, every_s=self._retry_s)

    async def append(self, event: Event, *, anew: bool = False) -> Receipt:
        """Make an event durable, once; `anew` also when it is known, but neither stream nor log
        hold it any more.

        A failed append to the stream has an unknown effect; the event then goes to the spool as
        well, and draining, which is idempotent, sorts it out.

        Raises
        ------
        RequestConflict : the key is known with another claim.
        JournalUnavailable : neither stream nor spool took it.
        """
        return await self._append(
            event, lambda linked, payload: self._stream.append(linked, payload, anew=anew)
        )

    async def promise(self, requests: Sequence[AcceptedRequest]) -> None:
        """Number requests that wait in the queue, before their callers are told so: one that is
        lost with the queue is missed. Raises `JournalUnavailable`: nobody may be told."""
        links = []
        for request in requests:
            payload = digest(request.payload)
            kind, key, claim = EventKind.DECISION.value, request.decision_id, request.claim
            links.append(self._producer.link(kind, key, claim, payload))
        self._unsettled |= {linked.seq: linked for linked in links}
        left = (self._stream.leave(linked._replace(fate=Fate.ACCEPTED)) for linked in links)
        try:
            await asyncio.gather(*left)
        except BaseException:
            for linked in links:
                self._withdraw(linked, unseen=False)
            raise
        for linked in links:
            del self._unsettled[linked.seq]

    async def place(
        self,
        subject: str,
        content: str,
        decision_id: str,
        stored: Callable[[], Awaitable[Place | None]],
    ) -> int:
        """The arrival of a report: which of those on its subject it is. The stream counts; while it
        is away, and where it forgot, this process and `stored` tell what came before."""
        known = self._newest.get(subject)
        if known is None and self.condition.evicted:  # What is not there may have been.
            known = await stored() or NOTHING_YET
        place = None
        if self.reachable:
            try:
                place = await self._stream.place(subject, content, decision_id, known)
                if place is None:
                    before = await stored() or NOTHING_YET
                    place = await self._stream.place(subject, content, decision_id, before)
            except JournalUnavailable as error:
                self._leave(error)
        if place is None:
            place = (known or await stored() or NOTHING_YET).after(content)
        self._newest[subject] = place
        self._newest.move_to_end(subject)
        if len(self._newest) > REMEMBERED:
            self._newest.popitem(last=False)
        return place.arrival

    async def newest(
        self, subject: str, stored: Callable[[], Awaitable[Place | None]]
    ) -> Place | None:
        """The newest report on a subject, as this process and the stream know it; where neither
        does, as `stored` tells it."""
        here, there = self._newest.get(subject), None
        if self.reachable:
            try:
                there = await self._stream.newest(subject)
            except JournalUnavailable as error:
                self._leave(error)
        known = [place for place in (here, there) if place is not None]
        return max(known, key=lambda place: place.arrival) if known else await stored()

    async def note(self, entry: ledger.Entry) -> None:
        """Keep what a principal reported of a trade. While the stream is away it waits here, and
        the ledger tells nothing."""
        self._unnoted[entry.principal, entry.field] = entry
        if len(self._unnoted) > REMEMBERED:
            self._unnoted.popitem(last=False)
            self._owe(self._told_on_disk())
        await self.settle_notes()

    async def settle_notes(self) -> None:
        """Keep what waits."""
        for place, entry in list(self._unnoted.items()):
            if not self.reachable or self.memory is None:
                return
            try:
                await self._stream.ledger().note(entry)
            except JournalUnavailable:  # Tried again; that the stream is away, others tell.
                return
            self._unnoted.pop(place, None)

    async def ledger_of(self, principal: str) -> dict[str, Note] | None:
        """What a principal reported of its trades, by decision; None while this cannot be told as a
        whole."""
        waits = self._unnoted or self._owed or self._others_wait
        if not self.reachable or self.memory is None or waits:
            return None
        try:
            notes = await self._stream.ledger().of(principal)
            if notes is not None and len(notes) > ledger.MOST:
                await self._stream.ledger().forget(principal, notes)
        except JournalUnavailable:
            return None
        return notes

    async def fill_ledger(self, recorded: Callable[[], Awaitable[list[ledger.Entry]]]) -> None:
        """Make the ledger of a memory that is new here whole, by what is recorded; again until the
        record holds every report that came before this process. Raises `JournalUnavailable`, and
        what `recorded` does."""
        await self.settle_notes()
        if not self.reachable or self.memory is None:
            return
        memory, kept = self.memory.identity, self._stream.ledger()
        lacks = await kept.lacks()
        if self._filled == memory and lacks is None and await kept.whole():
            return
        owing, holds_all = self._owing, await self._record_holds_all(memory)
        has_told = lacks is not None and await self._has_left(lacks)
        await kept.fill(await recorded())
        if lacks is not None and has_told:
            await kept.lacks_no_more(lacks)
        if holds_all and self._owing == owing:
            self._filled = memory
            self._owed.clear()

    async def lack(self, key: str) -> None:
        """Of a report that was taken, by its event's key, nothing could be noted: no process tells
        its ledger until the record has told it."""
        self._owe({key})
        if not self.reachable or self.memory is None:
            return
        with suppress(JournalUnavailable):  # `fill_ledger` says so later.
            await self._record_holds_all(self.memory.identity)

    def _owe(self, reports: set[str]) -> None:
        """These are told to the ledger by the record, once it has them."""
        self._owing += 1
        self._filled = None
        self._owed |= reports
        self._noted_after = None

    def _told_on_disk(self) -> set[str]:
        """What tells of a trade: reports, and decisions, whose control may have come along."""
        kinds = (EventKind.DECISION, EventKind.AGENT_ACTION, EventKind.OUTCOME)
        return {key for kind in kinds for key in self._spool.keys(kind)}

    async def _record_holds_all(self, memory: str) -> bool:
        """Whether everything that tells of a trade, and has no note of ours, has left the disk and
        the stream; whoever else has no note of it is told so. Not, when more was owed meanwhile."""
        if self._owed & self._told_on_disk():
            return False
        owing, ends = self._owing, await self._stream.ends()
        if self._owing != owing:
            return False
        mark = self._noted_after
        if mark is None or mark[0] != memory:
            mark = self._noted_after = memory, (0, 0) if ends is None else ends[1]
            if self._owed:
                try:
                    await self._stream.ledger().lack(mark[1])
                except JournalUnavailable:
                    self._owe(set())
                    raise
        return ends is None or ends[0] > mark[1]

    async def _has_left(self, place: ledger.StreamId) -> bool:
        """Whether all up to this place has left the stream."""
        ends = await self._stream.ends()
        return ends is None or ends[0] > place

    async def set_state(self, change: StateChange, *, whatever_lives: bool = False) -> Receipt:
        """Record a change of state and make it the live one for all replicas (when drained, if
        spooled), unless a newer one is; or whatever is, where the caller could not tell."""
        return await self._append(
            Event.of_state_change(change),
            lambda event, _: self._stream.set_state(
                change, event.link, whatever_lives=whatever_lives
            ),
        )

    async def get_state(self) -> StateChange | None:
        """The live state. Raises `JournalUnavailable`, or `InvalidRecord` when it cannot be
        read."""
        return await self._stream.get_state()

    async def spooled_state(self) -> StateChange | None:
        """The newest change of state that waits on disk. Raises `JournalUnavailable`."""
        payloads = [
            await self._spool.find(EventKind.STATE_CHANGE, key)
            for key in self._spool.keys(EventKind.STATE_CHANGE)
        ]
        changes = [state_change(payload) for payload in payloads if payload is not None]
        return max(changes, key=lambda change: change.recorded_at, default=None)

    async def claim_of(self, decision_id: str) -> str | None:
        """Claim of a decision, while the journal remembers it; None also when the stream is
        away."""
        claim = self._spool.claim(EventKind.DECISION, decision_id)
        if claim is not None or not self.reachable:
            return claim
        try:
            known = await self._stream.known(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._leave(error)
            return None
        return None if known is None else known.claim

    async def find(self, decision_id: str) -> bytes | None:
        """Payload of a decision that is not in Postgres yet; None also while not `reachable`."""
        payload = await self._spool.find(EventKind.DECISION, decision_id)
        if payload is not None or not self.reachable:
            return payload
        try:
            return await self._stream.find(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._leave(error)
            return None

    async def backlog(self) -> tuple[int, float]:
        """Events in the stream that are not in Postgres yet, and the age (s) of the oldest."""
        return await self._stream.backlog()

    def failing(self) -> dict[Task, str]:
        """Background work that is not working now, with the reason."""
        return self._supervisor.failing()

    def spool_depth(self) -> int:
        """Events that wait on disk."""
        return len(self._spool)

    def numbered(self) -> tuple[str, int] | None:
        """The name under which this process numbers its events, and up to which number each of
        them is in the stream, or was; None while some wait on disk."""
        if len(self._spool):
            return None
        return self._producer.name, min(self._unsettled, default=self._producer.seq + 1) - 1

    async def ping(self) -> None:
        """Raise `JournalUnavailable` unless the stream answers."""
        await self._stream.ping()

    async def ping_spool(self) -> None:
        """Raise `JournalUnavailable` unless the spool can be written."""
        await self._spool.probe()

    async def drain(self) -> None:
        """Move the spool into the stream, in order; a segment goes when all of it is there. Numbers
        that came to nothing are withdrawn."""
        for seq in list(self._unused):
            await self._stream.leave(self._unsettled[seq]._replace(fate=Fate.WITHDRAWN))
            del self._unused[seq], self._unsettled[seq]
        known = self._told_on_disk()
        segments = await self._spool.segments()
        if adopted := self._told_on_disk() - known:
            self._owe(adopted)
        for segment in segments:
            events = await self._spool.events(segment)
            if self.durable is False and not await self._stored(events):
                await self._lend(segment, events)
                continue
            if self.durable is not False:
                await self._move_all(events)
            await self._spool.remove(segment)
            self._moved.pop(segment.path, None)
            log.info("spool drained", events=len(events))

    async def aclose(self) -> None:
        """Stop draining; what is on disk stays."""
        await self._supervisor.aclose()
        await self._stream.aclose()
        await self._spool.aclose()

    async def _append(
        self, event: Event, to_stream: Callable[[Event, str], Coroutine[Any, Any, Receipt]]
    ) -> Receipt:
        """`to_stream` is given the event with its link, and the hash of its payload."""
        if self._spool.claim(event.kind, event.key) is not None:
            return Receipt("spool", await self._spool.append(event))
        hashes = (event.kind.value, event.key, event.claim, digest(event.payload))
        linked = self._producer.link(*hashes)
        self._unsettled[linked.seq] = linked
        event = event._replace(link=Link(linked.producer, linked.seq, linked.previous))
        sent = False
        try:
            if self.reachable:
                sent = True
                try:
                    receipt = await to_stream(event, linked.payload)
                except RequestConflict:
                    del self._unsettled[linked.seq]  # The stream has its link.
                    raise
                except JournalUnavailable as error:
                    if isinstance(error, MisplacedKey) and error.key not in NEEDED:
                        raise  # Of this event alone nobody can tell whether it is known.
                    self._leave(error)
                    if isinstance(error, MemoryReplaced):
                        sent = False
                        if event.kind is EventKind.DECISION:
                            # Whether its id is known was asked before: ask again.
                            raise JournalUnavailable(str(error)) from error
                else:
                    if receipt.repeated or self.durable is not False:
                        return self._settled(linked, receipt)
            repeated = await self._spool.append(event)
        except BaseException as error:
            # A caller who was cancelled does not know: its event may be in the stream, or on disk.
            refused = isinstance(error, RequestConflict | JournalUnavailable)
            self._withdraw(linked, unseen=refused and not sent)
            raise
        if repeated:
            self._withdraw(linked, unseen=not sent)
            return Receipt("spool", repeated)
        return self._settled(linked, Receipt("spool", repeated))

    def _settled(self, linked: Linked, receipt: Receipt) -> Receipt:
        del self._unsettled[linked.seq]
        return receipt

    def _withdraw(self, linked: Linked, *, unseen: bool) -> None:
        """A number came to nothing. The newest ones that nobody has seen are given again; the
        others are withdrawn with the next drain."""
        if linked.seq not in self._unsettled:
            return
        self._unused[linked.seq] = unseen
        while self._unused.get(self._producer.seq):
            seq = self._producer.seq
            self._producer.take_back(self._unsettled.pop(seq))
            del self._unused[seq]

    def _leave(self, error: JournalUnavailable) -> None:
        if self.reachable:
            log.error("stream is away, spooling to disk", error=str(error))
        self.reachable = False

    async def _meet(self) -> None:
        """Reach the stream, for the first time or again."""
        await self._stream.ping()
        await self._look()
        await self._look_beside()
        self.reachable = True

    async def _look(self) -> None:
        """See whether the stream keeps what it confirms, and whether its memory is still the
        same."""
        before, was = self.memory, self.condition
        self.condition = await self._stream.look()
        await self._stream.require_ours()
        self.memory = await self._stream.join(self._now())
        self._telemetry.stream_seen(
            self.condition.durable, self.condition.memory, self.memory.since
        )
        if self.condition.faults and self.condition.faults != was.faults:
            log.error("Valkey may not keep what it confirms", faults=list(self.condition.faults))
        if before is not None and before.identity != self.memory.identity:
            log.error(
                "Valkey was emptied, or is another one: known ids are found in Postgres",
                remembered_since=before.since.isoformat(),
            )

    async def _look_beside(self) -> None:
        """Whether others have on disk what is not in the stream yet; what a forgetful stream has
        stays there, too. Of a disk that cannot be read `ping_spool` tells."""
        try:
            others_wait = await self._spool.others_wait()
        except JournalUnavailable:
            others_wait = False
        self._others_wait = others_wait and self.durable is not False

    async def _look_after(self) -> None:
        """Reach the stream again when it was away, see whether it can be trusted, and drain."""
        try:
            if not self.reachable:
                await self._meet()
                log.info("stream is back")
            else:
                await self._look()
            await self.drain()
            await self._look_beside()
            self._told = ""
        except JournalUnavailable as error:
            if isinstance(error, MisplacedKey) and error.key in NEEDED:
                self._leave(error)
            reason = str(error)
            if reason != self._told:  # Once for each reason, not for each attempt.
                log.warning("spool waits", events=len(self._spool), error=reason)
            self._told = reason

    async def _stored(self, events: Sequence[Event]) -> bool:
        try:
            return await self._holds(events)
        except ShadowLogUnavailable:
            return False

    async def _lend(self, segment: Segment, events: Sequence[Event]) -> None:
        """Put a segment's events into a stream that may forget them, once as long as it does
        not."""
        memory = (self.memory, self.condition.evicted)
        if self._moved.get(segment.path) != memory:
            await self._move_all(events)
            self._moved[segment.path] = memory

    async def _move_all(self, events: Sequence[Event]) -> None:
        for first in range(0, len(events), DRAIN_BATCH):
            moves = (self._move(event) for event in events[first : first + DRAIN_BATCH])
            for outcome in await asyncio.gather(*moves, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _move(self, event: Event) -> None:
        try:
            await self._stream.restore(event)
            if event.kind in CORRECTABLE:
                await self._lift(event)
        except RequestConflict as conflict:
            log.error(
                "spooled event kept in the dead-letter stream", key=event.key, error=str(conflict)
            )
            await self._stream.bury(event, str(conflict))
            self._telemetry.lost(LossCause.DUPLICATE_CONFLICT)

    async def _lift(self, event: Event) -> None:
        """What comes on the same subject through the stream is later than what was spooled."""
        try:
            report = event.record()
        except InvalidRecord:
            return  # Whoever writes it into the log says so.
        assert isinstance(report, CorrectableReport)
        place = Place(report.arrival or 0, content_of(event.kind, report))
        await self._stream.lift(report.subject, place)
