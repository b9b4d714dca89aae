"""What the compose file and the Dockerfile say, for tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import Step, parse
from tests.deploy.prometheus_tool import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}")


def stages() -> dict[str, list[Step]]:
    """The Dockerfile's steps by stage; the first of each is its FROM."""
    found: dict[str, list[Step]] = {}
    steps: list[Step] = []
    for step in parse((ROOT / "Dockerfile").read_text()):
        if step.name == "FROM":
            steps = found.setdefault(step.words()[-1], [])
        steps.append(step)
    return found


def lineage(stage: str) -> list[Step]:
    """The steps of a stage and of the stages that it is based on, the deepest first."""
    steps = stages()[stage]
    parent = steps[0].words()[0]
    return (lineage(parent) if parent in stages() else []) + steps


def last(stage: str, name: str) -> Step:
    """The instruction that holds: the last of its name."""
    return [step for step in lineage(stage) if step.name == name][-1]


def variables(file: Path) -> dict[str, str]:
    """What an env file sets."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def resolved(text: str, given: dict[str, str]) -> str:
    """A value as compose interpolates it."""
    return VARIABLE.sub(lambda found: given.get(found[1]) or found[2] or "", text)


def interpolated() -> dict[str, str]:
    """Every variable that the compose file interpolates, with its default."""
    return dict(VARIABLE.findall(yaml.safe_dump(COMPOSE, width=10_000)))


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that answers every request with one status: its port, and the paths that were
    asked."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()
