"""The files for Kubernetes and systemd fit the program; where kubectl and systemd are, they read
them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.cli.__main__ import app as advisor
from app.main import create_app
from app.processes.metrics import Metrics
from app.settings import Settings, variable
from tests.deploy.prometheus_tool import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / name).read_text())
]
PODS = [each["spec"]["template"] for each in OBJECTS if "template" in each["spec"]]
CONTAINERS = [container for pod in PODS for container in pod["spec"]["containers"]]
COMMANDS = set(getattr(get_command(advisor), "commands", {}))


def test_every_file_of_the_folder_is_named() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"} == set(
        KUSTOMIZATION["resources"]
    )
    assert [each["kind"] for each in OBJECTS] == [
        "Job",
        "StatefulSet",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "Deployment",
    ]


def test_containers_run_commands_that_are_there_with_settings_that_are() -> None:
    assert {container["args"][0] for container in CONTAINERS} == {"migrate", "serve", "writer"}
    assert {container["args"][0] for container in CONTAINERS} <= COMMANDS
    (made,) = KUSTOMIZATION["configMapGenerator"]
    names = {literal.partition("=")[0] for literal in made["literals"]}
    assert names <= {variable(name) for name in Settings.model_fields}


def test_probes_ask_what_the_api_answers_on_the_port_that_it_has() -> None:
    (api,) = (container for container in CONTAINERS if container["args"] == ["serve"])
    probes = [api[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["path"] for probe in probes} <= set(create_app().openapi()["paths"])
    assert api["ports"][0]["containerPort"] == Settings.model_fields["port"].default
    (writer,) = (container for container in CONTAINERS if container["args"] == ["writer"])
    port = Settings.model_fields["writer_metrics_port"].default
    assert writer["ports"][0]["containerPort"] == port


def test_no_pod_may_more_than_it_needs_nor_gets_variables_of_the_cluster() -> None:
    for pod in PODS:
        assert pod["spec"]["enableServiceLinks"] is False
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in CONTAINERS:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_selectors_find_their_pods_and_the_autoscaler_a_metric() -> None:
    by_kind = {each["kind"]: each["spec"] for each in OBJECTS}
    labels = by_kind["StatefulSet"]["template"]["metadata"]["labels"]
    assert by_kind["StatefulSet"]["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["selector"] == labels
    assert by_kind["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    writer = by_kind["Deployment"]
    assert writer["selector"]["matchLabels"] == writer["template"]["metadata"]["labels"]
    (metric,) = by_kind["HorizontalPodAutoscaler"]["metrics"]
    known = {family.name for family in Metrics(["v"]).registry.collect()}
    assert metric["pods"]["metric"]["name"] in known


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_renders_them() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert len(rendered) == len(OBJECTS) + 1
    assert done.stdout.count("image: shadow-advisor:0.1.0") == len(CONTAINERS)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_a_command_that_is_there(path: Path, tmp_path: Path) -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    program, command = unit["Service"]["ExecStart"].split()
    assert program.endswith("/.venv/bin/advisor")
    assert command in COMMANDS
    name, _, home = unit["Service"]["Environment"].partition("=")
    assert (name, home) == ("ADVISOR_HOME", f"/var/lib/{unit['Service']['StateDirectory']}")
    if shutil.which("systemd-analyze"):
        there = tmp_path / path.name
        there.write_text(path.read_text().replace(program, sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(there)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
