"""Whether the queue server keeps what it confirms: read from its own words, never assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEADROOM = 0.9
"""Share of `maxmemory` from which on memory is called short: behind it appends are refused."""


class Condition(NamedTuple):
    """What a look at the server said."""

    durable: bool | None
    """Whether every confirmed write is on disk and stays; None where the server does not tell."""
    faults: tuple[str, ...]
    """What is wrong, each with what to set."""
    memory: float
    """Used share of `maxmemory`; 0 without such a limit."""
    evicted: int
    """Keys that it threw away since its start."""


UNTOLD = Condition(None, (), 0.0, 0)


def condition(
    info: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    *,
    was_durable: bool | None,
    misplaced: Sequence[str] = (),
) -> Condition:
    """The condition from INFO and from CONFIG GET; hosted servers often refuse the latter.
    `misplaced` says which keys of ours hold something else.

    An append-only file that is being begun holds nothing yet. Its usual rewriting looks the same,
    so a server that `was_durable` stays so.
    """
    faults = _faults(info, settings or {})
    rewriting = info.get("aof_rewrite_in_progress") == 1 or info.get("aof_rewrite_scheduled") == 1
    if rewriting and not was_durable:
        faults.append("the append-only file is being written anew, wait until it is")
    durable = None if settings is None and not faults else not faults
    limit = int(info.get("maxmemory", 0))
    memory = int(info.get("used_memory", 0)) / limit if limit else 0.0
    if memory > HEADROOM:
        faults.append(
            f"{memory:.0%} of maxmemory is used: let the writer catch up, or give it more"
        )
    return Condition(durable, (*faults, *misplaced), memory, int(info.get("evicted_keys", 0)))


def _faults(info: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What makes it forget."""
    faults = []
    if info.get("aof_enabled") == 0:
        faults.append("appendonly is no: set it to yes")
    fsync = settings.get("appendfsync", "always")
    if fsync != "always":
        faults.append(f"appendfsync is {fsync}: set it to always")
    if settings.get("no-appendfsync-on-rewrite", "no") != "no":
        faults.append("no-appendfsync-on-rewrite is yes: set it to no")
    if info.get("aof_last_write_status", "ok") != "ok":
        faults.append("its last write to the append-only file failed: free its disk")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        faults.append(f"maxmemory-policy is {policy}: set it to noeviction")
    return faults
