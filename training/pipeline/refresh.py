"""Refresh: the rebuild on a sliding window of the shadow log, judged on what came after it, against
the champion.

The last decision in the log ends the window. What lies `judge_days` before it judges, what lies
`train_days` before that trains; of the held-out period (2023-2024) nothing is read. The result is a
challenger, never a promotion.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import NamedTuple

from app.domain.errors import AdvisorError
from app.domain.model.manifest import PRIMARY_ALIAS
from training.arrays import HELD_OUT_FROM
from training.config.data import HeldOutConfig, ScenariosConfig
from training.config.file import RebuildConfig
from training.config.judging import RefreshConfig

CHAMPION_ALIASES = ("champion", PRIMARY_ALIAS)
"""Who has to be beaten: the first of these aliases that points anywhere."""


class RefreshError(AdvisorError):
    """There is nothing to refresh from."""


class Span(NamedTuple):
    """Days: decisions from `since` train, from `judged_since` judge, none from `until` on."""

    since: date
    judged_since: date
    until: date


def span_before(last: datetime, config: RefreshConfig) -> Span:
    """The window that ends with the day of the last decision.

    Raises
    ------
    RefreshError : the part that judges would begin before the held-out period, where other versions
        were trained.
    """
    until = last.date() + timedelta(days=1)
    judged = until - timedelta(days=config.judge_days)
    if judged < HELD_OUT_FROM:
        raise RefreshError(
            f"the last decision in the log is of {last:%Y-%m-%d}: what lies before {HELD_OUT_FROM}"
            " may have been trained on, so nothing is left to judge by"
        )
    return Span(judged - timedelta(days=config.train_days), judged, until)


def refreshed(config: RebuildConfig, span: Span) -> RebuildConfig:
    """The same configuration on the shadow log's window."""
    scenarios = config.scenarios.model_dump() | {
        "source": "shadow_log",
        "since": span.since,
        "until": span.judged_since,
        "validate_from": None,
    }
    held_out = config.evaluate.held_out.model_dump() | {
        "source": "shadow_log",
        "since": span.judged_since,
        "until": span.until,
    }
    evaluate = config.evaluate.model_copy(
        update={"held_out": HeldOutConfig.model_validate(held_out)}
    )
    return config.model_copy(
        update={"scenarios": ScenariosConfig.model_validate(scenarios), "evaluate": evaluate}
    )


def champion_of(aliases: Mapping[str, str]) -> str | None:
    """The version that a challenger has to beat; None when nothing is served by an alias."""
    return next((aliases[name] for name in CHAMPION_ALIASES if name in aliases), None)
