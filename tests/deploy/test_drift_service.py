"""The compose file's service `drift`: what it runs, as whom, and what Prometheus and the dashboard
make of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from app.local.servers import die_with_parent, free_port
from app.shadow_log.log import ShadowLog
from tests import builders as build
from tests.deploy.containers import SERVICES, answering, lineage, resolved, stages
from tests.deploy.monitoring import DRIFT_DASHBOARD, queries
from tests.deploy.monitoring import resolved as queries_with
from tests.deploy.prometheus_tool import ROOT, Tools
from tests.deploy.run_dockerfile import AS_READER
from tests.deploy.scraper import Scraper, empty_panels, scraping
from tests.service.running import until
from training.__main__ import app as trainer
from training.log import reading

DRIFT = SERVICES["drift"]
PORT = "8323"
TOKEN = "advisor.metrics.of-these-tests"


def command(**given: str) -> list[str]:
    """The service's command line, as compose splits it."""
    return shlex.split(resolved(DRIFT["command"], given))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """What Prometheus sends, as the service is given it."""
    path = tmp_path / "metrics_token"
    path.write_text(f"{TOKEN}\n")
    return path


def healthy(port: int, token_file: Path) -> bool:
    """The service's own health check, at another port, with this Python."""
    *_, script = DRIFT["healthcheck"]["test"]
    done = subprocess.run(
        [sys.executable, "-c", script.replace(PORT, str(port))],
        env={**os.environ, "ADVISOR_METRICS_TOKEN_FILE": str(token_file)},
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_its_command_serves_gauges_where_prometheus_asks_for_them() -> None:
    drift = get_command(trainer).commands["drift"]  # type: ignore[attr-defined]
    for given, every in (
        ({}, 60),
        ({"DRIFT_OPTIONS": "--every 720 --reference /own/scenarios-1"}, 720),
    ):
        name, *words = command(**given)
        assert name == "drift"
        read = drift.make_context(name, [*words, "--database", "postgresql:///advisor"]).params
        assert (read["listen"], read["every"]) == (int(PORT), every)
    assert read["reference"] == Path("/own/scenarios-1")
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]
    }
    assert jobs["advisor-drift"] == [f"drift:{PORT}"]


def test_it_is_healthy_exactly_when_its_gauges_can_be_had(token_file: Path) -> None:
    with answering(200) as (port, paths):
        assert healthy(port, token_file)
    assert paths == ["/metrics"]
    assert not healthy(port, token_file)  # Nobody listens there any more.
    for status in (401, 500):
        with answering(status) as (port, _):
            assert not healthy(port, token_file)


def test_it_asks_for_the_token_that_prometheus_sends() -> None:
    inside = DRIFT["environment"]["ADVISOR_METRICS_TOKEN_FILE"]
    mount = f"./deploy/secrets/metrics_token:{inside}:ro"
    assert mount in DRIFT["volumes"]
    assert mount in SERVICES["prometheus"]["volumes"]
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    sent = {job["job_name"]: job["authorization"] for job in prometheus["scrape_configs"]}
    assert sent["advisor-drift"] == {"credentials_file": inside}


def test_it_keeps_its_looks_where_the_page_reads_them() -> None:
    """In a folder that belongs to the user of both images, and that the service cannot write."""
    kept, read = DRIFT, SERVICES["api"]
    assert kept["environment"]["ADVISOR_DRIFT"] == read["environment"]["ADVISOR_DRIFT"] == "/drift"
    assert "drift:/drift" in kept["volumes"]
    assert "drift:/drift:ro" in read["volumes"]
    for image in ("trainer", "advisor"):
        made = [step.text for step in lineage(image) if "--owner=advisor" in step.text]
        assert any(text.rstrip().endswith("/drift") for text in made), image


def test_a_process_without_a_handler_ends_on_sigterm_only_behind_an_init() -> None:
    assert DRIFT["init"] is True


def test_it_reads_the_log_in_the_role_that_may_only_read(database_url: str) -> None:
    assert DRIFT["env_file"] == ["deploy/secrets/drift.env"]
    with reading(database_url + AS_READER) as connection:
        row = connection.execute("SELECT current_user AS who").fetchone()
    assert row == {"who": "advisor_reader"}


def with_dependencies(names: set[str]) -> set[str]:
    """Distributions and what they need, extras aside, as installed here."""
    found, new = set(names), set(names)
    while new:
        lines = [line for name in new for line in requires(name) or () if "extra ==" not in line]
        new = {re.split(r"[^\w-]", line)[0].lower() for line in lines} & installed() - found
        found |= new
    return found


def installed() -> set[str]:
    """Every distribution here."""
    return {name.lower() for names in packages_distributions().values() for name in names}


def test_its_image_has_what_it_imports_and_the_services_image_has_none_of_that() -> None:
    assert (DRIFT["build"]["target"], DRIFT["image"]) == ("trainer", SERVICES["agent"]["image"])
    (source,) = [step.flags["from"] for step in lineage("trainer") if step.name == "COPY"]
    locks = {
        stage: re.findall(r"-r deploy/locks/(\w+)\.txt", " ".join(s.text for s in stages()[stage]))
        for stage in stages()
    }
    assert (locks[source], locks["build"]) == (["drift", "bars"], ["service"])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {
        extra: {re.split(r"[^\w-]", line)[0] for line in lines} for extra, lines in declared.items()
    }
    present = with_dependencies(
        {name.lower() for name in names["drift"] | names["market"]} - {"shadow-advisor"}
    )
    absent = (names["train"] | names["model"] | names["exchange"]) - present - {"shadow-advisor"}
    assert {"torch", "peft", "matplotlib"} <= absent
    lacking = [
        module
        for module, found in packages_distributions().items()
        if absent & {n.lower() for n in found}
    ]
    code = (
        f"import sys, training.__main__, training.live.drift.show; print(*sorted({set(lacking)!r}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@contextmanager
def looking(database_url: str, token_file: Path) -> Iterator[int]:
    """The service's process on a database; the port of its gauges."""
    port = free_port()
    words = [str(port) if word == PORT else word for word in command()]
    environment = {
        **os.environ,
        "DATABASE_URL": database_url + AS_READER,
        "ADVISOR_METRICS_TOKEN_FILE": str(token_file),
    }
    line = [sys.executable, "-m", "training", *words]
    with subprocess.Popen(line, env=environment, cwd=ROOT, preexec_fn=die_with_parent) as process:
        try:
            yield port
        finally:
            process.terminate()


async def fill(url: str) -> None:
    """A hundred days of decisions, until now: two days long ago, then one every three hours;
    outcomes of half."""
    log = ShadowLog.connect(url)
    begin = datetime.now(UTC) - timedelta(days=100)
    numbers = [*range(16), *range(240, 800)]
    await log.append(
        [
            build.decision_event(
                f"r-{number}",
                label="H" if number % 2 else "A",
                control=number % 3 == 0,
                at=begin + timedelta(hours=3 * number),
                candidate__rsi=float(40 + number * 7 % 20),
            )
            for number in numbers
        ]
    )
    reports = [
        build.outcome_event(f"r-{n}", build.outcome("advice", r=0.5 if n % 4 == 1 else -1.0))
        for n in numbers
    ]
    await log.append(reports[1::2])
    await log.aclose()


async def alert_states(prometheus: Scraper) -> dict[str, str]:
    """The state of each drift alert, once Prometheus has evaluated it on what it has scraped until
    now."""
    begin = datetime.now(UTC)

    async def evaluated() -> bool:
        groups = (await prometheus.get("rules"))["groups"]
        found.update(
            {
                r["name"]: r
                for group in groups
                if group["name"] == "advisor-drift"
                for r in group["rules"]
            }
        )
        return all(
            datetime.fromisoformat(rule["lastEvaluation"]) > begin for rule in found.values()
        )

    found: dict[str, dict[str, str]] = {}
    await until(evaluated)
    assert {rule["health"] for rule in found.values()} == {"ok"}
    return {name: rule["state"] for name, rule in found.items()}


async def test_its_gauges_fill_the_dashboard_and_move_the_alert(
    tools: Tools, database_url: str, tmp_path: Path, token_file: Path
) -> None:
    await fill(database_url)
    with looking(database_url, token_file) as port:
        async with scraping(tools, tmp_path, {"advisor-drift": port}, TOKEN) as prometheus:
            await until(
                prometheus.reaches(
                    'advisor_drift_decisions{model_version="test-1", window="recent"}', 112
                )
            )
            variables = {"model_version": [".*", "test-1"]}
            asked = [
                each
                for query in queries(DRIFT_DASHBOARD)
                for each in queries_with(query, variables)
            ]
            assert len(asked) == 10
            assert await empty_panels(prometheus, asked) == {}
            # The version is a hundred days old, and expires after ninety.
            await until(
                prometheus.reaches(
                    'advisor_drift_verdict{job="advisor-drift", verdict="refresh"}', 1
                )
            )
            await until(
                prometheus.reaches(
                    'count(ALERTS{alertname="AdvisorModelDrift", model_version="test-1"})', 1
                )
            )
            expected = {"AdvisorModelDrift": "pending", "AdvisorDriftNotLooked": "inactive"}

            async def told() -> bool:
                return await alert_states(prometheus) == expected

            await until(told)
        assert healthy(port, token_file)


async def test_a_log_without_any_advice_is_waited_for_in_silence(
    tools: Tools, database_url: str, tmp_path: Path, token_file: Path
) -> None:
    with looking(database_url, token_file) as port:
        async with scraping(tools, tmp_path, {"advisor-drift": port}, TOKEN) as prometheus:
            await until(
                prometheus.reaches(
                    'advisor_drift_last_look_timestamp_seconds{job="advisor-drift"}', 0
                )
            )
            assert await alert_states(prometheus) == {
                "AdvisorModelDrift": "inactive",
                "AdvisorDriftNotLooked": "inactive",
            }
        assert healthy(port, token_file)
