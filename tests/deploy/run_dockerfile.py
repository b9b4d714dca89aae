"""Builds the Dockerfile's targets without a container engine, and tries the service that comes out
of them.

As compose would: migrate, then API and writer with a read-only root and a volume, the image's
health check, one request, the reference agent, drift, SIGTERM. Postgres and Valkey are those of the
project's own environment.

usage: python -m tests.deploy.run_dockerfile [--keep]

Run it from the repository's root; --keep leaves the stages in var/.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg

from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.local.servers import EmbeddedPostgres, EmbeddedValkey, free_port
from app.schemas import EXAMPLE
from tests.deploy.dockerfile import (
    ROOT,
    WORK,
    Builder,
    BuildError,
    Image,
    copy,
    end_with_us,
    execute,
)

START_S = 180.0
HOME = "/var/lib/advisor"
AS_READER = "?options=-crole%3Dadvisor_reader"
"""What the compose file adds to the database's address for drift: the read-only role."""


class TrialError(Exception):
    """The service from the image does not do what it should."""


class Container:
    """A process from an image, as `docker run --read-only` would have it. Use as a context
    manager."""

    def __init__(
        self, name: str, image: Image, command: list[str], env: Mapping[str, str], home: Path | None
    ) -> None:
        self.name = name
        self._line = image.sandboxed(
            [*image.entrypoint, *command], env, {home: HOME} if home else {}
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Container:
        self._process = subprocess.Popen(self._line, preexec_fn=end_with_us)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, for so long."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """The process inside, as seen from here: the only child of `unshare`."""
        assert self._process is not None
        number = self._process.pid
        return int(Path(f"/proc/{number}/task/{number}/children").read_text())

    def status(self, key: str) -> list[str]:
        """A line of the process's status in /proc."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1:] for line in lines if line.startswith(f"{key}:"))

    def stop(self) -> None:
        """What `docker stop` does. Raises `TrialError` when it does not end well."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGTERM)
        try:
            status = self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise TrialError(f"{self.name} does not end on SIGTERM") from None
        expect(status == 0, f"{self.name} ended on SIGTERM, with status {status}")


def say(text: str) -> None:
    """One line about what is being done."""
    print(f"[trial] {text}", flush=True)


def expect(fact: bool, what: str) -> None:
    """Say a fact; raise `TrialError` when it is none."""
    if not fact:
        raise TrialError(what)
    say(what)


def wait(what: str, condition: Callable[[], bool], container: Container) -> None:
    """Wait for a condition while the container runs. Raises `TrialError`."""
    begin = time.monotonic()
    while not condition():
        if container.ends_within(0.5):
            raise TrialError(f"{container.name} ended while waiting: {what}")
        if time.monotonic() - begin > START_S:
            raise TrialError(f"not within {START_S:.0f} s: {what}")
    say(f"{what}  ({time.monotonic() - begin:.1f} s)")


def succeeds(command: list[str]) -> bool:
    """Whether a command line ends with status 0, whatever it prints."""
    return subprocess.run(command, capture_output=True, preexec_fn=end_with_us).returncode == 0


def demo_variables() -> dict[str, str]:
    """What the profile `demo` gives the API."""
    lines = (ROOT / "deploy" / "demo.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line.startswith("ADVISOR_"))


def request() -> dict[str, object]:
    """The documented example, about now."""
    now = datetime.now(UTC).isoformat()
    document = json.loads(json.dumps(EXAMPLE)) | {"request_id": "container-trial-1"}
    document["candidate"]["ts"] = document["market"]["bar_closed_at"] = now
    return dict(document)


def try_service(image: Image, trainer: Image) -> None:
    """Everything that compose would do with the images. Raises `TrialError`."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(WORK / "postgres"))
        valkey = stack.enter_context(EmbeddedValkey(WORK / "valkey"))
        home = WORK / "home"
        copy(image.at(HOME), home)  # as an engine fills a new volume from the image
        shutil.copystat(image.at(HOME), home)
        owner = image.at(HOME).stat()
        os.chown(home, owner.st_uid, owner.st_gid)
        tokens = TokenFile(home / "tokens.json")
        token = tokens.create("agent", [Role.AGENT, Role.METRICS])
        os.chown(tokens.path, owner.st_uid, owner.st_gid)
        ports = {"ADVISOR_PORT": str(free_port()), "ADVISOR_WRITER_METRICS_PORT": str(free_port())}
        env = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, **ports, **demo_variables()}
        say("advisor migrate")
        execute(image.sandboxed([*image.entrypoint, "migrate"], env, {home: HOME}))
        api = stack.enter_context(Container("advisor serve", image, image.command, env, home))
        writer = stack.enter_context(Container("advisor writer", image, ["writer"], env, home))
        healthy = image.sandboxed(image.health, env)
        wait("the image's health check succeeds", lambda: succeeds(healthy), api)
        for container in (api, writer):
            expect(
                container.status("Uid")[0] == image.user.split(":")[0],
                f"{container.name} is not root",
            )
            expect(
                int(container.status("CapEff")[0], 16) == 0, f"{container.name} has no capability"
            )
        url = f"http://127.0.0.1:{ports['ADVISOR_PORT']}"
        try_advice(url, token, postgres.url, writer)
        say("advisor-train paper, from the trainer's image")
        agent = trainer.sandboxed(
            [*trainer.entrypoint, "paper", "--candidates", "3", "--url", url],
            {"COLUMNS": "120", "ADVISOR_TOKEN": token},
        )
        subprocess.run(agent, check=True, preexec_fn=end_with_us)
        api.stop()
        expect(not succeeds(healthy), "the health check fails once the API has ended")
        wait("every decision is in Postgres", lambda: rows(postgres.url) == 4, writer)
        try_drift(trainer, postgres.url)
        writer.stop()
        say("advisor verify")
        execute(image.sandboxed([*image.entrypoint, "verify"], env, {home: HOME}))


def try_advice(url: str, token: str, database: str, writer: Container) -> None:
    """One request, and its way into Postgres."""
    headers = {"X-Deadline-Ms": "20000", "Authorization": f"Bearer {token}"}
    answer = httpx.post(
        f"{url}/advise", json=request(), headers=headers, timeout=30, trust_env=False
    )
    expect(
        answer.status_code == 200,
        f"POST /advise is answered with {answer.status_code}: {answer.text[:300]}",
    )
    expect(answer.json()["probabilities"] is not None, "the model gave a proposal")
    wait("the decision is in Postgres", lambda: rows(database) == 1, writer)


def try_drift(trainer: Image, database: str) -> None:
    """A look at what was decided, in the read-only role, and its gauges."""
    port = free_port()
    env = {"DATABASE_URL": database + AS_READER, "COLUMNS": "120"}
    url = f"http://127.0.0.1:{port}/metrics"
    with Container(
        "advisor-train drift", trainer, ["drift", "--listen", str(port)], env, None
    ) as drift:
        # Four decisions are too few to conclude anything from, which is to be watched.
        wait("drift has looked, and says so", lambda: shows(url, 'verdict="watch"} 1.0'), drift)
        expect(int(drift.status("CapEff")[0], 16) == 0, f"{drift.name} has no capability")


def shows(url: str, text: str) -> bool:
    """Whether a page has a text; not while nobody answers."""
    try:
        return text in httpx.get(url, trust_env=False).text
    except httpx.TransportError:
        return False


def rows(database: str) -> int:
    """Decisions in Postgres."""
    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        found = connection.execute("select count(*) from decisions").fetchone()
        return int(found[0]) if found else 0


def main() -> int:
    """Build, try, clean up. 0 when all went well."""
    if os.geteuid() != 0:
        print(
            "run_dockerfile: only root can mount and change users: run it with sudo",
            file=sys.stderr,
        )
        return 2
    begin = time.monotonic()
    for name in ("stages", "context", "home", "postgres", "valkey"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        builder = Builder()
        try_service(builder.build("advisor"), builder.build("trainer"))
    except (BuildError, TrialError, subprocess.CalledProcessError) as error:
        print(f"run_dockerfile: {error}", file=sys.stderr)
        return 1
    finally:
        if "--keep" not in sys.argv:
            for name in ("stages", "context", "home", "postgres", "valkey"):
                shutil.rmtree(WORK / name, ignore_errors=True)
    print(
        "run_dockerfile: the images build, and the service runs from them"
        f" ({time.monotonic() - begin:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
