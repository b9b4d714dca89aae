"""The period that benches ask about, and what all of them share."""

from __future__ import annotations

import importlib
import inspect
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

import bench
from bench.asked import SINCE, UNTIL, entry, looked, period_of, tell_beyond
from tests.training.support.candles import random_walk
from training.config.data import MarketConfig
from training.config.section import ConfigError, at_home
from training.judging.gate.looks import Look
from training.market.context import KnownContext
from training.scenarios.history import History


def test_a_period_is_the_held_out_one_or_later() -> None:
    held_out = period_of(SINCE, UNTIL)
    assert (held_out.since, held_out.until) == (date(2023, 1, 1), date(2025, 1, 1))
    assert period_of("2025-01-01", "2027-01-01").since == date(2025, 1, 1)
    for since, until in (("2022-12-31", UNTIL), ("2025-01-01", "2025-01-01")):
        with pytest.raises(ConfigError, match="before 2023-01-01 trains"):
            period_of(since, until)
    with pytest.raises(ConfigError, match="write days as 2025-01-01"):
        period_of("2025", UNTIL)


def test_bars_after_the_period_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """The walk's 1,500 hours end on 2021-03-04."""
    known = History((random_walk(),), {}, KnownContext())
    early = period_of(SINCE, UNTIL)
    tell_beyond(early, known)
    assert capsys.readouterr().err == ""
    tell_beyond(early.model_copy(update={"until": date(2021, 3, 1)}), known)
    expected = "bars go on to 2021-03-04: --since 2021-03-01 --until ... asks about them\n"
    assert capsys.readouterr().err == expected


def test_a_bench_that_cannot_be_run_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise ConfigError("no bars there")

    monkeypatch.setattr("sys.argv", ["bench"])
    with pytest.raises(SystemExit) as ended:
        entry(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "bench: no bars there\n"


def test_what_a_bench_asked_counts_as_a_look(tmp_path: Path) -> None:
    bars, now = MarketConfig(), datetime(2026, 11, 28, tzinfo=UTC)
    looked("one", bars, period_of(SINCE, UNTIL), tmp_path)
    assert Look(tmp_path, "two", bars, period_of(SINCE, UNTIL), now).count() == 2


MAINS = [
    name
    for path in sorted(Path(bench.__file__).parent.glob("*/*.py"))
    if "entry(main)" in path.read_text() and (name := f"bench.{path.parent.name}.{path.stem}")
]


@pytest.mark.parametrize("name", MAINS)
def test_what_a_bench_keeps_lies_under_home_by_default(name: str) -> None:
    main = importlib.import_module(name).main
    for parameter in inspect.signature(main, eval_str=True).parameters.values():
        if isinstance(parameter.default, Path) and parameter.default.parts[0] == "var":
            (option,) = parameter.annotation.__metadata__
            assert option.callback is at_home, parameter.name
