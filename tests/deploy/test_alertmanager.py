"""An alert reaches people: a real Alertmanager on the shipped route, our own notices, a file."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import httpx
import pytest
import uvicorn
import yaml

from app.api.tokens import TokenFile, Tokens
from app.cli.health.addresses import addresses_of
from app.cli.health.noticing import Outbox, receiver
from app.domain.principal import Role
from app.local.servers import free_port
from app.settings import Settings
from tests.deploy.monitoring import PROMETHEUS, alerts
from tests.deploy.prometheus_tool import UNPACKED, Alertmanager, find_alertmanager
from tests.service.running import until

DEBIAN = Path("/usr/share/prometheus/alertmanager/default.tmpl")
"""What Debian's program reads, wherever it was unpacked."""
PAGES = "https://git.example/shadow-advisor/blob/main"


def rendered(directory: Path, url: str, token: str) -> Path:
    """The shipped route, which waits for no second alert, to this address."""
    document = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    for route in (document["route"], *document["route"]["routes"]):
        route["group_wait"] = "0s"
    [webhook] = document["receivers"][0]["webhook_configs"]
    webhook["url"] = url
    place = directory / "metrics_token"
    place.write_text(token)
    webhook["http_config"]["authorization"]["credentials_file"] = str(place)
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_every_severity_is_routed_to_people(severity: str, tmp_path: Path) -> None:
    _, amtool = find_alertmanager()
    route = rendered(tmp_path, "http://notices:8324/alerts", "token")
    subprocess.run([amtool, "check-config", route], check=True, capture_output=True)
    command = [str(amtool), "config", "routes", "test", f"--config.file={route}"]
    done = subprocess.run([*command, f"severity={severity}"], capture_output=True, text=True)
    assert done.stdout.strip() == "people", done.stderr
    assert {rule["labels"]["severity"] for rule in alerts()} == {"critical", "warning", "info"}


async def test_an_alert_is_a_line_of_the_file_with_an_absolute_link_to_the_runbook(
    tmp_path: Path,
) -> None:
    program, _ = find_alertmanager()
    if UNPACKED in program.parents and not DEBIAN.exists():
        pytest.skip(f"Debian's Alertmanager starts only where {DEBIAN} is: install the package")
    tokens = TokenFile(tmp_path / "tokens.json")
    token = tokens.create("metrics", [Role.METRICS])
    told, port = tmp_path / "notices.jsonl", free_port()
    settings = Settings(notices=f"file:{told}", runbooks=PAGES)
    known = Tokens(tokens.path, tmp_path / "uses")
    app = receiver(Outbox(addresses_of(settings)), known, settings.runbooks)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    route = rendered(tmp_path, f"http://127.0.0.1:{port}/alerts", token)
    alert = {
        "labels": {"alertname": "AdvisorApiDown", "severity": "critical"},
        "annotations": {"summary": "It is away.", "runbook": "docs/runbook.md#advisorapidown"},
    }
    with Alertmanager(program, route, tmp_path / "alertmanager") as alertmanager:
        serving = asyncio.create_task(server.serve())
        async with httpx.AsyncClient() as client:
            reply = await client.post(f"{alertmanager.url}/api/v2/alerts", json=[alert])
            assert reply.status_code == 200, reply.text

        async def arrived() -> bool:
            return told.exists() and told.read_text() != ""

        await until(arrived)
        server.should_exit = True
        await serving
    (line,) = map(json.loads, told.read_text().splitlines())
    assert line["title"] == "AdvisorApiDown fires"
    assert line["body"] == f"It is away.\n{PAGES}/docs/runbook.md#advisorapidown"
    assert line["level"] == "failure"
