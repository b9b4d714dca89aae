"""What an alias may name, and where it goes back to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,63}$"
NOTHING = "none"
"""What an alias is moved to when it shall name no version any more; moves are never deleted."""
_BACK = "rollback from "


def rollback_reason(version: str, reason: str) -> str:
    """The reason of a move back from `version`: how it is recognised as one later."""
    return f"{_BACK}{version}" + (f": {reason}" if reason else "")


def rollback_target(history: Iterable[Mapping[str, str]]) -> str | None:
    """The version that stood before the present one, of an alias's moves, the oldest first
    (`model_version`, `reason`). What was rolled back from is left behind for good: two rollbacks in
    a row go two versions back. None when there is nothing to go back to."""
    stood: list[str] = []
    for move in history:
        version = move["model_version"]
        if _BACK in move["reason"] and version in stood:
            del stood[len(stood) - stood[::-1].index(version) :]
        elif stood[-1:] != [version]:
            stood.append(version)
    return stood[-2] if len(stood) > 1 else None
