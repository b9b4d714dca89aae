"""Drift for Prometheus: one gauge per kind of number, in a registry of its own. docs/drift.md lists
them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from training.live.drift.look import Drift
from training.live.drift.verdict import DriftVerdict


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
        self.age.labels(version).set(drift.age_days * 86_400)
        self.changes.labels(version).set(len(drift.changes))
        self.looked_at.set(drift.looked_at.timestamp())

    def write(self, path: Path) -> None:
        """As a file for node_exporter's textfile collector; replaced in one step."""
        write_to_textfile(str(path), self.registry)
