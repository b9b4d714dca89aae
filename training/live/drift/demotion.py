"""Does the version that acts do worse than what stood before it? Then it steps back by itself.

Two reasons, each of them enough:

- Of all decisions since the alias moved to it, a lower bound of what a rival earned more lies above
  zero. Rivals are the agent alone, and the version before, where that answered the same decisions.
  The bound may be consulted at any time, again and again, without losing its confidence
  (`training.statistics.anytime`); it is bet once a day, on days that are settled.
- Every look at drift has asked for a new version for `demote_after_days`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from app.domain.errors import AdvisorError
from app.domain.model.aliases import rollback_reason, rollback_target
from app.operator_client import OperatorClient
from training.arrays import DAY_S, Floats, Rows
from training.config.judging import DriftConfig
from training.live.drift.look import Drift
from training.live.drift.verdict import DriftVerdict
from training.log import paired, reading
from training.statistics.anytime import log_wealth, lower_bound, period_means

BY = "demotion"
"""Who moves the alias, where nobody holds a token; else its holder."""
AGENT = "the agent alone"
NONE = "none"
"""What an alias names that names no version."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Net R of the same decisions, in order of time: of the version that acts, and of each rival by
    name, NaN where that is not known. `as_of`: seconds."""

    as_of: Rows
    acting: Floats
    rivals: Mapping[str, Floats]


class Worse(NamedTuple):
    """The rival that earns more for certain, by at least so much R a decision, of so many days."""

    rival: str
    at_least: float
    days: int

    @property
    def says(self) -> str:
        """For people."""
        return (
            f"{self.rival} earns at least {self.at_least:.3f} R a decision more, on {self.days}"
            " days, by a bound that holds whenever it is asked"
        )


def worse(seen: Paired, config: DriftConfig) -> Worse | None:
    """The rival that beats the acting version by most, for certain; None when none does. The error
    is divided by the number of rivals."""
    if not len(seen.as_of):
        return None
    settled = seen.as_of // DAY_S < seen.as_of[-1] // DAY_S - config.demote_settle_days
    alpha = (1 - config.demote_confidence) / max(len(seen.rivals), 1)
    beaten = []
    for name, rival in seen.rivals.items():
        known = settled & np.isfinite(rival) & np.isfinite(seen.acting)
        clipped = (
            np.clip(arm[known], -config.clip_r, config.clip_r) for arm in (rival, seen.acting)
        )
        gap = np.subtract(*clipped)
        days = period_means(gap, seen.as_of[known]) if known.any() else gap
        if len(days) < config.demote_min_days:
            continue
        if log_wealth(days, 2 * config.clip_r).max() >= math.log(1 / alpha):
            beaten.append(Worse(name, lower_bound(days, 2 * config.clip_r, alpha), len(days)))
    return max(beaten, key=lambda found: found.at_least, default=None)


class Demoter:
    """Looks after one alias of a running service. `service` needs the token of an operator."""

    def __init__(
        self, service: OperatorClient, alias: str, database: str, config: DriftConfig
    ) -> None:
        if alias == "shadow":
            raise AdvisorError("the alias shadow decides nothing: there is nothing to demote")
        self._service = service
        self._alias = alias
        self._database = database
        self._config = config
        self._drifting_since: datetime | None = None

    def look(self, drift: Drift | None, now: datetime) -> str | None:
        """Step back if there is reason to; what was done, for people. Raises `OperatorError` and
        `ShadowLogUnavailable`."""
        aliases = self._service.aliases()
        stands = aliases["aliases"].get(self._alias)
        if stands is None or stands["model_version"] == NONE:
            return None
        history = [move for move in aliases["history"] if move["alias"] == self._alias]
        before = rollback_target(history[::-1]) or NONE
        version = stands["model_version"]
        why = self._drifted(drift, version, now) or self._lost(stands, before)
        if why is None:
            return None
        reason = rollback_reason(version, f"demoted by itself: {why}")
        self._service.move_alias(self._alias, before, reason, BY, seen=stands["changed_at"])
        return f"{version} is no longer {self._alias}, {before} is: {why}"

    def _lost(self, stands: Mapping[str, Any], before: str) -> str | None:
        since = datetime.fromisoformat(stands["changed_at"])
        with reading(self._database) as connection:
            rows = paired(connection, stands["model_version"], before, since)
        columns = np.array(rows, dtype=float).reshape(-1, 4).T
        rivals = {AGENT: columns[2]} | ({} if before == NONE else {before: columns[3]})
        found = worse(Paired(columns[0].astype(np.int64), columns[1], rivals), self._config)
        return None if found is None else found.says

    def _drifted(self, drift: Drift | None, version: str, now: datetime) -> str | None:
        if drift is None:
            return None  # Nobody could look: neither better nor worse.
        if drift.model_version != version or drift.verdict is not DriftVerdict.REFRESH:
            self._drifting_since = None
            return None
        self._drifting_since = self._drifting_since or now
        if now - self._drifting_since < timedelta(days=self._config.demote_after_days):
            return None
        reasons = "; ".join(
            reason.says for reason in drift.reasons if reason.verdict is DriftVerdict.REFRESH
        )
        return f"it has drifted for {self._config.demote_after_days:g} days: {reasons}"
