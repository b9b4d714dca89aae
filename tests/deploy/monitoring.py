"""What Prometheus and Grafana are given: rules, panels, queries, and the names that they use."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from app.processes.metrics import Metrics
from tests.deploy.prometheus_tool import ROOT
from training.live.drift.show import DriftMetrics

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "agreement.json"
DRIFT_DASHBOARD = DASHBOARD.with_name("drift.json")
RULE_FILES = tuple(sorted((PROMETHEUS / "rules").glob("*.yml")))
RULE_TESTS = tuple(sorted((PROMETHEUS / "tests").glob("*.yml")))
SELECTOR = re.compile(r"(?<![\w:])((?:\w+:)?advisor_[\w:]+)(\{[^}]*\})?")
METADATA = frozenset({"job", "instance", "le"})
"""Labels that Prometheus adds, or that a histogram's buckets have."""


class Query(NamedTuple):
    """One target of a panel; `instant` as Grafana would send it."""

    panel: str
    expr: str
    instant: bool


def rule_groups() -> list[dict[str, Any]]:
    """Every rule group that is shipped."""
    return [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]


def rules() -> list[dict[str, Any]]:
    """Every rule that is shipped."""
    return [rule for group in rule_groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Every alert rule that is shipped."""
    return [rule for rule in rules() if "alert" in rule]


def dashboard(path: Path = DASHBOARD) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def panels(path: Path = DASHBOARD) -> list[dict[str, Any]]:
    """Every panel that shows something."""
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def queries(path: Path = DASHBOARD) -> list[Query]:
    """Every target of every panel, variables unresolved."""
    return [
        Query(panel["title"], target["expr"], target.get("instant", False))
        for panel in panels(path)
        for target in panel["targets"]
    ]


def marked(path: Path = DASHBOARD) -> list[dict[str, Any]]:
    """What is marked on every curve."""
    notes = dashboard(path)["annotations"]["list"]
    return [note for note in notes if not note.get("builtIn")]


def resolved(query: Query, variables: dict[str, list[str]]) -> Iterator[Query]:
    """The query once for each combination of values of the variables that it uses."""
    used = [name for name in variables if re.search(rf"\$(\{{{name}\}}|{name}\b)", query.expr)]
    for values in itertools.product(*(variables[name] for name in used)):
        expr = query.expr
        for name, value in zip(used, values, strict=True):
            expr = expr.replace(f"${{{name}}}", value).replace(f"${name}", value)
        assert "$" not in expr, f"{query.panel}: a variable of {expr!r} is not known"
        yield query._replace(expr=expr)


def declared_labels() -> dict[str, frozenset[str]]:
    """Labels by the name of each sample that the service exposes."""
    names = {
        **Metrics().registry._names_to_collectors,
        **DriftMetrics().registry._names_to_collectors,
    }
    return {
        # prometheus_client tells the labels of a metric that has no series yet nowhere else.
        name: frozenset(getattr(collector, "_labelnames", ()) or getattr(collector, "LABELS", ()))
        for name, collector in names.items()
        if f"{name}_total" not in names
    }


def recorded_names() -> set[str]:
    """Names of the recorded series."""
    return {rule["record"] for rule in rules() if "record" in rule}


def selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric that an expression names, with the labels that it selects by."""
    for name, matchers in SELECTOR.findall(expr):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers)))
