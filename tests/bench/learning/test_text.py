"""Headlines in other orders of the options: the head changes, letters keep their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.domain.model.manifest import Calibration
from app.domain.model.prompt import SYSTEM
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.label_reader import Ask, LabelReader
from bench.learning.text import Loaded, markdown, ordered, readings_of
from tests.builders import scenario
from tests.policy.tiny_models import save_tiny_model
from training.judging.gate.texts import attempts_on


@pytest.fixture
def version(tmp_path: Path) -> Loaded:
    base = save_tiny_model(tmp_path / "base")
    return Loaded(base, LabelReader.load(base), Adapter({}, activated=True), Calibration())


def test_options_are_listed_in_another_order_and_each_once(version: Loaded) -> None:
    assert ordered(version, 0) is version.reader
    tokenizer = Tokenizer.from_file(str(version.base / "tokenizer.json"))
    _, *options = SYSTEM.split("\n")
    listed = []
    for order in (1, 2, 3):
        reader = ordered(version, order)
        head = tokenizer.decode(list(reader.encoder.head), skip_special_tokens=False)
        assert all(head.count(option) == 1 for option in options)
        listed.append(sorted(options, key=head.index))
        assert reader.encoder.label_ids == version.reader.encoder.label_ids
    assert listed[0] == options[::-1]
    assert len({tuple(order) for order in [options, *listed]}) == 4


def test_a_table_is_markdown() -> None:
    assert markdown(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_sharing_what_a_scenarios_prompts_have_in_common_changes_no_reading(
    version: Loaded,
) -> None:
    scenarios = [scenario(candidate__rsi=40.0 + n) for n in range(2)]
    attempts = attempts_on(scenarios)
    reader = version.reader
    found = readings_of(reader, version.adapter, attempts, scenarios, "trying")
    for attempt, reading in list(zip(attempts, found, strict=True))[::3]:
        ids, text = (
            reader.encoder.encode(attempt.prompt),
            reader.encoder.text_tokens(attempt.prompt),
        )
        [rows] = reader.answer([Ask(ids, (version.adapter,), text)])
        assert reading.log_probabilities == pytest.approx(rows[0], abs=1e-4)
        assert (reading.without_text is None) == (len(rows) == 1)
        assert reading.bare.log_probabilities == pytest.approx(rows[-1], abs=1e-4)
