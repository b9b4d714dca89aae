"""The embedded servers: data survive, nothing outlives its parent, and nobody else gets in."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from time import monotonic, sleep

import psycopg
import pytest
import redis

from app.local import servers
from app.local.servers import (
    NOBODY,
    EmbeddedPostgres,
    EmbeddedServerError,
    EmbeddedValkey,
    free_port,
)
from tests.conftest import open_directory
from tests.service.processes import descriptors

Server = EmbeddedPostgres | EmbeddedValkey
DEADLINE_S = 30
BOTH = pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
LISTEN = "0A"
BUSY = "DO 'DECLARE n bigint := 0; BEGIN WHILE n < 30000000 LOOP n := n + 1; END LOOP; END'"
AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'"


@pytest.fixture
def home() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def write(server: Server) -> None:
    """Store something, and stay connected: a crash finds open sessions."""
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(plain(server.url)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    else:
        with redis.Redis.from_url(server.url) as client:
            client.rpush("kept", *range(1000))


def rows(server: Server) -> int:
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(plain(server.url)) as connection:
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
            assert row is not None
            return int(row[0])
    with redis.Redis.from_url(server.url) as client:
        return int(client.llen("kept"))


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@BOTH
def test_data_and_the_port_survive_kill_9_and_a_stop(kind: type[Server], home: Path) -> None:
    with kind(home / "data") as server:
        write(server)
        first = server.pid
        for end in (server.kill, server.stop):
            end()
            assert server.pid is None
            assert refuses(server.port)
            server.start()
            assert rows(server) == 1000
        assert server.pid != first
    with kind(home / "data") as again:
        assert again.port == server.port
        assert rows(again) == 1000
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", server.port))
        holder.listen()
        with kind(home / "data") as elsewhere:
            assert elsewhere.port != server.port, "somebody else has it now"
            assert rows(elsewhere) == 1000


def test_a_crash_with_a_session_at_work_is_recovered(home: Path) -> None:
    """A busy backend does not notice at once that its postmaster died, and keeps the memory that
    both share."""
    with EmbeddedPostgres(home / "data") as server:
        write(server)
        with (
            psycopg.connect(plain(server.url), autocommit=True) as watcher,
            psycopg.connect(plain(server.url)) as busy,
        ):
            busy.execute("INSERT INTO kept VALUES (1001)")
            busy.pgconn.send_query(BUSY.encode())
            until(lambda: watcher.execute(AT_WORK).fetchone() == (1,))
            server.kill()
            server.start()
            assert rows(server) == 1000, "what was not committed is gone, what was is there"
            busy.close()


def test_a_session_that_is_frozen_does_not_keep_a_crashed_server_from_starting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ORPHANS_S", 0.5)
    with EmbeddedPostgres(home / "data") as server:
        write(server)
        with psycopg.connect(plain(server.url)) as session:
            os.kill(session.info.backend_pid, signal.SIGSTOP)
            server.kill()
            server.start()
        assert rows(server) == 1000


def test_a_stale_pid_file_whose_number_another_process_has_is_no_server(home: Path) -> None:
    server = EmbeddedPostgres(home / "data")
    with server:
        write(server)
        left = server.directory / "cluster" / "postmaster.pid"
        text = left.read_text()
    user = NOBODY if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "600"], user=user) as another:
        left.write_text(text.replace(text.splitlines()[0], str(another.pid), 1))
        with server:
            assert rows(server) == 1000
        assert another.poll() is None
        another.kill()


def test_only_a_cluster_that_was_never_finished_is_made_anew(home: Path) -> None:
    server = EmbeddedPostgres(home / "data")
    with server:
        write(server)
    control = server.directory / "cluster" / "global" / "pg_control"
    content = control.read_bytes()
    control.unlink()
    for sign in ("cluster.finished", "cluster/postmaster.opts"):
        assert server.finished
        with pytest.raises(EmbeddedServerError):
            server.start()
        (server.directory / sign).unlink()
    assert not server.finished, "what a kill within initdb leaves: a version, and no server's trace"
    assert (server.directory / "cluster" / "PG_VERSION").exists()
    with server:
        assert control.read_bytes() != content
        write(server)


@BOTH
def test_what_a_server_writes_is_private(kind: type[Server], home: Path) -> None:
    with kind(home / "data") as server:
        write(server)
        files = [path for path in server.directory.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}
        mode = stat.S_IMODE(server.directory.stat().st_mode)
        assert mode == (0o711 if kind is EmbeddedPostgres and os.geteuid() == 0 else 0o700)


PARENT = """
import sys
from pathlib import Path
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
home = Path(sys.argv[1])
servers = [EmbeddedPostgres(home / "postgres"), EmbeddedValkey(home / "valkey")]
for server in servers:
    server.start()
print(*(server.port for server in servers), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux'")
def test_the_servers_end_when_their_parent_is_killed_and_another_parent_takes_over(
    home: Path,
) -> None:
    command = [sys.executable, "-c", PARENT, str(home)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        ports = [int(port) for port in parent.stdout.readline().split()]
        assert not any(refuses(port) for port in ports)
        with pytest.raises(
            EmbeddedServerError, match=r"in use by another running instance.*ADVISOR_HOME"
        ):
            EmbeddedPostgres(home / "postgres").start()
        parent.kill()
    for kind, name in ((EmbeddedPostgres, "postgres"), (EmbeddedValkey, "valkey")):
        with kind(home / name) as heir:
            write(heir)
            assert rows(heir) == 1000
    until(lambda: all(refuses(port) for port in ports))


@BOTH
def test_a_second_instance_on_a_directory_is_refused_and_the_first_goes_on(
    kind: type[Server], home: Path
) -> None:
    with kind(home / "data") as server:
        write(server)
        second = kind(home / "data")
        with pytest.raises(
            EmbeddedServerError, match="is in use by another running instance: stop it, or set"
        ):
            second.start()
        assert second.pid is None
        assert rows(server) == 1000


@BOTH
def test_a_port_that_is_taken_is_named_and_nothing_is_made(kind: type[Server], home: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = kind(home / "data", port)
        with pytest.raises(EmbeddedServerError, match=f"port {port} on 127.0.0.1 is taken"):
            server.start()
        assert server.pid is None
        assert [path.name for path in (home / "data").iterdir()] == ["lock"]
    with server:
        assert not refuses(port), "the directory was released, and the port is free now"


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses on which a process accepts TCP connections, from /proc."""
    sockets = {
        link.removeprefix("socket:[").removesuffix("]")
        for link in descriptors(pid)
        if link.startswith("socket:[")
    }
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in sockets:
                address, port = fields[1].split(":")
                words = [
                    bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)
                ]
                found.add((str(ip_address(b"".join(words))), int(port, 16)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@BOTH
def test_only_the_loopback_listens_and_no_unix_socket(kind: type[Server], home: Path) -> None:
    with kind(home / "data") as server:
        assert server.pid is not None
        assert listening(server.pid) == {("127.0.0.1", server.port)}
        assert not [path for path in home.rglob("*") if path.is_socket()]


def test_a_wrong_password_and_none_are_refused_by_postgres(home: Path) -> None:
    with EmbeddedPostgres(home / "data") as server:
        for url in (
            server.url.replace(server.password, "wrong"),
            server.url.replace(f":{server.password}", ""),
        ):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(plain(url))
        with psycopg.connect(plain(server.url)) as connection:
            row = connection.execute(
                "SELECT rolpassword FROM pg_authid WHERE rolname = 'advisor'"
            ).fetchone()
        assert row is not None
        assert row[0].startswith("SCRAM-SHA-256$")


def test_a_wrong_password_and_none_are_refused_by_valkey(home: Path) -> None:
    with EmbeddedValkey(home / "data") as server:
        for url in (
            server.url.replace(server.password, "wrong"),
            server.url.replace(f":{server.password}@", ""),
        ):
            with redis.Redis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
                client.ping()


@BOTH
def test_secrets_are_for_the_owner_and_differ_between_directories(
    kind: type[Server], home: Path
) -> None:
    with kind(home / "one") as one:
        secret = [
            path
            for path in (home / "one").rglob("*")
            if path.is_file() and contains(path, one.password)
        ]
        assert home / "one" / "password" in secret
        assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
        assert kind(home / "one").password == one.password
    (home / "two").mkdir()
    assert kind(home / "two").password != one.password


def contains(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_under_root_postgres_runs_as_nobody_and_valkey_as_root(home: Path) -> None:
    with EmbeddedPostgres(home / "postgres") as postgres, EmbeddedValkey(home / "valkey") as valkey:
        assert postgres.pid is not None
        assert valkey.pid is not None
        assert user_of(postgres.pid) == NOBODY
        assert user_of(valkey.pid) == 0


@pytest.fixture
def state(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data lie that cannot lie where they were asked for."""
    monkeypatch.setattr(servers, "STATE", home / "state")
    return home / "state"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_under_root_a_private_folder_stays_private_and_the_data_are_found_again(
    home: Path, state: Path
) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    server = EmbeddedPostgres(private / "data")
    try:
        with server:
            write(server)
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert server.directory.parent == state
        with EmbeddedPostgres(private / "data") as again:
            assert (again.port, rows(again)) == (server.port, 1000)
            with pytest.raises(EmbeddedServerError, match="in use"):
                EmbeddedPostgres(private / "data").start()
    finally:
        server.remove()
    assert not server.directory.exists()


def test_the_default_state_is_not_temporary() -> None:
    assert not servers.STATE.is_relative_to(tempfile.gettempdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_record_under_the_temporary_directory_is_moved_to_its_place(
    home: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    temporary = home / "temporary"
    temporary.mkdir()
    with EmbeddedPostgres(private / "data") as server:
        write(server)
    server.directory.rename(temporary / f"advisor-{server.directory.name}")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with EmbeddedPostgres(private / "data") as moved:
        assert moved.directory == server.directory
        assert rows(moved) == 1000
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_any_place_for_the_data_it_is_refused_in_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "private").mkdir(mode=0o700)
    monkeypatch.setattr(servers, "STATE", home / "private" / "state")
    with pytest.raises(EmbeddedServerError, match=r"can use neither .* set ADVISOR_HOME"):
        EmbeddedPostgres(home / "private" / "data")


@BOTH
def test_what_is_removed_leaves_nothing_and_can_be_made_anew(
    kind: type[Server], home: Path
) -> None:
    server = kind(home / "data")
    server.start()
    server.remove()
    assert server.pid is None
    assert list(home.iterdir()) == []
    with kind(home / "data") as again:
        write(again)
        assert rows(again) == 1000


@BOTH
def test_a_directory_that_cannot_be_made_is_named(kind: type[Server], home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(
        EmbeddedServerError, match="file/data cannot be written: Not a directory; set ADVISOR_HOME"
    ):
        kind(home / "file" / "data").start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@BOTH
def test_a_directory_that_cannot_be_written_is_named(kind: type[Server], home: Path) -> None:
    (home / "data").mkdir(mode=0o500)
    for directory in (home / "data", home / "data" / "below"):
        with pytest.raises(
            EmbeddedServerError, match="cannot be written: Permission denied; set ADVISOR_HOME"
        ):
            kind(directory).start()


def test_a_server_that_cannot_start_says_what_its_log_says(home: Path) -> None:
    with EmbeddedPostgres(home / "data") as server:
        pass
    (home / "data" / "cluster" / "PG_VERSION").write_text("12\n")
    with pytest.raises(
        EmbeddedServerError, match=r"postgres did not start .*initialized by PostgreSQL version 12"
    ):
        server.start()
    assert server.pid is None


def test_an_interrupted_initialisation_is_begun_anew(home: Path) -> None:
    half = home / "data" / "cluster"
    half.mkdir(parents=True)
    (half / "global").mkdir()
    with EmbeddedPostgres(home / "data") as server:
        write(server)
        assert rows(server) == 1000


@BOTH
def test_a_server_that_died_by_itself_shows_and_starts_again(
    kind: type[Server], home: Path
) -> None:
    with kind(home / "data") as server:
        write(server)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: server.pid is None)
        server.stop()
        server.start()
        assert rows(server) == 1000


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        port = free_port()
        probe.bind(("127.0.0.1", port))
        assert probe.getsockname()[1] == port
