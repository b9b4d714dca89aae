"""A real Prometheus for tests: from PATH, else Debian's package, unpacked without installing it."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from app.local.servers import EmbeddedServer

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "var" / "tools"
APT_TIMEOUT_S = 120


class Tools(NamedTuple):
    """Paths of the two programs."""

    prometheus: Path
    promtool: Path


def find_tools() -> Tools:
    """Both programs; skips the test, saying why, where there are none and no apt to bring them."""
    prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if prometheus and promtool:
        return Tools(Path(prometheus), Path(promtool))
    unpacked = CACHE / "prometheus"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            _unpack(unpacked)
    binaries = unpacked / "usr" / "bin"
    return Tools(binaries / "prometheus", binaries / "promtool")


def _unpack(target: Path) -> None:
    """Download Debian's package and unpack it; complete, or not there."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip(
            "promtool and prometheus are not on PATH, and there is no apt-get to download them with"
        )
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        directory = Path(scratch)
        _download(directory)
        (package,) = directory.glob("prometheus_*.deb")
        subprocess.run(
            ["dpkg", "-x", package, directory / "unpacked"], check=True, timeout=APT_TIMEOUT_S
        )
        (directory / "unpacked").rename(target)


def _download(directory: Path) -> None:
    """`apt-get download`; without the system's package lists, with lists of our own, for which
    nobody need be root."""
    plain = ["apt-get", "-o", "APT::Sandbox::User=root"]
    lists = directory / "lists"
    (lists / "partial").mkdir(parents=True)
    own = [*plain, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={directory / 'cache'}"]
    package = ["download", "prometheus"]
    said = ""
    for commands in ([[*plain, *package]], [[*own, "update"], [*own, *package]]):
        for command in commands:
            try:
                done = subprocess.run(
                    command, cwd=directory, capture_output=True, text=True, timeout=APT_TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                said = f"{' '.join(command[-2:])} took longer than {APT_TIMEOUT_S} s"
                break
            said = done.stderr.strip()
            if done.returncode != 0:
                break
        else:
            return
    pytest.skip(
        f"promtool and prometheus are not on PATH, and apt-get cannot download them: {said[-300:]}"
    )


class Prometheus(EmbeddedServer):
    """A Prometheus on a configuration file; it ends with this process."""

    name = "prometheus"
    stop_signal = signal.SIGTERM

    def __init__(self, tools: Tools, configuration: Path, directory: Path) -> None:
        super().__init__(directory)
        self._tools = tools
        self._configuration = configuration

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        """Its own data directory is all it needs, and it makes that itself."""

    def _command(self) -> list[str]:
        return [
            str(self._tools.prometheus),
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False
