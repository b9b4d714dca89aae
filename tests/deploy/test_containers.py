"""Dockerfile and compose file fit the repository and the program. `make containers` builds and runs
them."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from app.api.tokens import TokenFile, Tokens
from app.cli.__main__ import app as advisor
from app.domain import principal as access
from app.domain.principal import Principal
from app.domain.rules.limits import read_limits
from app.settings import Clock, Settings, read_settings, variable
from tests.deploy.containers import (
    COMPOSE,
    SERVICES,
    answering,
    interpolated,
    last,
    lineage,
    resolved,
    stages,
    variables,
)
from tests.deploy.dockerfile import Step, context_files, ignored, parse
from tests.deploy.prometheus_tool import ROOT

OURS = ("migrate", "api", "writer", "notices")


def setting_names() -> set[str]:
    """Every environment variable that the settings read."""
    return {variable(name) for name in Settings.model_fields}


def api_settings(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> Settings:
    """Settings as the API reads them in its container."""
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    words = [
        word
        for step in lineage("advisor")
        if step.name == "ENV"
        for word in re.findall(r"\w+=\S+", step.text)
    ]
    environment = dict(word.split("=", 1) for word in words)
    for name, value in SERVICES["api"]["environment"].items():
        if value is not None:
            environment[name] = resolved(str(value), given)
        elif name in given:
            environment[name] = given[name]
    for name in setting_names() & set(environment):
        monkeypatch.setenv(name, environment[name])
    return read_settings()


def test_the_compose_file_has_the_services_that_the_readme_names() -> None:
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert default == {
        "postgres",
        "valkey",
        "migrate",
        "api",
        "writer",
        "drift",
        "prometheus",
        "alertmanager",
        "notices",
        "grafana",
    }
    assert SERVICES["agent"]["profiles"] == ["demo"]
    assert SERVICES["vllm"]["profiles"] == ["gpu"]
    assert SERVICES["api-2"]["profiles"] == SERVICES["proxy"]["profiles"] == ["tls"]


def test_every_foreign_image_has_an_exact_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += [
        steps[0].words()[0] for steps in stages().values() if steps[0].words()[0] not in stages()
    ]
    assert len(images) == 6 + 2
    for image in images:
        assert re.fullmatch(r"[a-z/-]+:v?\d+(\.\d+)+(-[a-z-]+)?", image), image


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [
        resolved(port, {}) for service in SERVICES.values() for port in service.get("ports", [])
    ]
    assert sorted(ports) == [
        "127.0.0.1:15432:5432",
        "127.0.0.1:3000:3000",
        "127.0.0.1:8321:8321",
        "127.0.0.1:8443:8443",
        "127.0.0.1:9090:9090",
        "127.0.0.1:9093:9093",
    ]


def test_everything_mounted_from_the_repository_exists() -> None:
    mounted = [
        resolved(volume, {}).split(":")[0]
        for s in SERVICES.values()
        for volume in s.get("volumes", [])
    ]
    mounted = [source for source in mounted if not source.startswith("./deploy/secrets/")]
    paths = {source for source in mounted if source.startswith((".", "/"))}
    assert paths == {
        "./deploy/prometheus",
        "./deploy/prometheus/alertmanager.yml",
        "./deploy/grafana/provisioning",
        "./deploy/grafana/dashboards",
        "./deploy/proxy",
    }
    assert all((ROOT / path).exists() for path in paths)
    assert set(mounted) - paths == set(COMPOSE["volumes"])


def test_a_first_start_needs_no_variable() -> None:
    """One that stays empty is one that is off by default."""
    unset = [name for name, default in interpolated().items() if not default]
    assert sorted(unset) == ["ADVISOR_PUBLIC_ORIGIN", "ADVISOR_RUNBOOKS"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What `make secrets` makes."""
    for _ in range(2):  # The second time changes nothing.
        said = make_secrets(tmp_path / "secrets")
    assert "already" in said
    return tmp_path / "secrets"


def make_secrets(folder: Path) -> str:
    """What it says, on a machine that has Python alone."""
    command = [sys.executable, "-S", "-m", "app.local.compose", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_secret_that_the_compose_file_names_is_made_and_only_its_owner_gets_at_it(
    made: Path,
) -> None:
    named = [file for service in SERVICES.values() for file in service.get("env_file", [])]
    named += [
        volume.split(":")[0].removeprefix("./")
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./deploy/secrets/")
    ]
    assert len(named) >= 9
    for name in named:
        assert (made / name.removeprefix("deploy/secrets/")).exists(), name
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for place in made.glob("*.env"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    text = (ROOT / "docker-compose.yml").read_text()
    assert "local-only" not in text
    assert "PASSWORD:" not in text


def test_what_is_made_fits_the_program(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    migrate, service, drift = (
        variables(made / f"{n}.env") for n in ("migrate", "service", "drift")
    )
    for name, value in (migrate | {"DATABASE_URL": service["DATABASE_URL"]}).items():
        monkeypatch.setenv(name, value)
    assert set(migrate) | set(service) <= setting_names()
    logins = read_settings().logins
    assert set(logins) == {"advisor_writer", "advisor_reader", "advisor_analyst"}
    assert f"advisor_writer:{logins['advisor_writer']}@" in service["DATABASE_URL"]
    assert f"advisor_reader:{logins['advisor_reader']}@" in drift["DATABASE_URL"]
    known = Tokens(made / "tokens" / "tokens.json", made / "uses")
    now = datetime.now(UTC)
    agent = known.holder_of(variables(made / "agent.env")["ADVISOR_TOKEN"], now)
    operator = known.holder_of(variables(made / "operator.env")["ADVISOR_ADMIN_TOKEN"], now)
    scraper = known.holder_of((made / "metrics_token").read_text().strip(), now)
    assert isinstance(agent, Principal)
    assert (agent.name, agent.roles) == ("agent", {"agent", "metrics"})
    assert isinstance(operator, Principal)
    assert operator.may(access.Role.OPERATOR)
    assert isinstance(scraper, Principal)
    assert scraper.roles == {"metrics"}
    watcher = known.holder_of(variables(made / "notices.env")["ADVISOR_TOKEN"], now)
    assert isinstance(watcher, Principal)
    assert watcher.roles == {"reader", "metrics"}
    TokenFile(made / "tokens" / "tokens.json").create("desk", [access.Role.AGENT])
    assert stat.S_IMODE((made / "tokens" / "tokens.json").stat().st_mode) == 0o644


def test_secrets_of_before_get_what_a_later_release_needs_and_stay(made: Path) -> None:
    (made / "notices.env").unlink()
    place = made / "tokens" / "tokens.json"
    before = json.loads(place.read_text())["tokens"]
    older = [token for token in before if token["name"] != "notices"]
    place.write_text(json.dumps({"tokens": older}))
    agent = (made / "agent.env").read_text()
    make_secrets(made)
    after = json.loads(place.read_text())["tokens"]
    assert after[:-1] == older
    known = Tokens(place, made / "uses")
    token = variables(made / "notices.env")["ADVISOR_TOKEN"]
    assert isinstance(known.holder_of(token, datetime.now(UTC)), Principal)
    assert (made / "agent.env").read_text() == agent


def test_logs_of_every_service_are_bounded() -> None:
    for name, service in SERVICES.items():
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_every_service_has_limits_and_meets_only_whom_it_needs() -> None:
    for name, service in SERVICES.items():
        assert {"mem_limit", "pids_limit", "networks"} <= set(service), name
    reach = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert set().union(*reach.values()) == set(COMPOSE["networks"])
    for server in ("postgres", "valkey"):
        for stranger in ("agent", "notices", "prometheus", "alertmanager", "grafana", "vllm"):
            assert not reach[server] & reach[stranger], (server, stranger)
    assert not reach["drift"] & reach["valkey"]
    for asker, asked in (
        *(("agent", "api"), ("api", "vllm"), ("notices", "api"), ("alertmanager", "notices")),
        *(("prometheus", "writer"), ("prometheus", "alertmanager")),
    ):
        assert reach[asker] & reach[asked]


@pytest.mark.parametrize("service", OURS)
def test_every_variable_that_a_service_gets_is_a_setting(service: str) -> None:
    assert set(SERVICES[service]["environment"]) <= setting_names()


def test_every_number_that_a_person_may_set_reaches_the_api() -> None:
    """As do the engine and whatever else is no path, address or secret of another container."""
    numbers = {
        variable(name)
        for name, field in Settings.model_fields.items()
        if field.annotation in (int, float) and name not in ("port", "writer_metrics_port")
    }
    handed_on = set(SERVICES["api"]["environment"])
    assert numbers | {"ADVISOR_ENGINE", "MODEL", "ADVISOR_SHADOW_MODELS"} <= handed_on


def test_every_variable_that_the_image_sets_for_the_program_is_a_setting() -> None:
    names = {
        name
        for step in lineage("advisor")
        if step.name == "ENV"
        for name in re.findall(r"(\w+)=", step.text)
    }
    assert {name for name in names if name.startswith("ADVISOR_")} <= setting_names()
    assert "ADVISOR_SHIPPED_MODELS" in names


@pytest.mark.parametrize("file", ["demo.env", "gpu.env", "tls.env"])
def test_the_compose_file_uses_every_variable_of_an_env_file(file: str) -> None:
    given = variables(ROOT / "deploy" / file)
    assert given.pop("COMPOSE_PROFILES") == file.removesuffix(".env")
    passed_on = {name for name, value in SERVICES["api"]["environment"].items() if value is None}
    assert given
    assert set(given) <= set(interpolated()) | passed_on


def test_the_api_judges_by_the_clock_and_the_demo_by_the_scenario(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = api_settings(monkeypatch, {})
    assert (live.clock, live.limits, live.vllm_url) == (Clock.WALL, Path("limits.toml"), None)
    assert (live.host, live.port, live.admin_token) == ("0.0.0.0", 8321, None)
    demo = api_settings(monkeypatch, variables(ROOT / "deploy" / "demo.env"))
    assert demo.clock is Clock.REQUEST
    assert read_limits(ROOT / demo.limits).version.endswith("-replay")


def test_the_api_of_the_gpu_profile_asks_vllm_by_the_name_under_which_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = variables(ROOT / "deploy" / "gpu.env")
    settings = api_settings(monkeypatch, given)
    command = [resolved(word, given) for word in SERVICES["vllm"]["command"]]
    assert f"--served-model-name={settings.vllm_model}" in command
    assert f"--model={settings.model}" in command
    assert settings.vllm_url == "http://vllm:8000"
    assert "--port=8000" in command


def test_the_agent_refuses_an_api_that_judges_history_by_the_clock() -> None:
    (script,) = SERVICES["agent"]["command"]
    for clock in ({}, {"ADVISOR_CLOCK": "wall"}):
        done = subprocess.run(
            ["/bin/sh", "-c", script.replace("$$", "$")], env=clock, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "--env-file deploy/demo.env" in done.stderr


def test_every_limits_file_that_a_variable_may_name_is_in_the_image() -> None:
    copied = [
        word for step in lineage("advisor") if step.name == "COPY" for word in step.text.split()
    ]
    assert {"limits.toml", "deploy/limits.replay.toml"} <= set(copied)


def test_what_stays_up_has_a_health_check_and_a_job_has_none() -> None:
    for name, service in SERVICES.items():
        check = service.get("healthcheck", {})
        if service["restart"] == "unless-stopped":
            target = service["build"]["target"] if "build" in service else None
            in_image = target and any(step.name == "HEALTHCHECK" for step in lineage(target))
            assert "test" in check or in_image, name
        else:
            assert check == {"disable": True}, name


def test_nothing_waits_for_a_service_that_cannot_become_what_it_waits_for() -> None:
    jobs = {name for name, service in SERVICES.items() if service["restart"] != "unless-stopped"}
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in jobs else "service_healthy"
            assert how["condition"] == expected, f"{name} waits for {needed}"


def health_check(port: int) -> int:
    """The image's own check, with this Python."""
    _, *arguments = Step(
        "HEALTHCHECK", {}, last("advisor", "HEALTHCHECK").text.removeprefix("CMD").strip()
    ).words()
    environment = {"ADVISOR_PORT": str(port)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True
    ).returncode


def test_the_image_is_healthy_exactly_when_healthz_answers_with_200() -> None:
    with answering(200) as (port, paths):
        assert health_check(port) == 0
    assert paths == ["/healthz"]
    assert health_check(port) == 1  # Nobody listens there any more.
    with answering(503) as (port, _):
        assert health_check(port) == 1


def test_services_run_commands_that_exist() -> None:
    commands = {
        command.name or command.callback.__name__
        for command in advisor.registered_commands
        if command.callback
    }
    commands |= {str(group.name) for group in advisor.registered_groups}
    assert {SERVICES[name]["command"][0] for name in OURS} <= commands
    assert last("advisor", "CMD").words() == ["serve"]
    assert last("advisor", "ENTRYPOINT").words() == ["advisor"]


@pytest.mark.parametrize("stage", ["advisor", "trainer"])
def test_an_image_runs_as_a_numbered_user_that_is_not_root(stage: str) -> None:
    user, group = last(stage, "USER").text.split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_default_image_is_the_service() -> None:
    assert list(stages())[-1] == "advisor"


@pytest.mark.parametrize(
    "service",
    [
        *("api", "writer", "migrate", "notices", "agent", "drift"),
        *("prometheus", "alertmanager", "grafana"),
    ],
)
def test_a_container_can_write_to_its_volumes_only_and_has_no_capability(service: str) -> None:
    options = SERVICES[service]
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]


def test_the_spool_outlives_the_container() -> None:
    (home,) = re.findall(r"ADVISOR_HOME=(/var\S+)", (ROOT / "Dockerfile").read_text())
    assert f"advisor:{home}" in SERVICES["api"]["volumes"]


def test_valkey_keeps_every_write_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["valkey"]["command"])
    assert "--appendonly yes --appendfsync always" in command
    assert "requirepass" not in command, "arguments are for everybody to see"
    assert "--maxmemory-policy noeviction" in command


def test_prometheus_and_grafana_ask_services_that_exist() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    scraped = [config["static_configs"][0]["targets"] for config in prometheus["scrape_configs"]]
    assert scraped == [["api:8321"], ["writer:8322"], ["drift:8323"], ["notices:8324"]]
    posted = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert posted == ["alertmanager:9093"]
    assert Settings.model_fields["writer_metrics_port"].default == 8322
    sources = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/shadow-advisor.yml").read_text()
    )
    dashboards = provider["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{dashboards}:ro" in SERVICES["grafana"]["volumes"]


def test_what_the_dockerfile_copies_reaches_the_builder() -> None:
    context = context_files()
    for step in parse((ROOT / "Dockerfile").read_text()):
        if step.name == "COPY" and "from" not in step.flags:
            for source in step.text.split()[:-1]:
                assert any(name == source or name.startswith(f"{source}/") for name in context), (
                    source
                )


def test_what_one_stage_takes_from_another_exists() -> None:
    sources = [
        step.flags["from"] for steps in stages().values() for step in steps if "from" in step.flags
    ]
    assert sources
    assert set(sources) <= set(stages())


def test_only_what_the_dockerfile_copies_reaches_the_builder() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    for path in (
        ".env",
        ".git/config",
        "var/postgres/password",
        "tests/builders.py",
        "deploy/demo.env",
        "docs/vetoes.md",
    ):
        assert ignored(path, patterns), path
    for path in (
        "app/cli/__main__.py",
        "app/policy/port.py",
        "migrations/env.py",
        "limits.toml",
        "deploy/limits.replay.toml",
    ):
        assert not ignored(path, patterns), path
    assert ignored("app/policy/__pycache__/base.cpython-311.pyc", patterns)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("app", "app/cli/__main__.py", True),
        ("app", "application/cli.py", False),
        ("*.md", "README.md", True),
        ("*.md", "docs/runbook.md", False),
        ("**/*.md", "README.md", True),
        ("**/*.md", "docs/decisions/0001.md", True),
        ("docs/**", "docs/decisions/0001.md", True),
        ("limits.tom?", "limits.toml", True),
        ("# app", "app/cli/__main__.py", False),
    ],
)
def test_a_pattern_of_dockerignore_leaves_out_what_an_engine_would(
    pattern: str, path: str, expected: bool
) -> None:
    assert ignored(path, [pattern]) is expected


def test_the_last_pattern_of_dockerignore_decides() -> None:
    assert not ignored("app/cli/__main__.py", ["*", "!app"])
    assert ignored("app/cli/__main__.py", ["*", "!app", "app/cli/__main__.py"])


def test_a_dockerfile_is_read_with_comments_continuations_and_flags() -> None:
    text = (
        '# why\nRUN --mount=type=cache,target=/c \\\n    a && \\\n    # not this\n    b\nCMD ["x'
        ' y", "z"]\n'
    )
    run, command = parse(text)
    assert (run.name, run.flags) == ("RUN", {"mount": "type=cache,target=/c"})
    assert run.words() == ["a", "&&", "b"]
    assert command.words() == ["x y", "z"]


def test_versions_that_stand_in_two_places_agree() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (wheels,) = re.findall(r"^DATA_WHEELS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    locked = "".join(
        (ROOT / f"deploy/locks/{name}.txt").read_text()
        for name in re.findall(r"--no-deps -r deploy/locks/(\w+)\.txt", dockerfile)
    )
    assert set(wheels.split()) == set(re.findall(r"^[a-z0-9-]+==[0-9.]+", locked, re.MULTILINE))
    (vllm,) = re.findall(
        r"^version=(.*)$", (ROOT / "tests/policy/start_vllm.sh").read_text(), re.MULTILINE
    )
    assert f"vllm/vllm-openai:v{vllm} " in dockerfile
    (version,) = re.findall(
        r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert {s["image"].split(":")[1] for s in SERVICES.values() if "build" in s} == {version}
