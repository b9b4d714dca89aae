"""A look at drift, shown: tables for people, gauges for Prometheus (docs/drift.md lists them),
JSON for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.domain.text import counted
from training.arrays import DAY_S
from training.live.drift.look import Drift, Span
from training.live.drift.measures import Shift
from training.live.drift.verdict import DriftVerdict

MOST_SHOWN = 12
STYLES = {DriftVerdict.OK: "green", DriftVerdict.WATCH: "yellow", DriftVerdict.REFRESH: "red"}


def show(
    drift: Drift,
    console: Console,
    gauges: DriftMetrics,
    output: Path | None = None,
    textfile: Path | None = None,
) -> None:
    """A look in every way that is asked for; files are replaced in one step."""
    print_drift(console, drift)
    gauges.show(drift)
    if output is not None:
        draft = output.with_name(f".{output.name}.{os.getpid()}")
        text = json.dumps(drift.as_json(), indent=2, allow_nan=False)
        draft.write_text(f"{text}\n", encoding="utf-8")
        draft.replace(output)
    if textfile is not None:
        gauges.write(textfile)


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
        f"{counted(round(drift.age_days), 'day')} old; a new version is due on"
        f" {drift.retrain_due:%Y-%m-%d}, this one expires on {drift.expires:%Y-%m-%d}\n"
    )
    if drift.features:
        console.print(_shifts(drift))
        console.print(_moves(drift))


def _span(span: Span) -> str:
    return f"{span.begin:%Y-%m-%d} to {span.end:%Y-%m-%d} ({counted(span.decisions, 'decision')})"


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


class DriftMetrics:
    """The newest look. A model version that is looked at no more disappears with the next look."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: list[Gauge] = []
        version = ("model_version",)
        self.verdict = self._gauge(
            "advisor_drift_verdict",
            "1 for the verdict of the newest look, 0 for the others",
            *version,
            "verdict",
        )
        self.psi = self._gauge(
            "advisor_drift_psi", "population stability index of a number", *version, "name"
        )
        self.rate = self._gauge(
            "advisor_drift_rate", "a rate in a window", *version, "name", "window"
        )
        self.reward = self._gauge(
            "advisor_drift_expected_reward",
            "mean R of approvals, estimated before outcomes",
            *version,
            "bound",
        )
        self.residual = self._gauge(
            "advisor_drift_reward_residual",
            "mean R above what the confidence promised, where outcomes arrived",
            *version,
        )
        self.decisions = self._gauge(
            "advisor_drift_decisions", "decisions in a window", *version, "window"
        )
        self.age = self._gauge(
            "advisor_drift_model_age_seconds", "age of the model version", *version
        )
        self.changes = self._gauge(
            "advisor_drift_changes",
            "changes that the online detector found in the recent window",
            *version,
        )
        self.looked_at = Gauge(
            "advisor_drift_last_look_timestamp_seconds",
            "when the newest look was taken",
            registry=self.registry,
        )

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        gauge = Gauge(name, says, labels, registry=self.registry)
        self._gauges.append(gauge)
        return gauge

    def show(self, drift: Drift) -> None:
        """Replace what was shown by this look."""
        for gauge in self._gauges:
            gauge.clear()
        version = drift.model_version
        for verdict in DriftVerdict:
            self.verdict.labels(version, verdict.value).set(drift.verdict is verdict)
        for shift in (*drift.features, *drift.distributions):
            self.psi.labels(version, shift.name).set(shift.psi)
        for move in drift.rates:
            self.rate.labels(version, move.name, "reference").set(move.reference)
            self.rate.labels(version, move.name, "recent").set(move.recent)
        if drift.estimate is not None:
            for bound, value in drift.estimate._asdict().items():
                self.reward.labels(version, bound).set(value)
        if drift.residual is not None:
            self.residual.labels(version).set(drift.residual.recent)
        for window, span in (("reference", drift.reference), ("recent", drift.recent)):
            self.decisions.labels(version, window).set(span.decisions)
        self.age.labels(version).set(drift.age_days * DAY_S)
        self.changes.labels(version).set(len(drift.changes))
        self.looked_at.set(drift.looked_at.timestamp())

    def write(self, path: Path) -> None:
        """As a file for node_exporter's textfile collector; replaced in one step."""
        write_to_textfile(str(path), self.registry)
