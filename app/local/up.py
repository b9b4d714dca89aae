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
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from uuid import uuid4

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.api.tokens import TokenFile, provide, write_private
from app.domain.errors import AdvisorError, ShadowLogUnavailable
from app.local.servers import (
    EmbeddedPostgres,
    EmbeddedServer,
    EmbeddedServerError,
    EmbeddedValkey,
    InUse,
    die_with_parent,
)
from app.operator_client import OperatorClient, OperatorError
from app.settings import OWN_CHECKPOINTS, Settings
from app.shadow_log.database import async_url
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema.logins import ANALYST, READER, WRITER
from app.shadow_log.schema.migrate import upgrade

START_DEADLINE_S = 600.0
"""A process that ends is seen at once: this ends one that hangs, and not one on a busy machine."""
DRAIN_DEADLINE_S = 60.0
POLL_S = 0.2
ANSWER_S = 5.0
RESTART_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
SERVICES = "pg_service.conf"
console = Console(stderr=True)


class StartError(AdvisorError):
    """A part of the service did not come up."""


class Supervised(ABC):
    """A part that is started again, after a pause, when it has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._restart_at: float | None = None

    def supervise(self) -> None:
        """Look whether it runs."""
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
    """Postgres or Valkey. Clients find it again: port and password stay.

    It is started again in a thread of its own, so that everything else is looked after meanwhile;
    one that cannot be started is tried again, with a growing pause. `after` completes a start.
    """

    def __init__(self, server: EmbeddedServer, after: Callable[[], None] = lambda: None) -> None:
        super().__init__(server.name)
        self._server = server
        self._after = after
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=server.name)
        self._starting: Future[None] | None = None
        self._failures = 0
        self._told = ""

    def begin(self) -> None:
        """Start it for the first time. One that ran before and cannot be started now is tried
        again: the service goes on without it. Raises `EmbeddedServerError` for a new one, or when
        another instance has its data."""
        try:
            self._start()
        except EmbeddedServerError as error:
            if isinstance(error, InUse) or not self._server.finished:
                raise
            self._failed(error)

    def supervise(self) -> None:
        if self._starting is None:
            super().supervise()
            return
        if not self._starting.done():
            return
        error, self._starting = self._starting.exception(), None
        if error is None:
            if self._failures:
                console.print(f"{self.name} runs again", style="green")
            self._failures, self._told = 0, ""
        elif isinstance(error, AdvisorError):
            self._failed(error)
        else:
            raise error

    def close(self) -> None:
        """Stop it, also in the middle of a start."""
        pid = self._server.pid
        if self._starting is not None and pid is not None:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._thread.shutdown(cancel_futures=True)
        self._server.stop()

    def _failed(self, error: AdvisorError) -> None:
        if str(error) != self._told:  # Once for each reason, not for each attempt.
            console.print(
                f"{self.name} cannot be started, the service goes on without it: {error}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
        self._told = str(error)
        self._failures += 1
        pause_s = min(RESTART_PAUSE_S * 2**self._failures, MAX_PAUSE_S)
        self._restart_at = monotonic() + pause_s

    def _start(self) -> None:
        self._server.stop()
        self._server.start()
        try:
            self._after()
        except BaseException:
            self._server.stop()
            raise

    def _ended(self) -> str | None:
        return (
            None
            if self._server.pid is not None
            else f" ({self._server.log_path} has its last words)"
        )

    def _start_again(self) -> None:
        self._starting = self._thread.submit(self._start)


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
                service = _operator(environment)
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
    _require_free(settings)
    home = settings.home.absolute()
    with ExitStack() as stack:
        servers: list[Supervised] = []
        owner = {}
        environment = {
            **os.environ,
            "ADVISOR_URL": f"http://{settings.host}:{settings.port}",
            "ADVISOR_INSTANCE": uuid4().hex,
            "ADVISOR_HOME": str(home),
        }
        environment.setdefault("ADVISOR_CHECKPOINTS", str(home / OWN_CHECKPOINTS))
        _tell(f"state lies in {home}")
        if settings.database_url is None:
            postgres = EmbeddedPostgres(home / "postgres")
            _tell_start(postgres, home)
            servers.append(_begun(stack, Server(postgres, postgres.set_up)))
            environment["DATABASE_URL"] = postgres.url_of(WRITER)
            owner["OWNER_DATABASE_URL"] = postgres.url
            _write_services(home / SERVICES, postgres)
        else:
            upgrade(settings.database_url)
        if settings.redis_url is None:
            valkey = EmbeddedValkey(home / "valkey")
            _tell_start(valkey, home)
            servers.append(_begun(stack, Server(valkey)))
            environment["REDIS_URL"] = valkey.url
        if servers:
            _write_addresses(home / "addresses", environment, owner)
        if settings.model is None:
            from app.policy.in_process.importer import import_smollm2  # It brings torch.

            import_smollm2(settings.models_dir, console.print, threads=settings.threads)
        for name in provide(TokenFile(settings.tokens_file), _token_folder(environment)):
            _tell(f"made the token {_token_folder(environment) / name}")
        children = []
        for name in ("serve", "writer"):
            child = Child(name, name, environment)
            stack.callback(child.stop)
            children.append(child)
        _wait_until_ready(environment, servers, children)
        yield environment, [*servers, *children]


def _token_folder(environment: Mapping[str, str]) -> Path:
    """Where clients on this machine look for their tokens."""
    return Path(environment["ADVISOR_HOME"]) / "tokens"


def _operator(environment: Mapping[str, str]) -> OperatorClient:
    """The service that was started here, asked as its operator."""
    place = _token_folder(environment) / "operator"
    token = place.read_text().strip() if place.exists() else None
    return OperatorClient(environment["ADVISOR_URL"], token, ANSWER_S)


def _write_services(path: Path, postgres: EmbeddedPostgres) -> None:
    """For psql, whose command line everybody can see: who asks, by name."""
    urls = {
        "analyst": postgres.url_of(ANALYST),
        "reader": postgres.url_of(READER),
        "owner": postgres.url,
    }
    sections = []
    for name, url in urls.items():
        parsed = async_url(url)
        sections.append(
            f"[{name}]\nhost={parsed.host}\nport={parsed.port}\ndbname={parsed.database}\n"
            f"user={parsed.username}\npassword={parsed.password}\n"
        )
    with suppress(OSError):
        write_private(path, "\n".join(sections))


def _write_addresses(path: Path, environment: Mapping[str, str], owner: Mapping[str, str]) -> None:
    """Where everything answers, for whoever may read our files; the ports stay between starts."""
    names = ("ADVISOR_URL", "DATABASE_URL", "REDIS_URL")
    addresses = {**{name: environment[name] for name in names}, **owner}
    with suppress(OSError):  # A full disk keeps nobody from being advised.
        write_private(path, "".join(f"{name}={value}\n" for name, value in addresses.items()))


def _begun(stack: ExitStack, server: Server) -> Server:
    stack.callback(server.close)
    server.begin()
    return server


def _tell_start(server: EmbeddedServer, home: Path) -> None:
    lies = "" if server.directory.is_relative_to(home) else f", its data lie in {server.directory}"
    _tell(f"starting {server.name}{lies}")


def _tell(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _require_free(settings: Settings) -> None:
    """Nobody else may answer on our ports, not even while the service is starting."""
    for port, variable in (
        (settings.port, "ADVISOR_PORT"),
        (settings.writer_metrics_port, "ADVISOR_WRITER_METRICS_PORT"),
    ):
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise StartError(
                    f"cannot listen on {settings.host}:{port}: {error.strerror}; stop what listens"
                    f" there, another `advisor up` perhaps, or set {variable}"
                ) from error


def _wait_until_ready(
    environment: Mapping[str, str], servers: Sequence[Supervised], children: Sequence[Child]
) -> None:
    """Until our own API answers; another one's health says nothing of ours."""
    url, deadline = environment["ADVISOR_URL"], monotonic() + START_DEADLINE_S
    service = _operator(environment)
    while monotonic() < deadline:
        for child in children:
            if child.returncode is not None:
                raise StartError(
                    f"{child.name} ended with status {child.returncode}; its message stands above"
                )
        try:
            if service.instance() != environment["ADVISOR_INSTANCE"]:
                raise StartError(
                    f"what answers at {url} is not the service that was started here, but another"
                    " instance: stop it, or set ADVISOR_PORT"
                )
            if service.readiness()["status"] != "unready":
                return
        except OperatorError:
            pass  # Not listening yet: the deadline decides.
        _watch(servers)
    raise StartError(
        f"{url}/readyz did not answer within {START_DEADLINE_S:.0f} s, though its process runs: its"
        " log stands above"
    )


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
        except ShadowLogUnavailable:
            return {}  # The service goes on without it, and so do we.
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
    psql = f"PGSERVICEFILE={os.path.relpath(settings.home / SERVICES)} psql service=analyst"
    advisor = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "advisor"))
    operator = os.path.relpath(_token_folder(environment) / "operator")
    console.print("\n[bold]Where to look next[/]")
    for what, where in (
        ("the record, seen", f"{url}/ui"),
        ("", f"come in with the token in {operator}"),
        ("  is it worth it?", f"{url}/ui?days=all"),
        ("  who was right?", f"{url}/ui/decisions?disagree=1"),
        ("  other limits?", f"{url}/ui/limits"),
        ("API, to try out", f"{url}/docs"),
        ("health", f"{url}/readyz"),
        ("metrics", f"{url}/metrics"),
        ("", f"http://{settings.host}:{settings.writer_metrics_port}/metrics (writer)"),
        ("tokens", f"{os.path.relpath(_token_folder(environment))}/agent, operator, metrics"),
        ("shadow log", psql),
        ("who was right", f"{psql} -c 'select * from disagreements limit 20'"),
        ("check the record", f"{advisor} verify"),
        ("halt everything", f"{advisor} state HALTED --reason test --by me"),
        ("addresses", str(settings.home.absolute() / "addresses")),
    ):
        console.print(f"{what:<18}{where}", soft_wrap=True, highlight=False, markup=False)
