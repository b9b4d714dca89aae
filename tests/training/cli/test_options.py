"""What commands share: a configuration by name or path, options that mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from app.cli.__main__ import app as advisor
from training.__main__ import app
from training.cli.options import CONFIGS, chosen, expected_failures
from training.config.section import ConfigError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_a_configuration_is_chosen_by_name_or_by_path(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_bytes((CONFIGS / "tiny.toml").read_bytes())
    assert chosen(str(copy), ["threads=3"]) == chosen("tiny", ["threads=3"])
    assert chosen("tiny", ["threads=3"]).threads == 3
    with pytest.raises(
        ConfigError, match=r"no configuration tinny: name a TOML file, or one of .*tiny"
    ):
        chosen("tinny")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("no such setting"), "program: no such setting\n"),
        (OSError(30, "Read-only file system", "there"), "Read-only file system: 'there'\n"),
    ],
)
def test_an_expected_failure_is_one_line_and_status_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, expected_failures("program"):
        raise error
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("program: ")
    assert printed.endswith(said)
    assert printed.count("\n") == 1
    with pytest.raises(ZeroDivisionError), expected_failures("program"):
        raise ZeroDivisionError  # a defect keeps its traceback


@pytest.mark.parametrize("command", ["rebuild", "evaluate", "walk-forward"])
def test_a_folder_of_bars_without_its_source_ends_a_command_before_it_begins(
    command: str, tmp_path: Path
) -> None:
    arguments = [command, "--config", "bundled", "--set", 'market.directory="bars"']
    arguments += ["--set", f'artifacts="{tmp_path / "artifacts"}"']
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert "set market.source='directory' too" in str(done.exception)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("option", ["url", "token", "database", "overrides", "by"])
def test_an_option_is_called_and_read_alike_in_every_command_but_versions(option: str) -> None:
    """`versions` asks no service by default, so its --url has other words."""
    read = {
        name: (parameter.opts, parameter.envvar, parameter.help)
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.name == option and name != "versions"
    }
    assert len(read) >= 3
    assert len({str(value) for value in read.values()}) == 1


def numbers(command: Any, *path: str) -> list[tuple[Any, str]]:
    """Every option of a command, and of those below it, that takes a number with a point."""
    below = getattr(command, "commands", {}).items()
    found = [pair for name, one in below for pair in numbers(one, *path, name)]
    for option in command.params:
        if option.type_descriptor.annotation in (float, float | None):
            found.append((command, " ".join([*path, option.opts[0]])))
    return found


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("command", "option"),
    [pair for root in (app, advisor) for pair in numbers(typer.main.get_command(root))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_option_takes_a_number_that_is_none_or_has_no_end(
    command: Any, option: str, number: str
) -> None:
    [parameter] = [each for each in command.params if each.opts[0] == option.rpartition(" ")[2]]
    context = command.make_context("it", [], resilient_parsing=True)
    context.resilient_parsing = False
    with pytest.raises(typer.BadParameter):
        parameter.process_value(context, number)
