"""Our keys in Valkey, and what is said of one that holds something else: no outage, but the work
of somebody else, which only a person can judge."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from app.domain.errors import JournalUnavailable

EVENTS = "advisor:events"
DEAD = "advisor:dead"
REQUESTS = "advisor:requests"
DEAD_REQUESTS = "advisor:dead-requests"
"""Accepted requests that cannot be decided, with the reason."""
STATE = "advisor:state"
MEMORY = "advisor:memory"
EVICTED = "advisor:evicted"
"""How many keys had been thrown away when this was last looked at."""
STREAMS = (EVENTS, DEAD, REQUESTS, DEAD_REQUESTS)
SHARED = (*STREAMS, STATE, MEMORY, EVICTED)
"""All others are one thing's own."""
NEEDED = (EVENTS, MEMORY, EVICTED)
"""Without them nothing can be appended to the stream."""

Run = Callable[..., Awaitable[Any]]


def type_of(key: str) -> str:
    """What a key of ours is to Valkey. A principal's ledger stands under its memory's, as that of
    a release before does."""
    if key in STREAMS:
        return "stream"
    return "hash" if re.match(r"advisor:ledger(-2)?:[^:]+:", key) else "string"


class MisplacedKey(JournalUnavailable):
    """A key of ours holds what we did not write."""

    def __init__(self, key: str, is_a: str) -> None:
        mend = (
            "set the state anew (`advisor state`)"
            if key == STATE
            else f"look at it, then take it away (`RENAME {key} {key}.other`)"
        )
        super().__init__(f"{key} in Valkey is {is_a}, not a {type_of(key)} of this service: {mend}")
        self.key = key


async def misplaced(run: Run, keys: Sequence[str]) -> list[MisplacedKey]:
    """Those of our keys that are of another type. Raises as `run`."""
    found = []
    for key in keys:
        kind = (await run("TYPE", key)).decode()
        if kind not in ("none", type_of(key)):
            found.append(MisplacedKey(key, f"a {kind}"))
    return found


async def of_other_type(run: Run, command: Sequence[Any], error: Exception) -> MisplacedKey | None:
    """The key for which Valkey refused a command, when that is why."""
    if not isinstance(error, ResponseError) or "WRONGTYPE" not in str(error):
        return None
    try:
        found = await misplaced(run, _keys_of(command))
    except (RedisError, OSError):
        return None
    return found[0] if found else None


def _keys_of(command: Sequence[Any]) -> list[str]:
    name, *arguments = command
    if name in ("EVAL", "EVALSHA"):
        return [str(key) for key in arguments[2 : 2 + int(arguments[1])]]
    if name == "XREADGROUP":
        return [str(arguments[arguments.index("STREAMS") + 1])]
    return [str(arguments[0])]
