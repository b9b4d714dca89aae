"""What a replay showed, as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from shadow_advisor_client import ClientStats

from app.domain.record.comparison import cohens_kappa
from app.domain.text import parts_of
from training.live.paper.books import Book, Trade
from training.live.paper.resolver import Resolved
from training.live.paper.run import Judged
from training.statistics.bootstrap import mean_intervals

MOST_SHOWN = 10
R_IS = "R: net profit over the risk of the agent's plan"


def print_result(
    console: Console, judged: Sequence[Judged], agent: Book, advice: Book, stats: ClientStats
) -> None:
    """All tables of one replay."""
    for table in (
        answers(judged),
        vetoes(judged),
        disagreements(judged),
        books(agent, advice),
        latency(judged, stats),
    ):
        console.print(table)
        console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def answers(judged: Sequence[Judged]) -> Table:
    """Candidates by what became of them, and how far both sides agree."""
    total = len(judged)
    status = Counter(pair.advice["status"] if pair.advice else "no answer" for pair in judged)
    both = [
        (pair.control.decision, bool(pair.advice["approve"]))
        for pair in judged
        if pair.advice and pair.answered
    ]
    table = _table("Candidates and answers", "", "count", "share")

    def row(name: str, count: int, of: int) -> None:
        table.add_row(name, str(count), f"{count / of:.0%}" if of else "-")

    row("candidates", total, total)
    for name in ("advised", "vetoed", "abstained", "no answer"):
        row(f"  {name}", status[name], total)
    row("agent approves", sum(agent for agent, _ in both), len(both))
    row("advice approves", sum(advice for _, advice in both), len(both))
    row("agree", sum(agent == advice for agent, advice in both), len(both))
    kappa = cohens_kappa(both)
    table.add_row("Cohen's kappa", "not defined" if np.isnan(kappa) else f"{kappa:.3f}", "")
    return table


def vetoes(judged: Sequence[Judged]) -> Table:
    """Refusals by code: of the advice, and of the agent's own order put through the same rules."""
    replies = [pair.advice for pair in judged if pair.advice]
    of_advice = Counter(veto["code"] for reply in replies for veto in reply["vetoes"])
    of_control = Counter(veto["code"] for reply in replies for veto in reply["control_vetoes"])
    table = _table("Vetoes by code", "code", "advice", "agent's order")
    for code in sorted(
        of_advice.keys() | of_control.keys(), key=lambda c: (-of_advice[c] - of_control[c], c)
    ):
        table.add_row(code, str(of_advice[code]), str(of_control[code]))
    if not table.rows:
        table.add_row("none", "0", "0")
    return table


def disagreements(judged: Sequence[Judged]) -> Table:
    """Where one approved and the other rejected: who earned what, the widest first. Who rejects
    earns 0 R."""
    differ = [pair for pair in judged if pair.disagrees]
    told = [(pair, pair.agent_r, pair.advice_r) for pair in differ]
    resolved = [(pair, a, b) for pair, a, b in told if a is not None and b is not None]
    resolved.sort(key=lambda item: -abs(item[2] - item[1]))
    better = sum(b > a for _, a, b in resolved)
    worse = sum(b < a for _, a, b in resolved)
    mean = _mean_with_interval(
        [b - a for _, a, b in resolved], [pair.scenario.second for pair, _, _ in resolved]
    )
    title = (
        f"Disagreements: {len(differ)}, the advice was right in {better}, the agent in {worse}; "
        f"advice minus agent {mean} R each"
    )
    table = _table(title, "when (UTC)", "symbol", "agent", "advice", "agent R", "advice R")
    table.caption, table.caption_justify = R_IS, "left"
    for pair, a, b in resolved[:MOST_SHOWN]:
        assert pair.advice is not None
        table.add_row(
            f"{pair.scenario.as_of:%Y-%m-%d %H:%M}",
            parts_of(pair.scenario.candidate.symbol)[0],
            "approve" if pair.control.decision else pair.control.final_skip_reason or "reject",
            _short(pair.advice["action"]),
            f"{a:+.2f}",
            f"{b:+.2f}",
        )
    if len(resolved) > MOST_SHOWN:
        table.add_row(f"... {len(resolved) - MOST_SHOWN} more", *[""] * 5)
    return table


def _short(action: str) -> str:
    """`reject`, or what of the agent's risk and which stop was approved."""
    return action.replace("approve_r", "risk ").replace("_s", " stop ")


def books(agent: Book, advice: Book) -> Table:
    """Both books, each with at most one open trade, net of fees and slippage. Intervals are 95 %,
    bootstrapped."""
    table = _table("Both books (net of costs)", "", "agent", "advice")
    table.caption, table.caption_justify = R_IS, "left"
    rows: dict[str, list[str]] = {}
    quotes = sorted({_quote(trade) for book in (agent, advice) for trade in book.trades})
    for book in (agent, advice):
        closed = [trade for trade in book.trades if trade.exited_at is not None]
        wins = sum(trade.net > 0 for trade in closed)
        opened_at = [trade.order.as_of for trade in closed]
        for name, value in (
            ("closed trades", str(len(closed))),
            ("won", f"{wins / len(closed):.0%}" if closed else "-"),
            ("mean R", _mean_with_interval([trade.r for trade in closed], opened_at)),
            ("total R", f"{sum(trade.r for trade in closed):+.2f}"),
            *_money(closed, quotes),
        ):
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _money(closed: Sequence[Trade], quotes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Profit and deepest fall in each currency that is paid with: they do not add up."""
    for quote in quotes:
        nets = [trade.net for trade in closed if _quote(trade) == quote]
        yield f"P&L, {quote}", f"{sum(nets):+.2f}"
        yield f"deepest drawdown, {quote}", f"{_drawdown(nets):.2f}"


def _quote(trade: Trade) -> str:
    """The currency that a trade is paid with, as far as its symbol says."""
    return parts_of(trade.order.symbol)[1] or "quote currency"


def latency(judged: Sequence[Judged], stats: ClientStats) -> Table:
    """Round trips of `/advise` as the agent's client saw them."""
    seconds = [pair.latency_s for pair in judged if pair.latency_s is not None]
    table = _table("The client's view", "", "value")
    for name, share in (("latency p50", 50), ("latency p99", 99)):
        table.add_row(name, f"{1000 * np.percentile(seconds, share):.0f} ms" if seconds else "-")
    table.add_row("answers given", str(len(seconds)))
    table.add_row("messages sent", str(stats.sent))
    table.add_row("messages dropped", str(sum(stats.dropped.values())))
    return table


def _mean_with_interval(values: Sequence[float], at: Sequence[int]) -> str:
    """`+0.03 [-0.10, +0.17]`, days resampled; the mean alone on a single day. `at` in seconds since
    1970 UTC."""
    if not values:
        return "-"
    column = np.array(values)[:, None]
    (estimate,) = mean_intervals(column, as_of=np.array(at, np.int64))
    mean = f"{column.mean():+.2f}"
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _drawdown(profits: Iterable[float]) -> float:
    """Deepest fall of the cumulated profit from its peak, starting at 0."""
    curve = np.concatenate([[0.0], np.cumsum(list(profits))])
    return float((np.maximum.accumulate(curve) - curve).max())


def resolved_table(counts: Mapping[Resolved, int]) -> Table:
    """What became of the arms that lacked an outcome."""
    table = _table("Arms without an outcome", "", "count")
    for kind in Resolved:
        table.add_row(kind.value.replace("_", " "), str(counts.get(kind, 0)))
    return table
