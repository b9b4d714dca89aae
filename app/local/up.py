"""`advisor up`: the whole service from one command, on a real Postgres and a real Valkey that come
as wheels.

The servers, the API and the writer are child processes: any of them may be killed without losing a
decision. Each is started again when it ends, a server on its data and its port; everything ends
with this process.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.client import OperatorClient, OperatorError
from app.domain.errors import AdvisorError
from app.local.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey, die_with_parent
from app.settings import Settings
from app.shadow_log.log import ShadowLog
from app.shadow_log.migrate import upgrade

START_DEADLINE_S = 180.0
DRAIN_DEADLINE_S = 60.0
POLL_S = 0.2
ANSWER_S = 5.0
RESTART_PAUSE_S = 1.0
console = Console(stderr=True)


class StartError(AdvisorError):
    """A part of the service did not come up."""


class Supervised(ABC):
    """A part that is started again, after a pause, when it has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._restart_at: float | None = None

    def supervise(self) -> None:
        """Look whether it runs. Raises `EmbeddedServerError` when a server cannot be started
        again."""
        if (ended := self._ended()) is None:
            return
        if self._restart_at is None:
            console.print(
                f"{self.name} ended{ended}, starting it again",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
            self._restart_at = monotonic() + RESTART_PAUSE_S
        elif monotonic() >= self._restart_at:
            self._restart_at = None
            self._start_again()

    @abstractmethod
    def _ended(self) -> str | None:
        """None while it runs; else what is known of its end."""

    @abstractmethod
    def _start_again(self) -> None: ...


class Server(Supervised):
    """Postgres or Valkey. Clients find it again: port and password stay."""

    def __init__(self, server: EmbeddedServer) -> None:
        super().__init__(server.name)
        self._server = server

    def _ended(self) -> str | None:
        return (
            None
            if self._server.pid is not None
            else f" ({self._server.log_path} has its last words)"
        )

    def _start_again(self) -> None:
        self._server.stop()
        self._server.start()


class Child(Supervised):
    """The API or the writer."""

    def __init__(self, name: str, command: str, environment: Mapping[str, str]) -> None:
        super().__init__(name)
        self._arguments = [sys.executable, "-m", "app.cli", command]
        self._environment = dict(environment)
        self._start_again()

    def _start_again(self) -> None:
        self._process = subprocess.Popen(
            self._arguments, env=self._environment, preexec_fn=die_with_parent
        )

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def _ended(self) -> str | None:
        return None if self.returncode is None else f" with status {self.returncode}"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after ten seconds."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_up(settings: Settings, then: str | None, leave: bool) -> int:
    """Start everything; run `then`; stay until Ctrl-C, or leave with its status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        with _running(settings) as (environment, parts):
            if then is not None:
                before = _counts(environment)
                status = _run(then, environment, parts)
                service = OperatorClient(environment["ADVISOR_URL"], timeout_s=ANSWER_S)
                with suppress(OperatorError):  # The table shows what is missing.
                    service.wait_for_writer(DRAIN_DEADLINE_S, lambda: _watch(parts))
                _print_record(before, _counts(environment), _answers(service))
            _print_where(settings, environment)
            while not leave:
                _watch(parts)
    except KeyboardInterrupt:
        console.print("stopping")
    return status


@contextmanager
def _running(settings: Settings) -> Iterator[tuple[dict[str, str], list[Supervised]]]:
    """Servers, migration, model, API and writer; yields once the API is ready."""
    with ExitStack() as stack:
        servers: list[Supervised] = []
        environment = {**os.environ, "ADVISOR_URL": f"http://{settings.host}:{settings.port}"}
        if settings.database_url is None:
            console.print("starting Postgres")
            postgres = stack.enter_context(EmbeddedPostgres(settings.home / "postgres"))
            environment["DATABASE_URL"] = postgres.url
            servers.append(Server(postgres))
        if settings.redis_url is None:
            console.print("starting Valkey")
            valkey = stack.enter_context(EmbeddedValkey(settings.home / "valkey"))
            environment["REDIS_URL"] = valkey.url
            servers.append(Server(valkey))
        upgrade(environment["DATABASE_URL"])
        if settings.model is None:
            from app.policy.in_process.importer import import_smollm2  # It brings torch.

            import_smollm2(settings.models_dir, console.print, threads=settings.threads)
        children = []
        for name in ("serve", "writer"):
            child = Child(name, name, environment)
            stack.callback(child.stop)
            children.append(child)
        _wait_until_ready(environment["ADVISOR_URL"], children)
        yield environment, [*servers, *children]


def _wait_until_ready(url: str, children: list[Child]) -> None:
    service, deadline = OperatorClient(url, timeout_s=ANSWER_S), monotonic() + START_DEADLINE_S
    while monotonic() < deadline:
        for child in children:
            if child.returncode is not None:
                raise StartError(
                    f"{child.name} ended with status {child.returncode}; its message stands above"
                )
        try:
            if service.readiness()["status"] != "unready":
                return
        except OperatorError:
            pass  # Not listening yet: the deadline decides.
        _watch([])
    raise StartError(f"{url}/readyz did not answer within {START_DEADLINE_S:.0f} s")


def _watch(parts: Sequence[Supervised]) -> None:
    """Supervise, then wait a moment; Ctrl-C interrupts."""
    for part in parts:
        part.supervise()
    signal.sigtimedwait([], POLL_S)


def _run(command: str, environment: Mapping[str, str], parts: Sequence[Supervised]) -> int:
    """The status of a command, while everything is looked after. It ends with this process."""
    with subprocess.Popen(
        shlex.split(command), env=environment, preexec_fn=die_with_parent
    ) as process:
        while process.poll() is None:
            _watch(parts)
        return process.returncode


def _counts(environment: Mapping[str, str]) -> dict[str, int]:
    """Rows by table."""

    async def count() -> dict[str, int]:
        log = ShadowLog.connect(environment["DATABASE_URL"], patience_s=None)
        try:
            return await log.counts()
        finally:
            await log.aclose()

    return asyncio.run(count())


def _answers(service: OperatorClient) -> int:
    """Answers that the API gave since it started: advices of the primary version."""
    primary = service.readiness()["models"][0]
    return int(
        sum(
            value
            for series, value in service.metrics().items()
            if series.startswith("advisor_decisions_total{") and f'"{primary}"' in series
        )
    )


def _print_record(before: dict[str, int], after: dict[str, int], answers: int) -> None:
    table = Table(
        title="Rows in Postgres", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    for name in ("", "answers given", "new rows", "rows in all"):
        table.add_column(name, justify="right" if name else "left")
    for name, total in after.items():
        table.add_row(
            name,
            str(answers) if name == "decisions" else "",
            str(total - before.get(name, 0)),
            str(total),
        )
    console.print(table)


def _print_where(settings: Settings, environment: Mapping[str, str]) -> None:
    """Lines rather than a table: they are there to be copied."""
    url = environment["ADVISOR_URL"]
    database = environment["DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://")
    advisor = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "advisor"))
    console.print("\n[bold]Where to look next[/]")
    for what, where in (
        ("API, to try out", f"{url}/docs"),
        ("health", f"{url}/readyz"),
        ("metrics", f"{url}/metrics"),
        ("", f"http://{settings.host}:{settings.writer_metrics_port}/metrics (writer)"),
        ("shadow log", f"psql '{database}'"),
        ("who was right", f"psql '{database}' -c 'select * from disagreements limit 20'"),
        ("check the record", f"DATABASE_URL='{database}' {advisor} verify"),
        ("halt everything", f"{advisor} state HALTED --reason test --by me"),
    ):
        console.print(f"{what:<18}{where}", soft_wrap=True, highlight=False, markup=False)
