"""What commands share: options, the configuration of a name, a progress bar, a line for people."""

from __future__ import annotations

import getpass
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from app.domain.errors import AdvisorError
from app.operator_client import OperatorClient, OperatorError, addresses
from training.arrays import Progress
from training.config.file import RebuildConfig, read_config
from training.config.section import ConfigError, home

CONFIGS = Path(__file__).parents[1] / "config"
console = Console()

Config = Annotated[
    str,
    typer.Option("--config", help="a TOML file, or bundled, cpu, gpu, planted, release or tiny"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="""one setting, as TOML: --set 'market.length="4h"'"""),
]
Database = Annotated[
    str,
    typer.Option(envvar="DATABASE_URL", help="the shadow log, read-only", show_default=False),
]
# Of commands that do nothing without one: by default what `advisor up` left under ADVISOR_HOME.
Log = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="DATABASE_URL",
        default_factory=lambda: addresses(home()).get("DATABASE_URL", ""),
        help="the shadow log, read-only",
        show_default=False,
    ),
]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="ADVISOR_URL",
        default_factory=lambda: addresses(home()).get("ADVISOR_URL", "http://127.0.0.1:8321"),
        help="where the service answers; default: as `advisor up` left it, else port 8321 here",
        show_default=False,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="ADVISOR_ADMIN_TOKEN", help="the service's bearer token", show_default=False
    ),
]
Adopt = Annotated[
    list[str] | None,
    typer.Option(
        "--adopt",
        help=(
            "a finished artefact's folder name, taken although other code made it from the same"
            " settings and inputs: you vouch for it"
        ),
    ),
]
By = Annotated[
    str,
    typer.Option(
        help="who says so: recorded in the reason, beside the token's name. Default: who runs this"
    ),
]
Why = Annotated[str, typer.Option(help="why; recorded")]


def finite(number: float) -> float:
    """The callback of an option that is a number: neither infinite nor none at all. (The service's
    commands have their own; training does not know them.)"""
    if not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no finite number.")
    return number


def chosen(name: str, overrides: Sequence[str] | None = None) -> RebuildConfig:
    """The configuration of that name, or of that path."""
    path = CONFIGS / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            names = ", ".join(sorted(shipped.stem for shipped in CONFIGS.glob("*.toml")))
            raise ConfigError(
                f"there is no configuration {name}: name a TOML file, or one of {names}"
            )
    return read_config(path, overrides or ())


def point(url: str, token: str | None, alias: str, version: str, reason: str, by: str) -> None:
    """Have a running service verify a version, and point an alias at it."""
    service = OperatorClient(url, token)
    seen = service.moved_at(alias)
    service.register(version)
    who = by or getpass.getuser()
    tell_move(service.move_alias(alias, version, reason, who, seen=seen))


def tell_move(move: Mapping[str, Any]) -> None:
    """Where an alias points now, and where it pointed."""
    before = f" (was {move['before']})" if move["before"] else ""
    tell(f"{move['alias']} -> {move['model_version']}{before}")


def tell(line: str) -> None:
    """One line for people."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def expected_failures(program: str) -> Iterator[None]:
    """What an entry point runs in: a failure that is no defect ends it with one line on stderr and
    status 2. A file that cannot be read or written is none."""
    try:
        yield
    except (AdvisorError, OperatorError, OSError) as error:
        said = f"{program}: {error}"
        Console(stderr=True).print(said, markup=False, style="red", soft_wrap=True)
        sys.exit(2)


@contextmanager
def meter(title: str) -> Iterator[Progress]:
    """A progress bar with a title and an estimate of the time left, while the work goes on."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
