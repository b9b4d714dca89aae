"""`advisor up`: one process that looks after four others, whichever of them dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from app.local.servers import die_with_parent
from app.local.up import StartError, _wait_until_ready
from tests.conftest import open_directory
from tests.service.processes import advisor, environment
from tests.service.running import ROOT, request, running, settings_for, until

START_S = 120.0
"""Four processes start at once, beside whatever else the machine does."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid: int) -> dict[str, int]:
    """Process ids of the parts of a running `advisor up`."""
    found: dict[str, int] = {}
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    for word in " ".join(lists).split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            arguments = Path(f"/proc/{word}/cmdline").read_bytes().decode().split("\0")
            name = (
                arguments[3]
                if "app.cli" in arguments
                else Path(f"/proc/{word}/comm").read_text().strip()
            )
            found[name] = int(word)
    return found


def arguments_of_all_processes() -> str:
    """Every command line of this machine, as everybody may read it."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines.append((process / "cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(lines)


class Up:
    """A running `advisor up`."""

    def __init__(self, home: Path, log: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.variables = variables
        self.http: httpx.AsyncClient
        self._log = log
        self._told = 0
        self.start()

    def start(self) -> None:
        parent = os.getpid()
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "up"],
                env=self.variables,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """Everything that it and its parts printed."""
        return self._log.read_text(errors="replace")

    @property
    def newly_said(self) -> str:
        """What this test made it print."""
        return self.said[self._told :]

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """One test's way to ask it; what the tests before left is in order."""
        self._told = len(self.said)
        url = f"http://127.0.0.1:{self.variables['ADVISOR_PORT']}"
        async with httpx.AsyncClient(base_url=url) as self.http:
            await self.ready()
            yield

    async def ready(self) -> None:
        """Wait until every dependency answers."""

        async def answers() -> bool:
            assert self.process.poll() is None, self.said
            try:
                return bool((await self.http.get("/readyz")).json()["status"] == "ready")
            except httpx.TransportError:
                return False

        await until(answers, START_S)

    async def replaced(self, name: str, pid: int) -> None:
        """Wait until another process has taken a part's place."""

        async def another() -> bool:
            assert self.process.poll() is None, self.said
            return children(self.pid).get(name, pid) != pid

        await until(another, START_S)


@pytest.fixture(scope="module")
def instance() -> Iterator[Up]:
    with open_directory() as directory:
        home = directory / "home"
        running = Up(home, directory / "up.log", environment(home))
        try:
            yield running
        finally:
            running.process.terminate()
            running.process.wait(60)


@pytest.fixture
async def up(instance: Up) -> AsyncIterator[Up]:
    """The same for all tests: each leaves it ready."""
    async with instance.asked():
        yield instance


def whole(up: Up) -> Callable[[], Awaitable[bool]]:
    """Whether all events are in Postgres and verify: what a killed writer had in its hands comes
    there with the next one, seconds later."""

    async def verified() -> bool:
        return advisor(up.variables, "verify").returncode == 0

    return verified


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
        assert up.newly_said.count(f"{name} ended") == 1
    for known in answered:
        assert (await up.http.get(f"/decisions/{known}")).status_code == 200


async def test_the_service_goes_on_while_postgres_cannot_be_started_and_finds_it_again(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = up.home / "addresses"
    told = addresses.read_text()
    assert stat.S_IMODE(addresses.stat().st_mode) == 0o600
    assert f"state lies in {up.home}" in up.said
    services = up.home / "pg_service.conf"
    assert stat.S_IMODE(services.stat().st_mode) == 0o600
    secrets = re.findall(r"password=(\S+)", services.read_text())
    secrets += [place.read_text().strip() for place in (up.home / "tokens").iterdir()]
    assert len(secrets) == 6
    assert not [secret for secret in secrets if secret in up.said]
    assert not [secret for secret in secrets if secret in arguments_of_all_processes()]
    assert "//advisor_writer:" in told
    await until(whole(up), START_S)
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with psycopg.connect("service=analyst") as connection:
        assert connection.execute("SELECT count(*) FROM disagreements").fetchone() == (0,)
    version = up.home / "postgres" / "cluster" / "PG_VERSION"
    right = version.read_text()
    version.write_text("12\n")
    os.kill(children(up.pid)["postgres"], signal.SIGKILL)

    async def refused() -> bool:
        assert up.process.poll() is None, up.said
        return "postgres cannot be started, the service goes on without it" in up.newly_said

    await until(refused, START_S)
    reply = (await up.http.post("/advise", json=request("without-postgres"))).json()
    assert reply["recorded"] == "stream"
    assert (await up.http.get("/readyz")).json()["status"] == "degraded"
    version.write_text(right)
    await up.ready()

    async def said() -> bool:
        return "postgres runs again" in up.newly_said

    await until(said, START_S)

    async def written() -> bool:
        found = await up.http.get(f"/decisions/{reply['decision_id']}")
        return bool(found.json().get("stored"))

    await until(written, START_S)
    assert addresses.read_text() == told


async def test_a_start_without_a_postgres_that_ran_before_serves_and_a_second_instance_is_refused(
    up: Up,
) -> None:
    up.process.terminate()
    up.process.wait(60)
    version = up.home / "postgres" / "cluster" / "PG_VERSION"
    right = version.read_text()
    version.write_text("12\n")
    up.start()

    async def serves() -> bool:
        assert up.process.poll() is None, up.said
        try:
            return (await up.http.get("/readyz")).json()["status"] == "degraded"
        except httpx.TransportError:
            return False

    await until(serves, START_S)
    with open_directory() as home:
        second = advisor({**up.variables, "ADVISOR_HOME": str(home / "home")}, "up")
        assert second.returncode == 2
        assert "stop what listens there, another `advisor up` perhaps" in second.stderr
        assert "Traceback" not in second.stderr
        assert not (home / "home").exists()
    version.write_text(right)
    await up.ready()


async def test_the_health_of_another_instance_is_not_taken_for_our_own(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path, instance="theirs")) as api:
        for instance in ("theirs", "ours"):
            environment = {
                "ADVISOR_URL": api.url,
                "ADVISOR_INSTANCE": instance,
                "ADVISOR_HOME": str(tmp_path),
            }
            waiting = asyncio.to_thread(_wait_until_ready, environment, [], [])
            if instance == "theirs":
                await waiting
            else:
                with pytest.raises(StartError, match="another instance: stop it, or set ADVISOR_P"):
                    await waiting


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
