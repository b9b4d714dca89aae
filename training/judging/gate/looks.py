"""Looks at held-out periods: each version that was judged on one, counted, since many looks find
something by luck."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from app.domain.canonical import content_hash
from training.config.data import HeldOutConfig, MarketConfig

FILE = "looks.jsonl"


def count_look(
    models: Path, version: str, market: MarketConfig, period: HeldOutConfig, now: datetime
) -> int:
    """Write a look down, before anything is seen; how many versions have looked at days of this
    period, this included.

    Other markets are other periods. The file lies beside the versions, so that every configuration
    that publishes there counts into it. Judging the same version again is written down and counts
    once.
    """
    entry = _entry(version, market, period, now)
    _write(models, entry)
    return len({look["version"] for look in _meeting(models, entry)})


def note_tried(
    models: Path,
    version: str,
    market: MarketConfig,
    period: HeldOutConfig,
    now: datetime,
    sharpes: Mapping[str, float],
) -> None:
    """Write down what came of a look: the Sharpe ratio per step of every configuration that was
    tried in it, by the name of its arm."""
    _write(models, _entry(version, market, period, now) | {"tried": dict(sharpes)})


def tried_before(
    models: Path, version: str, market: MarketConfig, period: HeldOutConfig, now: datetime
) -> dict[str, float | None]:
    """Sharpe ratios per step of every configuration that other versions' looks at days of this
    period tried, the newest; None for a version of which no ratio was written down."""
    entry = _entry(version, market, period, now)
    tried: dict[str, float | None] = {}
    for look in _meeting(models, entry):
        other = look["version"]
        if other == version:
            continue
        if "tried" in look:
            tried.pop(other, None)
            tried |= {f"{other}: {arm}": ratio for arm, ratio in look["tried"].items()}
        elif not any(name.startswith(f"{other}: ") for name in tried):
            tried[other] = None
    return tried


def _entry(
    version: str, market: MarketConfig, period: HeldOutConfig, now: datetime
) -> dict[str, Any]:
    return {
        "version": version,
        "at": now.isoformat(),
        "since": str(period.since or ""),
        "until": str(period.until or "9999"),
        "market": content_hash(
            market.model_dump(mode="json", include={"source", "directory", "synthetic"})
        ),
    }


def _write(models: Path, entry: Mapping[str, Any]) -> None:
    path = models / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def _meeting(models: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Looks at the same market whose days meet the entry's, in the order of the file."""
    path = models / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [
        look
        for look in map(json.loads, lines)
        if look["market"] == entry["market"]
        and look["since"] < entry["until"]
        and entry["since"] < look["until"]
    ]
