"""What counts as slower: more than a tenth, the history's own scatter, and the run's spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.compare import judged, main, shown

MACHINE = {"cpu": "A", "cores": 2, "load": 0.5}


def run(figures: dict[str, float], bench: str = "service", **machine: Any) -> dict[str, Any]:
    return {
        "bench": bench,
        "at": "2026-11-27T04:20:56+00:00",
        "commit": "de315d5f3cbf",
        "machine": MACHINE | machine,
        "figures": figures,
    }


def test_a_first_run_is_nobodys_equal_and_shows_its_floor() -> None:
    [verdict] = judged([run({"write_per_s": 6000.0, "write_per_s_floor": 12000.0, "seed": 3})])
    assert (verdict.name, verdict.floor, verdict.change, verdict.slower) == (
        "write_per_s",
        12000.0,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("name", "value", "slower"),
    [
        ("append_ms", 10.9, False),
        ("append_ms", 11.2, True),
        ("append_ms", 5.0, False),
        ("advise_per_s", 9.1, False),
        ("advise_per_s", 8.9, True),
        ("advise_per_s", 20.0, False),
    ],
)
def test_a_tenth_is_noise_and_the_unit_says_which_way_is_worse(
    name: str, value: float, slower: bool
) -> None:
    [verdict] = judged([run({name: 10.0}), run({name: 10.0}), run({name: value})])
    assert verdict.slower is slower
    assert verdict.before == 10.0


def test_a_history_that_scatters_by_a_fifth_does_not_call_a_half_slower() -> None:
    """Median 10, median distance 2: noise is 3 x 1.4826 x 0.2 = 0.89."""
    runs = [run({"append_ms": value}) for value in (8.0, 10.0, 12.0, 15.0)]
    [verdict] = judged(runs)
    assert verdict.noise == pytest.approx(0.88956)
    assert not verdict.slower


def test_the_spread_of_the_run_itself_is_noise_too() -> None:
    runs = [run({"append_ms": 10.0}), run({"append_ms": 13.0, "append_ms_spread": 0.4})]
    assert [verdict.slower for verdict in judged(runs)] == [False]


@pytest.mark.parametrize(
    "other",
    [
        run({"append_ms": 1.0}, cpu="B"),
        run({"append_ms": 1.0}, cores=64),
        run({"append_ms": 1.0}, load=9.0),
        run({"append_ms": 1.0}, bench="client"),
        run({"append_ms": 1.0, "decisions": 5}),
        run({"other_ms": 1.0}),
    ],
    ids=["processor", "cores", "busy", "bench", "asked otherwise", "figure"],
)
def test_what_was_measured_otherwise_is_no_history(other: dict[str, Any]) -> None:
    assert judged([other, run({"append_ms": 10.0})])[-1].change is None


def test_the_command_names_what_got_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.jsonl"
    runs = [run({"append_ms": 10.0}), run({"append_ms": 10.1})]
    file.write_text("".join(json.dumps(each) + "\n" for each in runs))
    with pytest.raises(typer.Exit) as ended:
        main(file)
    assert ended.value.exit_code == 0
    file.write_text("".join(json.dumps(each) + "\n" for each in [*runs, run({"append_ms": 20.0})]))
    with pytest.raises(typer.Exit) as ended:
        main(file)
    assert ended.value.exit_code == 1
    told = capsys.readouterr().out
    assert "slower than before: service append_ms" in told
    assert "service, 2026-11-27 04:20, de315d5f3cbf, on A x2, load 0.5" in told


def test_a_table_has_the_columns_that_say_something_and_whole_names() -> None:
    long = "one adapter and three questions, with and without text_ms"
    [first] = judged([run({long: 10.0})])
    assert [column.header for column in shown([first]).columns] == ["figure", "ours"]
    later = judged([run({long: 10.0}), run({long: 12.0, f"{long}_floor": 6.0})])
    columns = {column.header: list(column.cells) for column in shown(later).columns}
    assert columns == {
        "figure": [long],
        "ours": ["12"],
        "floor": ["6"],
        "ratio": ["2.00"],
        "before": ["10"],
        "change": ["+20%"],
        "slower than its noise": ["10%"],
    }
