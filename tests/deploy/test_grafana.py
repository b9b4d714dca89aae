"""The dashboard and its provisioning, as far as they can be judged without a Grafana."""

from __future__ import annotations

import itertools
import re
from urllib.parse import parse_qs

import yaml

from app.api.explorer import limits, pages
from tests.deploy.monitoring import (
    METADATA,
    Query,
    dashboard,
    declared_labels,
    marked,
    panels,
    queries,
    recorded_names,
    resolved,
    selectors,
)
from tests.deploy.prometheus_tool import ROOT

OF_PROMETHEUS = ("up{", "count(ALERTS{", "label_values(up{")
"""Queries of series that Prometheus has by itself."""
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
UNITS = {"none", "short", "s", "percentunit", "cpm", "cps", "reqps"}
"""Those of Grafana's units that are used here."""
KINDS = {"stat", "table", "timeseries", "bargauge", "state-timeline"}
PAGES = {
    route.path  # type: ignore[attr-defined]
    for route in (*pages.router.routes, *limits.router.routes)
}
VARIABLES = {
    "model_version": [".*"],
    "symbol": [".*"],
    "instance": [".*"],
    "window": ["1h", "24h"],
} | {name: ["5m"] for name in ("__rate_interval", "__range")}


def test_every_panel_has_a_title_a_description_a_unit_and_thresholds() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] in KINDS
        assert defaults["unit"] in UNITS, panel["title"]
        bounds = [step["value"] for step in defaults["thresholds"]["steps"]]
        assert bounds[0] is None
        assert bounds[1:] == sorted(bounds[1:]), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list(
            "ABC"[: len(panel["targets"])]
        )
        for target in panel["targets"]:
            assert target["instant"] is not target["range"]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_variable_that_a_query_uses_is_defined_and_every_one_that_is_defined_is_used() -> (
    None
):
    document = dashboard()
    defined = {variable["name"] for variable in document["templating"]["list"]}
    expressions = " ".join(query.expr for query in queries())
    used = set(re.findall(r"\$\{?(\w+)", expressions)) - {"__rate_interval", "__range"}
    assert used | {"datasource", "explorer"} == defined
    assert {"model_version", "symbol"} <= used


def test_every_panel_follows_a_variable_but_the_number_of_alerts() -> None:
    followed = {"$model_version", "$symbol", "$instance"}
    still = {query.panel for query in queries() if not any(name in query.expr for name in followed)}
    assert still == {"Alerts firing"}


def test_links_lead_to_pages_of_the_explorer_that_exist() -> None:
    document = dashboard()
    links = [link["url"] for link in document["links"] if link["type"] == "link"]
    links += [
        link["url"]
        for panel in panels()
        for link in panel["fieldConfig"]["defaults"].get("links", [])
    ]
    assert len(links) > 20
    for link in links:
        address = link.removeprefix("${explorer}")
        assert address.startswith("/ui"), link
        path, _, words = address.partition("?")
        assert path in PAGES, link
        assert set(parse_qs(words)) <= {"days", "symbol", "veto", "version", "status", "disagree"}
    worth = [panel for panel in panels() if "in R" in panel["title"] or "R " in panel["title"]]
    assert all(panel["fieldConfig"]["defaults"].get("links") for panel in worth)


def test_versions_halts_and_limits_are_marked_on_every_curve() -> None:
    marks = {note["name"]: note["expr"] for note in marked()}
    assert set(marks) == {"Versions", "Halts", "Limits"}
    for expr in marks.values():
        for name, labels in selectors(expr):
            assert labels <= declared_labels()[name] | METADATA


def test_every_metric_and_label_on_the_dashboard_exists() -> None:
    declared, recorded = declared_labels(), recorded_names()
    variables = [v for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    lists = [Query(v["name"], v["query"]["query"], True) for v in variables]
    for query in (*queries(), *lists):
        for each in resolved(query, VARIABLES):
            found = list(selectors(each.expr))
            assert found or each.expr.startswith(OF_PROMETHEUS), each
            for name, labels in found:
                assert name in declared or name in recorded, f"{query.panel}: {name} does not exist"
                if name in declared:
                    assert labels <= declared[name] | METADATA, (
                        f"{query.panel}: {name} has no such labels"
                    )


def test_provisioning_names_the_same_prometheus_as_the_dashboard_and_the_scrape_interval() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
