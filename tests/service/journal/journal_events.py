"""Events for tests of the journal, and a look at what lies in the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import redis

from app.domain.record.event import Event, EventKind
from app.journal.keys import DEAD, EVENTS
from app.journal.later import RequestQueue
from app.journal.stream import AcceptedRequest

_numbers = count()


def event(
    key: str | None = None,
    claim: str = "sha256:a",
    text: str = "",
    kind: EventKind = EventKind.DECISION,
) -> Event:
    """An event of about `len(text)` bytes; without a key it gets one of its own."""
    return Event(kind, key or f"key-{next(_numbers)}", claim, b'{"text":"%s"}' % text.encode())


async def put(requests: RequestQueue, decision_id: str, claim: str, payload: bytes) -> str:
    """Accept one request; the claim that waits under its id then."""
    [waiting] = await requests.put_all([AcceptedRequest(decision_id, claim, payload)])
    return waiting


async def cancel_the(work: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Cancel a background task by what it runs, once it runs, as a loop does that ends."""
    while True:
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__qualname__", "") == work.__qualname__:
                await asyncio.sleep(0)  # It has begun.
                task.cancel()
                return
        await asyncio.sleep(0)


@contextmanager
def client(url: str) -> Iterator[redis.Redis]:
    """A plain client that shows what is there."""
    with redis.Redis.from_url(url, protocol=2, socket_timeout=10) as connection:
        yield connection


def keys_in_stream(url: str) -> list[str]:
    """Keys of the events in the stream, in order; what has another fate is not among them."""
    with client(url) as connection:
        entries = _entries(connection, EVENTS)
    return [fields[b"key"].decode() for _, fields in entries if b"fate" not in fields]


def dead_letters(url: str, stream: str = DEAD) -> list[dict[str, str]]:
    """What was put aside, in order."""
    with client(url) as connection:
        return [
            {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
            for _, fields in _entries(connection, stream)
        ]


def _entries(connection: redis.Redis, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    entries: Any = connection.xrange(stream)
    return list(entries)
