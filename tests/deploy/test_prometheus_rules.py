"""The shipped Prometheus configuration, by the real promtool; every name in it exists."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.monitoring import (
    METADATA,
    PROMETHEUS,
    RULE_TESTS,
    alerts,
    declared_labels,
    recorded_names,
    rules,
    selectors,
)
from tests.deploy.prometheus_tool import ROOT, Tools


def promtool(tools: Tools, *arguments: str | Path) -> str:
    """What it says; fails the test when it finds fault."""
    done = subprocess.run([tools.promtool, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_rules(tools: Tools, tmp_path: Path) -> None:
    token, config = tmp_path / "token", tmp_path / "prometheus.yml"
    token.touch()
    text = (PROMETHEUS / "prometheus.yml").read_text()
    text = text.replace("/run/secrets/metrics_token", str(token))
    config.write_text(text.replace("rules/*.yml", str(PROMETHEUS / "rules" / "*.yml")))
    said = promtool(tools, "check", "config", "--lint=all", "--lint-fatal", config)
    assert f"{len(alerts())} rules found" in said
    assert f"{len(rules()) - len(alerts())} rules found" in said


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_rules_give_the_numbers_and_alerts_that_were_worked_out_by_hand(
    tools: Tools, path: Path
) -> None:
    assert "SUCCESS" in promtool(tools, "test", "rules", path)


def test_promtool_finds_a_wrong_number(tools: Tools, tmp_path: Path) -> None:
    document = yaml.safe_load((PROMETHEUS / "tests" / "recording.yml").read_text())
    document["rule_files"] = [str(PROMETHEUS / "rules" / "recording.yml")]
    document["tests"][0]["promql_expr_test"][0]["exp_samples"][0]["value"] += 1
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(yaml.safe_dump(document))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool(tools, "test", "rules", wrong)


def test_every_alert_is_tested_silent_and_firing() -> None:
    cases = [
        case
        for path in RULE_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
    ]
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_every_recorded_series_is_tested_and_described() -> None:
    tested = "".join(path.read_text() for path in RULE_TESTS)
    page = (ROOT / "docs" / "metrics.md").read_text()
    # These are steps on the way to others, which are tested.
    steps = {"series:advisor_comparisons:increase1h", "series:advisor_comparisons:increase24h"}
    steps |= {"cell:advisor_comparisons:increase24h", "model_version:advisor_decisions:increase15m"}
    assert {name for name in recorded_names() - steps if name not in tested} == set()
    assert {name for name in recorded_names() if f"`{name}`" not in page} == set()


def test_every_alert_has_a_severity_and_a_summary() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "runbook"}, rule["alert"]


def test_every_metric_and_label_in_the_rules_exists() -> None:
    declared, recorded = declared_labels(), recorded_names()
    for rule in rules():
        found = list(selectors(rule["expr"]))
        assert found or rule["expr"].startswith("up{"), rule
        for name, labels in found:
            assert name in declared or name in recorded, f"{name} does not exist"
            if name in declared:
                assert labels <= declared[name] | METADATA, f"{name} has no such labels"
