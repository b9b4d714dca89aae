"""A look as JSON, as gauges, and on the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.domain.features import FEATURE_NAMES
from tests.training.support.drifting import NOW, looked, window
from training.live.drift.show import DriftMetrics
from training.live.drift.verdict import DriftVerdict

ROOT = Path(__file__).parents[4]


def test_a_look_is_json_without_nan_and_gauges_show_it() -> None:
    found = looked(window(1, 1200), window(2, 300, moved=1.0))
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert document["verdict"] == "refresh"
    assert document["looked_at"] == "2026-11-24T00:00:00+00:00"
    assert document["features"][0].keys() >= {"name", "psi", "ks", "p_value"}
    metrics = DriftMetrics()
    metrics.show(looked(window(1, 1200), window(4, 300)))
    metrics.show(found)
    value = metrics.registry.get_sample_value
    shown = {
        v: value("advisor_drift_verdict", {"model_version": "m1", "verdict": v})
        for v in DriftVerdict
    }
    assert shown == {"ok": 0, "watch": 0, "refresh": 1}
    assert value("advisor_drift_model_age_seconds", {"model_version": "m1"}) == 3 * 86_400
    assert value("advisor_drift_last_look_timestamp_seconds") == NOW.timestamp()
    unknown = {"model_version": "m1", "name": FEATURE_NAMES[60]}
    assert value("advisor_drift_psi", unknown) is None


def test_every_gauge_and_reason_is_documented() -> None:
    text = (ROOT / "docs" / "drift.md").read_text()
    names = {metric.name for metric in DriftMetrics().registry.collect()}
    assert set(re.findall(r"^\| `(advisor_\w+)`", text, re.MULTILINE)) == names


def test_the_dashboard_asks_for_gauges_and_labels_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "drift.json").read_text())
    metrics, seen = DriftMetrics(), set()
    metrics.show(looked(window(1, 1200), window(4, 300)))
    labels = {
        s.name: set(s.labels) for family in metrics.registry.collect() for s in family.samples
    }
    for panel in dashboard["panels"]:
        for name, matchers in re.findall(r"(advisor_\w+)\{([^}]*)\}", panel["targets"][0]["expr"]):
            assert set(re.findall(r"(\w+)=", matchers.replace("=~", "="))) <= labels[name]
            seen.add(name)
    assert len(seen) == 5
