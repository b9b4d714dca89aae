"""`advisor` as real processes, which can be killed, and which end with the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from app.local.servers import die_with_parent, free_port
from tests.service.running import ROOT, until

START_S = 120.0
"""A process may take that long to start on a busy machine."""
OURS = ("ADVISOR_", "DATABASE_URL", "REDIS_URL", "MODEL", "VLLM_URL")


def environment(home: Path, **variables: Any) -> dict[str, str]:
    """This process' environment without the service's variables, but for those given:
    `database_url=...`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    ours = {
        "MODEL": "scripted",
        "ADVISOR_HOME": home,
        "ADVISOR_OPEN": "loopback",
        "ADVISOR_LIMITS": ROOT / "limits.toml",
        "ADVISOR_PORT": free_port(),
        "ADVISOR_WRITER_METRICS_PORT": free_port(),
    }
    ours |= {name.upper(): value for name, value in variables.items()}
    return plain | {name: str(value) for name, value in ours.items() if value is not None}


def descriptors(pid: int) -> set[str]:
    """What the open files of a process are, but for those that it closes meanwhile."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(each))
    return found


def bearer() -> dict[str, str]:
    """The header of whoever asks: the token in ADVISOR_TOKEN, where there is one."""
    token = os.environ.get("ADVISOR_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def advisor(
    variables: Mapping[str, str], *arguments: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """One `advisor` command, run to its end."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(
        command,
        env=dict(variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Child:
    """`advisor serve` or `advisor writer`: start it, kill it, start it again."""

    def __init__(self, command: str, variables: Mapping[str, str], log: Path) -> None:
        self._arguments = [sys.executable, "-m", "app.cli", command]
        self._variables = dict(variables)
        self._log = log
        port = variables["ADVISOR_PORT" if command == "serve" else "ADVISOR_WRITER_METRICS_PORT"]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._variables,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGKILL),
            )

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def ended(self, within_s: float = 60.0) -> int:
        """Its status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(within_s)

    @property
    def said(self) -> str:
        """Its own words."""
        return self._log.read_text(errors="replace")

    async def ready(self) -> None:
        """Wait until it answers; a token is asked for where it needs one."""
        async with httpx.AsyncClient(base_url=self.url) as client:

            async def answers() -> bool:
                assert self._process is not None
                assert self._process.poll() is None, self.said
                try:
                    return (await client.get("/metrics")).status_code in (200, 401)
                except httpx.TransportError:
                    return False

            await until(answers, START_S)

    async def restart(self) -> None:
        """Kill it, start it, wait until it answers."""
        await asyncio.to_thread(self.kill)
        self.start()
        await self.ready()


async def losses(*urls: str) -> dict[str, float]:
    """`advisor_losses_total` by cause, as several processes count it now."""
    found: dict[str, float] = {}
    async with httpx.AsyncClient() as client:
        for url in urls:
            for line in (await client.get(f"{url}/metrics")).text.splitlines():
                if line.startswith("advisor_losses_total{"):
                    name, value = line.rsplit(" ", 1)
                    cause = name.split('"')[1]
                    found[cause] = found.get(cause, 0) + float(value)
    return found
