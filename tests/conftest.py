"""Real servers for every test that needs them: one Postgres and one Valkey per session, a fresh
database per test."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.shadow_log.schema.migrate import upgrade

# An example that takes long on a busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# Tests share the machine: read by torch and numpy when they are imported, here and in children.
os.environ["OMP_NUM_THREADS"] = "1"
# A demo that ran in this checkout left tokens in its home: they are not the tests'.
os.environ["ADVISOR_HOME"] = "/nonexistent"
_numbers = itertools.count()
ROOT = Path(__file__).parents[1]


ROOM_BYTES = 4 * 2**30
REBUILD = "evaluated"
LONG = (
    REBUILD,
    "tests/deploy/test_prometheus_live.py",
    "tests/chaos/test_rounds.py",
    "tests/service/local/test_up.py",
    "tests/service/advising/test_faults.py",
    "tests/service/api/explorer/test_browser.py",
    "tests/service/local/test_embedded.py",
    "tests/service/cli/test_cli.py",
    "tests/training/learning/teacher/test_teacher.py",
    "tests/service/api/test_bad_input.py",
    "tests/policy/versions/test_strangers.py",
)
"""What takes longest, in that order."""


class Together(LoadFileScheduling):  # type: ignore[misc]
    """In several processes (`make test`): a file runs in one of them, and so do all files that look
    at one rebuild, which takes over a minute. What is long begins first, then the files with most
    tests: otherwise a long file with two tests would come last, and one process would end alone.

    Groups by marker (`--dist loadgroup`) are without effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return REBUILD if _looks_at_the_rebuild(file) else file

    def _assign_work_unit(self, node: Any) -> None:
        first = next((scope for scope in LONG if scope in self.workqueue), None)
        if first is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


@cache
def _looks_at_the_rebuild(file: str) -> bool:
    return re.search(rf"\b{REBUILD}\b", (ROOT / file).read_text(encoding="utf-8")) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def administration(url: str) -> psycopg.Connection:
    """A connection that may create and drop databases."""
    return psycopg.connect(
        url.replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres", autocommit=True
    )


@cache
def memory() -> Path | None:
    """A folder in memory, where there is one with room: a server that syncs there, as all of ours
    do, keeps what it was given through any kill, and nobody waits for a disk.

    What killed tests left there is removed."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return None
    for left in folder.glob("advisor-test-*-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return folder if shutil.disk_usage(folder).free > ROOM_BYTES else None


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, so that an embedded Postgres uses it also under root;
    in memory where there is room."""
    directory = Path(tempfile.mkdtemp(prefix=f"advisor-test-{os.getpid()}-", dir=memory()))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """Shared server without fsync; tests of durability start their own."""
    with open_directory() as directory, EmbeddedPostgres(directory, fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database that others are copied from."""
    with administration(postgres.url) as connection:
        connection.execute("CREATE DATABASE template_advisor")
    upgrade(postgres.url.rsplit("/", 1)[0] + "/template_advisor")
    return "template_advisor"


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without the schema."""
    yield from _database(postgres, "template1")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    yield from _database(postgres, migrated_template)


def _database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with administration(postgres.url) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield postgres.url.rsplit("/", 1)[0] + f"/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """Shared server; `valkey_url` empties it; tests of durability start their own."""
    with open_directory() as directory, EmbeddedValkey(directory / "valkey") as server:
        yield server


@pytest.fixture
def valkey_url(valkey: EmbeddedValkey) -> str:
    """An empty Valkey."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return Path(__file__).parents[1]
