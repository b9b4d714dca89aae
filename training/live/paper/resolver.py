"""Outcomes for decisions that lack one: joins bars to the log, reports through the HTTP client,
source `simulated`.

For every arm: the agent's plan (also when it was rejected: a veto's value is what the refused order
would have done) and each version's advised order; a rejection by the advice earns 0. All are
followed by the exits that the decision's record declares (training/outcomes/simulate.py). Safe to
run again at any time: what has an outcome is not asked for, and a report that is sent twice counts
once. An agent that reports its own outcome later overrules the simulated one: the newest report
counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from shadow_advisor_client import AdvisorClient

from app.domain.record.outcome import Arm
from app.domain.scenario import pair_of
from training.live.paper.books import Trade, follow_all, never_filled, outcome
from training.log import Unresolved
from training.market.bars import Bars
from training.outcomes.orders import Order, plan_order

MOST_QUEUED = 500
"""Half of the client's queue: the rest stays free, so nothing is dropped."""


class Resolved(StrEnum):
    """What became of an arm that lacked an outcome."""

    REPORTED = "reported"
    REJECTED = "rejected"
    """Reported too: an advice that rejected earns 0."""
    OPEN = "open"
    """The bars end before it did: ask again later."""
    UNFILLED = "unfilled"
    """An outage of the exchange, at its entry or while it was open, bars without trades, or the
    price of another market: bars that cannot judge it, as labels have it."""
    NO_BARS = "no_bars"
    """The source has no bars of this symbol, or none that early."""
    NOT_SIMULATED = "not_simulated"
    """Its stop does not lie below its entry, which the exits are not defined for; or its agent's
    exits are not known, and only its own reports tell."""


def resolve(
    chunks: Iterable[Sequence[Unresolved]],
    bars: Mapping[str, Bars],
    client: AdvisorClient,
    wait: Callable[[float], None],
) -> Counter[Resolved]:
    """Report every outcome that the bars tell; how many arms were resolved how.

    Parameters
    ----------
    chunks : arms without an outcome, from `training.log.without_outcome`.
    bars : by symbol, however it is spelt; the finest there are.
    wait : pauses for so many seconds while the client's queue is long.
    """
    counts: Counter[Resolved] = Counter()
    by_pair = {pair_of(symbol): series for symbol, series in bars.items()}
    for chunk in chunks:
        asked: dict[str, list[tuple[Unresolved, Order]]] = defaultdict(list)
        for unresolved in chunk:
            order = _order(unresolved)
            pair = "" if order is None else pair_of(order.symbol)
            if unresolved.arm is Arm.ADVICE and not unresolved.approve:
                _report(client, unresolved, None, wait)
                counts[Resolved.REJECTED] += 1
            elif order is None:
                counts[Resolved.NOT_SIMULATED] += 1
            elif pair not in by_pair or order.as_of < _begin(by_pair[pair]):
                counts[Resolved.NO_BARS] += 1
            else:
                asked[pair].append((unresolved, order))
        for pair, orders in asked.items():
            counts += _follow(orders, by_pair[pair], client, wait)
    return counts


def _begin(bars: Bars) -> int:
    """When the first bar opened."""
    return int(bars.closed_at[0]) - bars.seconds


def _follow(
    orders: Sequence[tuple[Unresolved, Order]],
    bars: Bars,
    client: AdvisorClient,
    wait: Callable[[float], None],
) -> Counter[Resolved]:
    counts: Counter[Resolved] = Counter()
    last = int(bars.closed_at[-1])
    for (unresolved, _), trade in zip(
        orders, follow_all(bars, [order for _, order in orders]), strict=True
    ):
        if trade.exited_at is not None:
            _report(client, unresolved, trade, wait)
            counts[Resolved.REPORTED] += 1
        else:
            counts[Resolved.UNFILLED if never_filled(bars, trade, last) else Resolved.OPEN] += 1
    return counts


def _order(unresolved: Unresolved) -> Order | None:
    """The order of an arm; None when the exits are not defined for it or for the plan."""
    order = plan_order(unresolved.scenario)
    if unresolved.arm is Arm.ADVICE and order.sound:
        if unresolved.stop is None or unresolved.quantity is None:
            return None
        order = order._replace(stop=unresolved.stop, quantity=unresolved.quantity)
    return order if order.sound else None


def _report(
    client: AdvisorClient,
    unresolved: Unresolved,
    trade: Trade | None,
    wait: Callable[[float], None],
) -> None:
    """Queue a report, when there is room. Only the agent is known to have traded: it said so."""
    while client.stats().queued >= MOST_QUEUED:
        wait(0.05)
    traded = unresolved.arm is Arm.AGENT and unresolved.approve
    ended = outcome(trade, unresolved.arm, unresolved.model_version, traded=traded)
    if ended is not None:
        client.report_outcome(unresolved.decision_id, ended.as_json())
