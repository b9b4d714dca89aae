"""What a report may say. Sanity of what comes in now: records that were written before stay as they
are, so these bounds are no part of their schema."""

from __future__ import annotations

from datetime import datetime, timedelta

from app.domain.errors import InvalidRecord
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome

MAX_R = 1000.0
MAX_MONEY = 1e12
MAX_PERCENT = 1e6
MAX_SECONDS = 10 * 366 * 86_400.0
AHEAD = timedelta(hours=1)
"""How far another machine's clock may be before ours."""
_BOUNDS: dict[str, tuple[float, str]] = {
    "r_multiple": (MAX_R, "R"),
    "mae_r": (MAX_R, "R"),
    "mfe_r": (MAX_R, "R"),
    "net_pnl": (MAX_MONEY, "quote currency"),
    "fees": (MAX_MONEY, "quote currency"),
    "slippage": (MAX_MONEY, "quote currency"),
    "size_usd": (MAX_MONEY, "quote currency"),
    "exit_price": (MAX_MONEY, "quote currency"),
    "max_price": (MAX_MONEY, "quote currency"),
    "entry": (MAX_MONEY, "quote currency"),
    "stop": (MAX_MONEY, "quote currency"),
    "quantity": (1e15, "base units"),
    "pnl_pct": (MAX_PERCENT, "percent"),
    "holding_seconds": (MAX_SECONDS, "seconds"),
}


def require_plausible(
    report: AgentAction | Outcome, now: datetime, as_of: datetime | None = None
) -> None:
    """Raise `InvalidRecord` that names every field that no market and no clock can give.

    Parameters
    ----------
    now : by our clock.
    as_of : of the decision that is reported on, where it is known: nothing ended before it.
    """
    wrong = []
    for name, (most, unit) in _BOUNDS.items():
        value = getattr(report, name, None)  # Not every report has every field.
        if value is not None and abs(value) > most:
            wrong.append(f"{name}: {value:g} is beyond {most:g} {unit}")
    ended = report.exit_time if isinstance(report, Outcome) else None
    decided = report.decided_at if isinstance(report, AgentAction) else None
    for name, moment in (("exit_time", ended), ("decided_at", decided)):
        if moment is not None and moment > now + AHEAD:
            wrong.append(f"{name}: {moment.isoformat()} is in the future")
    if ended is not None and as_of is not None and ended < as_of:
        wrong.append(f"exit_time: {ended.isoformat()} is before the decision, {as_of.isoformat()}")
    if isinstance(report, Outcome) and ended is not None and as_of is not None:
        wrong += _held_too_long(report, (ended - as_of).total_seconds())
    if wrong:
        raise InvalidRecord("; ".join(wrong))


def _held_too_long(outcome: Outcome, most_s: float) -> list[str]:
    """A trade that was held for longer than there is time between its decision and its end."""
    held = outcome.holding_seconds
    if held is None or held <= most_s + AHEAD.total_seconds():
        return []
    milliseconds = " (likely milliseconds)" if held > 60 * most_s and held / 1000 <= most_s else ""
    return [
        f"holding_seconds: {held:g}{milliseconds}, and from the decision to exit_time there are"
        f" {most_s:g} s"
    ]
