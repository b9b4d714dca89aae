"""A look at drift, as tables for people."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from training.live.drift.look import Drift, Span
from training.live.drift.measures import Shift
from training.live.drift.verdict import DriftVerdict

MOST_SHOWN = 12
STYLES = {DriftVerdict.OK: "green", DriftVerdict.WATCH: "yellow", DriftVerdict.REFRESH: "red"}


def print_drift(console: Console, drift: Drift) -> None:
    """Verdict and reasons first, then the numbers behind them."""
    console.print(
        f"{drift.model_version}: {drift.verdict.value}",
        style=f"bold {STYLES[drift.verdict]}",
        markup=False,
    )
    for reason in drift.reasons:
        console.print(f"  {reason.verdict.value}: {reason.says}", markup=False)
    console.print(
        f"reference {_span(drift.reference)}; recent {_span(drift.recent)}; features of"
        f" {drift.reference_features}",
        markup=False,
    )
    console.print(
        f"{drift.age_days:.0f} days old; a new version is due on {drift.retrain_due:%Y-%m-%d}, "
        f"this one expires on {drift.expires:%Y-%m-%d}\n"
    )
    if drift.features:
        console.print(_shifts(drift))
        console.print(_moves(drift))


def _span(span: Span) -> str:
    return f"{span.begin:%Y-%m-%d} to {span.end:%Y-%m-%d} ({span.decisions} decisions)"


def _shifts(drift: Drift) -> Table:
    table = Table(title="Distributions", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for column in ("PSI", "KS", "p", "mean before", "now", "unknown before", "now"):
        table.add_column(column, justify="right")
    for shift in (*drift.distributions, *drift.features[:MOST_SHOWN]):
        table.add_row(shift.name, *_cells(shift))
    if (more := len(drift.features) - MOST_SHOWN) > 0:
        table.add_row(f"... {more} more features", *[""] * 7)
    return table


def _cells(shift: Shift) -> list[str]:
    means = [
        "-" if mean is None else f"{mean:.3g}" for mean in (shift.reference_mean, shift.recent_mean)
    ]
    missing = [f"{share:.0%}" for share in (shift.reference_missing, shift.recent_missing)]
    return [f"{shift.psi:.2f}", f"{shift.ks:.2f}", f"{shift.p_value:.2g}", *means, *missing]


def _moves(drift: Drift) -> Table:
    table = Table(
        title="Behaviour and reward", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("")
    for column in ("before", "now", "p"):
        table.add_column(column, justify="right")
    for move in drift.rates:
        table.add_row(
            move.name, f"{move.reference:.0%}", f"{move.recent:.0%}", f"{move.p_value:.2g}"
        )
    if (guess := drift.estimate) is not None:
        now = f"{guess.expected:+.2f} [{guess.low:+.2f}, {guess.high:+.2f}]"
        table.add_row("reward per approval, expected (R)", f"{guess.reference:+.2f}", now, "")
    if drift.residual is not None:
        before, now = f"{drift.residual.reference:+.2f}", f"{drift.residual.recent:+.2f}"
        table.add_row("reward above expectation (R)", before, now, f"{drift.residual.p_value:.2g}")
    for change in drift.changes:
        table.add_row(
            f"{change.name}: change (ADWIN)", f"{change.before:.2f}", f"{change.after:.2f}", ""
        )
    return table
