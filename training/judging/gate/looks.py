"""Looks at held-out periods: each version that was judged on one, counted, since many looks find
something by luck."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

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
    path = models / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    since, until = str(period.since or ""), str(period.until or "9999")
    source = content_hash(
        market.model_dump(mode="json", include={"source", "directory", "synthetic"})
    )
    entry = {
        "version": version,
        "at": now.isoformat(),
        "since": since,
        "until": until,
        "market": source,
    }
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
    looks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    same = [each for each in looks if each["market"] == source]
    return len(
        {each["version"] for each in same if each["since"] < until and since < each["until"]}
    )
