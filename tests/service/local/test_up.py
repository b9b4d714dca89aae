"""`advisor up`: one process that looks after four others, whichever of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.local.servers import die_with_parent
from tests.conftest import open_directory
from tests.service.processes import advisor, environment
from tests.service.running import ROOT, request, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid: int) -> dict[str, int]:
    """Process ids of the parts of a running `advisor up`."""
    found: dict[str, int] = {}
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        arguments = Path(f"/proc/{word}/cmdline").read_bytes().decode().split("\0")
        name = (
            arguments[3]
            if "app.cli" in arguments
            else Path(f"/proc/{word}/comm").read_text().strip()
        )
        found[name] = int(word)
    return found


class Up:
    """A running `advisor up`."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, http: httpx.AsyncClient
    ) -> None:
        self.pid = process.pid
        self.process = process
        self.http = http
        self._log = log

    @property
    def said(self) -> str:
        """Everything that it and its parts printed."""
        return self._log.read_text(errors="replace")

    async def ready(self) -> None:
        """Wait until every dependency answers."""

        async def answers() -> bool:
            assert self.process.poll() is None, self.said
            try:
                return bool((await self.http.get("/readyz")).json()["status"] == "ready")
            except httpx.TransportError:
                return False

        await until(answers)

    async def replaced(self, name: str, pid: int) -> None:
        """Wait until another process has taken a part's place."""

        async def another() -> bool:
            assert self.process.poll() is None, self.said
            return children(self.pid).get(name, pid) != pid

        await until(another)


@pytest.fixture
async def up() -> AsyncIterator[Up]:
    with open_directory() as home:
        variables, log = environment(home / "home"), home / "up.log"
        parent = os.getpid()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "up"],
                env=variables,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
            )
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{variables['ADVISOR_PORT']}"
            ) as http:
                running = Up(process, log, http)
                await running.ready()
                yield running
        finally:
            process.terminate()
            process.wait(60)


async def test_whatever_is_killed_is_started_again_and_no_answer_is_lost(up: Up) -> None:
    answered = []
    for number, name in enumerate(("postgres", "valkey-server", "serve", "writer")):
        answered.append(
            (await up.http.post("/advise", json=request(f"r-{number}"))).json()["decision_id"]
        )
        pid = children(up.pid)[name]
        os.kill(pid, signal.SIGKILL)
        await up.replaced(name, pid)
        await up.ready()
    for name in ("postgres", "valkey", "serve", "writer"):
        assert up.said.count(f"{name} ended") == 1
    for known in answered:
        assert (await up.http.get(f"/decisions/{known}")).status_code == 200


def test_a_command_runs_beside_the_service_and_its_status_is_the_status() -> None:
    program = (
        "import os, urllib.request as u; print(u.urlopen(os.environ['ADVISOR_URL'] +"
        " '/readyz').read().decode())"
    )
    with open_directory() as home:
        script = home / "look.py"
        script.write_text(f"{program}\nraise SystemExit(3)\n")
        done = advisor(
            environment(home / "home"), "up", "--exit", "--then", f"{sys.executable} {script}"
        )
    assert done.returncode == 3, done.stderr
    (report,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert report["status"] == "ready"
    assert "Rows in Postgres" in done.stderr
