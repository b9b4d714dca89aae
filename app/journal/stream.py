"""The journal's stream in Valkey: one atomic step writes the event and its idempotency key.

With `appendfsync always` the reply comes after the write is on disk. Commands that arrive while a
round trip is under way go out together in the next one (group commit): one write and one fsync for
all of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from time import monotonic
from typing import Any, Literal, NamedTuple
from uuid import uuid4
from zlib import crc32

import orjson
import structlog
from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import NoScriptError, RedisError

from app.domain.canonical import DEFAULT_PRINCIPAL, digest
from app.domain.errors import InvalidRecord, JournalUnavailable, RequestConflict
from app.domain.record.event import Aside, Entry, Event, EventKind, StateChange
from app.domain.record.link import Fate, Link, Linked
from app.journal.condition import UNTOLD, Condition, condition
from app.journal.keys import (
    DEAD,
    EVENTS,
    EVICTED,
    MEMORY,
    NEEDED,
    REQUESTS,
    SHARED,
    STATE,
    MisplacedKey,
    Run,
    misplaced,
    of_other_type,
)
from app.journal.ledger import Ledger, StreamId
from app.journal.packing import packed, unpacked
from app.telemetry import UNOBSERVED, Task, Telemetry

log = structlog.get_logger()
KEY_TTL_S = 30 * 86_400
MAX_BATCH = 128
MANY = 1_000
"""Events that wait, from which on payloads are packed: no time is spent on it as long as a writer
takes them at once."""
KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}
"""A host that vanished is noticed within some ten seconds also where nothing is being sent."""

APPEND = """
if ARGV[9] ~= '' and redis.call('GET', KEYS[4]) ~= ARGV[9] then return {-1, ''} end
local known = redis.call('GET', KEYS[1])
local entry = {'kind', ARGV[1], 'key', ARGV[2], 'claim', ARGV[3]}
local function add(name, value)
    entry[#entry + 1] = name
    entry[#entry + 1] = value
end
if ARGV[10] ~= '' then
    add('producer', ARGV[10]) add('seq', ARGV[11]) add('previous', ARGV[12])
end
local function at(id)
    local there = id and redis.call('XRANGE', KEYS[2], id, id)[1]
    local of = {}
    for i = 1, there and #there[2] or 0, 2 do of[there[2][i]] = there[2][i + 1] end
    return of
end
if known then
    local there = at(string.match(known, '|(%d+%-%d+)$'))
    local mine = ARGV[3] .. '|'
    if ARGV[14] == 'same' then mine = mine .. ARGV[5] .. '|' end
    if ARGV[14] ~= '' and not there['key'] and string.sub(known, 1, #mine) == mine then
        add('payload', ARGV[4])
        redis.call('XADD', KEYS[2], '*', unpack(entry))
    elseif ARGV[10] ~= '' and not (there['producer'] == ARGV[10] and there['seq'] == ARGV[11]) then
        add('digest', ARGV[13]) add('fate', 'repeat')
        redis.call('XADD', KEYS[2], '*', unpack(entry))
    end
    return {there['key'] and 0 or 2, known}
end
add('payload', ARGV[4])
local id = redis.call('XADD', KEYS[2], '*', unpack(entry))
local value = ARGV[3] .. '|' .. ARGV[5] .. '|' .. id
redis.call('SET', KEYS[1], value, 'EX', ARGV[6])
if ARGV[7] ~= '' then
    local live = redis.pcall('GET', KEYS[3])
    if ARGV[8] == 'always' or type(live) ~= 'string' or live < ARGV[7] then
        redis.call('SET', KEYS[3], ARGV[7])
    end
end
return {1, value, redis.call('XLEN', KEYS[2])}
"""
"""Keys: idempotency key, stream, state, memory. Returns {1, value} and how many events wait when it
is new, {0, value} when known and still in the stream, {2, value} when known and not there any more;
see `Known`; {-1, ''} when the memory is not the one that the caller knows. A numbered event whose
key is known leaves its link, so that no number is missing, unless it is itself what is known. With
a last argument, `same` payload or same `claim`, it comes again when its entry is gone: the writer
knows whether it was moved, or thrown away."""
JOIN = """
local evicted, before = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if evicted > before then redis.call('DEL', KEYS[1]) end
if evicted ~= before then redis.call('SET', KEYS[2], evicted) end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
"""
"""A memory of which something was thrown away is none: another one begins, once for all
replicas."""
PLACE = """
local arrival, content = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if not arrival and ARGV[2] == '' and redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
arrival = tonumber(arrival or 0)
local told, of = string.match(ARGV[2], '^(%d+) (.*)$')
if told and tonumber(told) >= arrival then arrival, content = tonumber(told), of end
if content ~= ARGV[1] then arrival = arrival + 1 end
redis.call('SET', KEYS[1], arrival .. ' ' .. ARGV[1], 'EX', ARGV[3])
return arrival
"""
"""Keys: the newest report on a subject, the idempotency key of its decision. Arguments: the content
of a report, the newest that its receiver knows of, seconds to remember it. Returns the arrival of
the report: that of the newest when it says the same, else the next; -1 when nothing is remembered
here of subject and decision, and nobody told."""
LIFT = """
local arrival = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) ')
if not arrival or tonumber(arrival) < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'EX', ARGV[3])
end
"""
FORGOT = """
local waits, gone = {}, {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
    local of = {}
    for i = 1, #entry[2], 2 do of[entry[2][i]] = entry[2][i + 1] end
    if of['id'] and of['claim'] then waits[of['id'] .. ' ' .. of['claim']] = true end
end
for i = 2, #KEYS do
    local id, claim = ARGV[2 * i - 3], ARGV[2 * i - 2]
    local known = redis.call('GET', KEYS[i]) or ''
    local decided = string.sub(known, 1, #claim + 1) == claim .. '|'
    if not waits[id .. ' ' .. claim] and not decided then gone[#gone + 1] = i - 2 end
end
return gone
"""
"""Keys: the stream of accepted requests, then the idempotency keys of decisions. Arguments: id and
claim of each. Returns which of them, counted from 0, neither wait nor were decided."""
APPEND_SHA = sha1(APPEND.encode(), usedforsecurity=False).hexdigest()
_NEW, _MOVED = 1, 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Receipt(NamedTuple):
    """Where an event is durable, and whether it had been appended before."""

    target: Literal["stream", "spool"]
    repeated: bool
    moved: bool = False
    """Whether what it repeats has left the stream since: whether it is stored, the log knows."""


class AcceptedRequest(NamedTuple):
    """A request that is to be accepted."""

    decision_id: str
    claim: str
    payload: bytes
    principal: str = DEFAULT_PRINCIPAL


class MemoryReplaced(JournalUnavailable):
    """The stream does not remember what it remembered a moment ago: it was emptied."""


class Memory(NamedTuple):
    """What the stream remembers of keys began at `since`, empty; whoever empties it, or puts
    another server there, ends this memory and begins a new one."""

    identity: str
    since: datetime

    def covers(self, now: datetime) -> datetime:
        """From when on every key is remembered."""
        return max(self.since, now - timedelta(seconds=KEY_TTL_S))


class Place(NamedTuple):
    """The newest report on a subject: its arrival (0 of one that has none), and its content."""

    arrival: int
    content: str

    def after(self, content: str) -> Place:
        """The place of a report that comes next: the same when it says the same."""
        return Place(self.arrival + (content != self.content), content)


NOTHING_YET = Place(0, "")


class Known(NamedTuple):
    """What the stream remembers of a key: its claim, a checksum of its payload, its place."""

    claim: str
    checksum: str
    stream_id: str


class Packing(Connection):
    """A connection whose commands hiredis writes, as it does for redis-py's other client: this
    one's own writer takes six times as long for an event."""

    _packer = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command in the server's protocol."""
        return list(self._packer.pack(*args))


def connect(url: str, timeout_s: float | None) -> Redis:
    """A client that speaks RESP2, answers in bytes, fails within `timeout_s` (None: whoever asks
    sees to that), and never retries by itself.

    Raises `JournalUnavailable` when the URL cannot be read.
    """
    try:
        return Redis.from_url(
            url,
            connection_class=Packing,  # of TCP; others have their own
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            socket_keepalive_options=KEEPALIVE,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
    except ValueError as error:
        raise JournalUnavailable(
            "REDIS_URL cannot be read; write redis://:password@host:6379/0"
        ) from error


async def run(redis: Redis, *command: Any) -> Any:
    """One command by itself. Raises redis-py's errors."""
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


async def asked(run: Run, *command: Any) -> Any:
    """One command's reply. Raises `JournalUnavailable`, and `NoScriptError` as it comes."""
    try:
        return await run(*command)
    except NoScriptError:
        raise
    except (RedisError, OSError) as error:
        raise await of_other_type(run, command, error) or unavailable(error) from error


def unavailable(error: Exception) -> JournalUnavailable:
    """A failure of Valkey in the words of the service."""
    why = str(error) or "it was silent"
    return JournalUnavailable(
        f"Valkey: {type(error).__name__}: {why}; check REDIS_URL and the server"
    )


def state_change(document: bytes) -> StateChange:
    """A change of state. Fields that only a newer release knows are no reason not to obey it.
    Raises `InvalidRecord`."""
    try:
        fields = orjson.loads(document)
        mine = {name: fields[name] for name in StateChange.model_fields if name in fields}
    except (ValueError, TypeError) as error:
        raise InvalidRecord(f"the trading state cannot be read: {error}") from error
    return StateChange.from_json(mine)


def idempotency_key(kind: EventKind, key: str) -> str:
    """The key under which an event is remembered."""
    return f"advisor:key:{kind.value}:{key}"


def _newest_key(subject: str) -> str:
    return f"advisor:newest:{subject}"


class GroupCommit:
    """Sends the commands that queued up during one round trip together in the next, each trip
    within `timeout_s`; the client needs no time-outs of its own, which it would set for each
    reply."""

    def __init__(self, redis: Redis, timeout_s: float, telemetry: Telemetry) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._telemetry = telemetry
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, *command: Any) -> Any:
        """One command's own reply, or its own error."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                async with (
                    asyncio.timeout(self._timeout_s),
                    self._redis.pipeline(transaction=False) as pipeline,
                ):
                    for command, _ in batch:
                        pipeline.execute_command(*command)
                    replies = await pipeline.execute(raise_on_error=False)
                for (_, future), reply in zip(batch, replies, strict=True):
                    _settle(future, reply)
        except BaseException as error:
            # The connection failed: those behind fail too, rather than wait for another timeout in
            # turn.
            expected = isinstance(error, RedisError | OSError)
            stranded, self._waiting = [*batch, *self._waiting], []
            for _, future in stranded:
                _settle(
                    future,
                    error if expected else ConnectionError(f"sending was abandoned: {error!r}"),
                )
            if not expected:
                self._telemetry.task_failed(Task.STREAM_SENDER)
                log.error("sending was abandoned, the next command begins anew", error=repr(error))
            if not isinstance(error, Exception):
                raise

    async def aclose(self) -> None:
        """Wait for the round trip under way."""
        if self._sender is not None:
            await asyncio.gather(self._sender, return_exceptions=True)


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():
        return  # Its caller was cancelled; the command may have run, and is idempotent.
    if isinstance(reply, BaseException):
        future.set_exception(reply)
    else:
        future.set_result(reply)


class StreamJournal:
    """Append, find, and the live trading state.

    Every failure is `JournalUnavailable`; whether the command took effect is then unknown.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 0.5,
        telemetry: Telemetry = UNOBSERVED,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._oldest: tuple[bytes, float] = (b"", 0.0)
        """The oldest entry, and when it was born, by this process' own clock."""
        self._redis = connect(url, None)
        self._send = GroupCommit(self._redis, timeout_s, telemetry)
        self._condition = UNTOLD
        self._memory = ""
        self._waiting = 0
        """How many events waited when the last one was appended."""

    async def join(self, now: datetime) -> Memory:
        """The stream's memory, begun now when it has none, or when `look()` saw that keys were
        evicted. From here on only this one is appended to: another one raises `MemoryReplaced`."""
        begun, evicted = f"{uuid4().hex} {now.isoformat()}", self._condition.evicted
        self._memory = (await self._run("EVAL", JOIN, 2, MEMORY, EVICTED, begun, evicted)).decode()
        identity, _, since = self._memory.partition(" ")
        try:
            return Memory(identity, datetime.fromisoformat(since))
        except ValueError as error:
            raise MisplacedKey(MEMORY, f"{self._memory[:40]!r}") from error

    async def append(
        self, event: Event, payload_hash: str | None = None, *, anew: bool = False
    ) -> Receipt:
        """Append once; `anew` also when it is known and has left the stream. Raises
        `RequestConflict` when the key is known with another claim.

        Parameters
        ----------
        payload_hash : `digest` of the payload, where somebody has it.
        """
        again = "claim" if anew else ""
        new, known = await self._append(event, again=again, payload_hash=payload_hash)
        _require_same_claim(event, known)
        return Receipt("stream", new != _NEW, moved=new == _MOVED)

    async def set_state(
        self, change: StateChange, link: Link | None = None, *, whatever_lives: bool = False
    ) -> Receipt:
        """Record a change of state and make it the live one, in one step; unless a newer one lives,
        or `whatever_lives`."""
        event = Event.of_state_change(change)._replace(link=link)
        when = "always" if whatever_lives else "newer"
        new, _ = await self._append(event, _state_value(change), when)
        return Receipt("stream", new != _NEW)

    async def restore(self, event: Event) -> None:
        """Append what was spooled while the stream was away, once; an old change of state stays
        history.

        Raises
        ------
        RequestConflict : meanwhile something else was recorded under the key; for a decision also
            when only the answer differs, because the spooled one was given to somebody.
        """
        state = ""
        if event.kind is EventKind.STATE_CHANGE:
            change = event.record()
            assert isinstance(change, StateChange)
            state = _state_value(change)
        _, known = await self._append(event, state, "newer", again="same")
        _require_same_claim(event, known)
        if event.kind is EventKind.DECISION and known.checksum != _checksum(event):
            raise RequestConflict(
                f"decision {event.key} was answered twice, the first in the stream counts"
            )

    async def bury(self, event: Event, reason: str) -> None:
        """Keep an event that cannot be recorded: in the log's `put_aside`, by way of the stream,
        and in the dead-letter stream, for people to look at."""
        fields = _fields(event)
        aside = (part for pair in fields.items() for part in pair)
        await self._run("XADD", EVENTS, "*", *aside, "fate", "aside", "reason", reason[:2000])
        await self._run(*bury_command(fields, reason))

    async def leave(self, linked: Linked) -> None:
        """Leave a link alone in the stream: no event comes under its number."""
        names = {"payload": "digest"}
        fields = linked._asdict() | {"fate": linked.fate.value}
        flat = (part for name, value in fields.items() for part in (names.get(name, name), value))
        await self._run("XADD", EVENTS, "*", *flat)

    async def forgot(self, asked: Sequence[tuple[str, str]]) -> list[int]:
        """Which of these requests (decision id and claim) neither wait here nor were decided."""
        keys = (idempotency_key(EventKind.DECISION, decision_id) for decision_id, _ in asked)
        values = (value for pair in asked for value in pair)
        gone = await self._run("EVAL", FORGOT, 1 + len(asked), REQUESTS, *keys, *values)
        return [int(number) for number in gone]

    async def place(
        self, subject: str, content: str, decision_id: str, newest: Place | None
    ) -> Place | None:
        """The place of a report among those on its subject, taken in one step: who comes later gets
        a later one. None when what came before is not known here; `newest` tells it."""
        told = "" if newest is None else f"{newest.arrival} {newest.content}"
        keys = (_newest_key(subject), idempotency_key(EventKind.DECISION, decision_id))
        arrival = await self._run("EVAL", PLACE, 2, *keys, content, told, KEY_TTL_S)
        return None if arrival < 0 else Place(arrival, content)

    async def newest(self, subject: str) -> Place | None:
        """The newest report on a subject, while it is remembered."""
        reply = await self._run("GET", _newest_key(subject))
        if reply is None:
            return None
        arrival, _, content = reply.decode().partition(" ")
        return Place(int(arrival), content) if arrival.isdecimal() else None

    async def lift(self, subject: str, place: Place) -> None:
        """Tell of a report that got its place elsewhere."""
        await self._run("EVAL", LIFT, 1, _newest_key(subject), *place, KEY_TTL_S)

    async def known(self, kind: EventKind, key: str) -> Known | None:
        """What is remembered under a key, or None."""
        name = idempotency_key(kind, key)
        reply = await self._run("GET", name)
        return None if reply is None else _known(name, reply)

    async def find(self, kind: EventKind, key: str) -> bytes | None:
        """Payload of an event that the writer has not moved yet."""
        known = await self.known(kind, key)
        if known is None:
            return None
        entries = await self._run("XRANGE", EVENTS, known.stream_id, known.stream_id)
        return unpacked(entries[0][1][b"payload"]) if entries else None

    async def get_state(self) -> StateChange | None:
        """The live state, or None on a new installation. Raises also `InvalidRecord`."""
        try:
            reply = await self._run("GET", STATE)
        except MisplacedKey as error:
            raise InvalidRecord(f"the trading state cannot be read: {error}") from error
        return None if reply is None else state_change(reply.partition(b" ")[2])

    async def backlog(self) -> tuple[int, float]:
        """Events that are not in Postgres yet, and the age (s) of the oldest.

        When it is first seen as the oldest, the stream's clock says how old it is; from then on it
        ages by this process' own clock, whatever is done to the stream's.
        """
        length, oldest, (seconds, micros) = await asyncio.gather(
            self._run("XLEN", EVENTS),
            self._run("XRANGE", EVENTS, "-", "+", "COUNT", 1),
            self._run("TIME"),
        )
        if not oldest:
            return length, 0.0
        stream_id, now = oldest[0][0], self._clock()
        if stream_id != self._oldest[0]:
            age = int(seconds) + int(micros) / 1e6 - int(stream_id.split(b"-")[0]) / 1000
            self._oldest = (stream_id, now - max(age, 0.0))
        return length, now - self._oldest[1]

    async def ends(self) -> tuple[StreamId, StreamId] | None:
        """Where the oldest and the newest event lie that are not in Postgres yet; None where all
        are. They are in the order in which the stream took them, whatever any clock says."""
        oldest, newest = await asyncio.gather(
            self._run("XRANGE", EVENTS, "-", "+", "COUNT", 1),
            self._run("XREVRANGE", EVENTS, "+", "-", "COUNT", 1),
        )
        return (_place_of(oldest[0]), _place_of(newest[0])) if oldest and newest else None

    def ledger(self) -> Ledger:
        """The ledger in this memory."""
        return Ledger(self._run, self._memory.partition(" ")[0])

    async def ping(self) -> None:
        """Raise `JournalUnavailable` unless it answers."""
        await self._run("PING")

    async def look(self) -> Condition:
        """Whether it keeps what it confirms, and what is wrong. Raises `JournalUnavailable`."""
        others = await misplaced(self._run, SHARED)
        info: dict[str, Any] = {}
        for section in ("persistence", "memory", "stats"):
            info |= await self._run("INFO", section)
        try:
            settings = await self._run("CONFIG GET", "*append*")
        except JournalUnavailable:
            settings = None
        was = self._condition.durable
        self._condition = condition(
            info, settings, was_durable=was, misplaced=[str(other) for other in others]
        )
        return self._condition

    async def require_ours(self) -> None:
        """Raises `MisplacedKey` when events cannot be appended because of one."""
        for other in await misplaced(self._run, NEEDED):
            raise other

    async def aclose(self) -> None:
        """Close the connections."""
        await self._send.aclose()
        await self._redis.aclose()

    async def _append(
        self,
        event: Event,
        state: str = "",
        when: str = "",
        again: str = "",
        payload_hash: str | None = None,
    ) -> tuple[int, Known]:
        keys = (idempotency_key(event.kind, event.key), EVENTS, STATE, MEMORY)
        payload = event.payload if self._waiting < MANY else packed(event.payload)
        body = (event.kind.value, event.key, event.claim, payload)
        link: tuple[str | int, ...] = ("", "", "", "")
        if event.link is not None:
            link = (*event.link, payload_hash or digest(event.payload))
        about = (_checksum(event), KEY_TTL_S, state, when, self._memory)
        values = (*body, *about, *link, again)
        try:
            new, value, *waiting = await self._run("EVALSHA", APPEND_SHA, len(keys), *keys, *values)
        except NoScriptError:  # The server is new, or was restarted.
            new, value, *waiting = await self._run("EVAL", APPEND, len(keys), *keys, *values)
        if new < 0:
            raise MemoryReplaced(
                "Valkey was emptied, or is another one; it is looked at anew: ask again"
            )
        self._waiting = waiting[0] if waiting else self._waiting
        return new, _known(keys[0], value)

    async def _run(self, *command: Any) -> Any:
        return await asked(self._send, *command)


def bury_command(fields: Mapping[Any, Any], reason: str, stream: str = DEAD) -> tuple[Any, ...]:
    """XADD of an entry's fields to a dead-letter stream."""
    flat = (part for pair in fields.items() for part in pair)
    return ("XADD", stream, "*", *flat, "error", reason[:2000])


def _fields(event: Event) -> dict[str, str | bytes | int]:
    fields: dict[str, str | bytes | int] = {
        "kind": event.kind.value,
        "key": event.key,
        "claim": event.claim,
        "payload": event.payload,
    }
    return fields if event.link is None else fields | event.link._asdict()


def entry_of(fields: Mapping[bytes, bytes]) -> Entry:
    """What an entry of the stream says. Raises `InvalidRecord` when it says nothing that anybody
    knows."""
    try:
        return _entry_of(fields)
    except (KeyError, ValueError) as error:
        raise InvalidRecord(f"not an event: {error!r}") from error


def _entry_of(fields: Mapping[bytes, bytes]) -> Entry:
    kind, key, claim = (fields[name].decode() for name in (b"kind", b"key", b"claim"))
    link = None
    if (producer := fields.get(b"producer")) is not None:
        link = Link(producer.decode(), int(fields[b"seq"]), fields[b"previous"].decode())
    fate = Fate(fields[b"fate"].decode()) if b"fate" in fields else Fate.EVENT
    if fate not in (Fate.EVENT, Fate.ASIDE):
        if link is None:
            raise ValueError("a link without its number")
        return Linked(*link, kind, key, claim, fields[b"digest"].decode(), fate)
    event = Event(EventKind(kind), key, claim, unpacked(fields[b"payload"]), link)
    return Aside(event, fields[b"reason"].decode()) if fate is Fate.ASIDE else event


def _checksum(event: Event) -> str:
    return f"{crc32(event.payload):08x}"


def _place_of(entry: Sequence[Any]) -> StreamId:
    milliseconds, _, number = entry[0].partition(b"-")
    return int(milliseconds), int(number)


def _state_value(change: StateChange) -> str:
    """Starts with the time in microseconds, of fixed width, so that the script can tell the newer
    of two."""
    age = change.recorded_at - _EPOCH
    micros = (age.days * 86_400 + age.seconds) * 1_000_000 + age.microseconds
    return f"{micros:020d} {change.model_dump_json()}"


def _known(key: str, reply: bytes) -> Known:
    try:
        claim, checksum, stream_id = reply.decode().rsplit("|", 2)
    except ValueError as error:
        raise MisplacedKey(key, f"{reply[:40]!r}") from error
    return Known(claim, checksum, stream_id)


def _require_same_claim(event: Event, known: Known) -> None:
    if known.claim != event.claim:
        raise RequestConflict(
            f"{event.kind.value} {event.key} was recorded before with other content"
        )
