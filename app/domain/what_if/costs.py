"""What a trade would have earned under other costs.

Fee and slippage are fractions of notional on each side, as where outcomes are simulated: what is
paid is the price and slippage, the fee is of what is paid and received. Of a trade on record the
price of entry follows from its profit before costs, its average exit and its quantity, and its own
rates from what was told of fees and slippage. So costs that are told give exactly what was told.
"""

from __future__ import annotations

from math import isclose
from typing import NamedTuple

from app.domain.exits import Exits, Freqtrade
from app.domain.what_if.past import Traded

MOST_COST = 0.01
"""Of each, as where outcomes are simulated: more is a percentage that was taken for a fraction."""


class Costs(NamedTuple):
    """Fractions of notional on each side; None leaves what each trade paid."""

    fee: float | None = None
    slippage: float | None = None


def costs_of(fee: float | None, slippage: float | None) -> Costs | None:
    """None where neither is another."""
    return None if fee is None and slippage is None else Costs(fee, slippage)


class Repriced(NamedTuple):
    """Net profit, quote currency; None where it cannot be known, and why."""

    net: float | None
    why: str = ""


def repriced(traded: Traded, side: int, exits: Exits, costs: Costs) -> Repriced:
    """A trade under other costs. `side` is 1 where it buys first, -1 where it sells first."""
    if not traded.bought:
        return Repriced(0.0)
    why = _missing(traded, exits, costs)
    if why:
        return Repriced(None, why)
    quantity, out = traded.quantity or 0.0, traded.exit_price or 0.0
    fees, slippage, net = traded.fees or 0.0, traded.slippage or 0.0, traded.net_pnl or 0.0
    begin = out - side * (net + fees + slippage) / quantity
    if begin <= 0:
        return Repriced(None, "its profit does not fit its exit and quantity")
    slip = slippage / ((begin + out) * quantity)
    fee = fees / (sum(_with_slippage(begin, out, side, slip)) * quantity)
    slip = slip if costs.slippage is None else costs.slippage
    fee = fee if costs.fee is None else costs.fee
    first, last = _with_slippage(begin, out, side, slip)
    changed = (side * (last - first) - fee * (first + last)) * quantity
    return Repriced(net if isclose(changed, net, rel_tol=1e-9, abs_tol=1e-12) else changed)


def _with_slippage(begin: float, out: float, side: int, slip: float) -> tuple[float, float]:
    """Prices of entry and exit that are paid or received, each worse by slippage."""
    return begin * (1 + side * slip), out * (1 - side * slip)


def _missing(traded: Traded, exits: Exits, costs: Costs) -> str:
    """Why what was told of a trade does not do; empty where it does."""
    by_profit = isinstance(exits, Freqtrade) and (exits.minimal_roi or exits.trailing_stop)
    if costs.fee is not None and by_profit:
        return "its exits wait for a profit after fees: other fees are another exit"
    wanted = {
        "net profit": traded.net_pnl,
        "exit price": traded.exit_price or None,
        "quantity": traded.quantity or None,
        "fees": traded.fees,
    }
    if costs.slippage is not None:
        wanted["slippage"] = traded.slippage
    missing = [name for name, value in wanted.items() if value is None]
    return f"not told of its trade: {', '.join(missing)}" if missing else ""
