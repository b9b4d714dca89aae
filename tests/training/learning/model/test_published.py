"""A published version's answers are the same, over the base pass or asked prompt by prompt as the
service asks; what was asked once is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.domain.model.prompt import lines_of
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.scenario import Scenario
from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.store import load_manifest
from tests.training.support.planted import encode_lines
from tests.training.support.rebuilds import read_by
from training.judging.gate.checks import TOLERANCE
from training.learning.model.answers import BARE_FILE, FILE, Answers
from training.learning.model.base_pass import Encoded
from training.learning.model.published import PIECE, of_version, piece_name
from training.pipeline.evaluate import Evaluated
from training.scenarios.table import ScenarioSet

SOME = 6


@pytest.fixture(scope="module")
def asked(evaluated: Evaluated) -> list[Scenario]:
    return ScenarioSet.open(read_by(evaluated, "held_out: scenarios")).scenarios()[:SOME]


def test_an_adapter_asked_as_the_service_asks_answers_what_it_answers_over_the_base_pass(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    told = of_version(
        evaluated.version,
        [tiny_base.parent],
        asked,
        1,
        tmp_path,
        lambda done, total: steps.append((done, total)),
    )
    kept = np.load(read_by(evaluated, "held_out: answers: policy") / FILE)
    found, bare = told.raw, told.bare
    assert bare is not None
    assert found.shape == (SOME, 10)
    assert found.dtype == kept.dtype == np.float32
    assert np.abs(found - kept[:SOME]).max() < TOLERANCE
    kept_bare = np.load(read_by(evaluated, "held_out: answers: policy") / BARE_FILE)
    assert np.abs(bare - kept_bare[:SOME]).max() < TOLERANCE
    again = Answers.open(read_by(evaluated, "held_out: answers: policy")).at(np.arange(SOME))
    assert told.calibration.asked == tuple(QuestionName)
    for name in QuestionName:
        for one, other in (
            (told.questions, again.questions),
            (told.bare_questions, again.bare_questions),
        ):
            assert one[name].shape == (SOME, len(BY_NAME[name].labels))
            assert np.abs(one[name] - other[name]).max() < TOLERANCE
    assert told.outlooks(asked)[0] is not None
    assert steps == [(SOME, SOME)]


def test_a_whole_model_answers_what_a_base_pass_of_all_lines_reads(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path, tmp_path: Path
) -> None:
    """The rebuild's own base pass left some out: a whole model has no numbers that say them."""
    found = of_version(tiny_base, [tiny_base.parent], asked, 1, tmp_path / "kept").raw
    whole = [lines_of(scenario) for scenario in asked]
    reader = LabelReader.load(tiny_base)
    untuned = Encoded.open(encode_lines(tmp_path, whole, reader, tiny_base)).label_log_probs
    assert np.abs(found - untuned).max() < TOLERANCE
    partly = np.load(read_by(evaluated, "held_out: answers: base model") / FILE)
    assert np.abs(found - partly[:SOME]).max() > TOLERANCE
    tuned = np.load(read_by(evaluated, "held_out: answers: policy") / FILE)
    assert np.abs(partly - tuned).max() > TOLERANCE, "the adapter does something"


def test_what_was_asked_once_is_kept_and_what_is_damaged_is_asked_again(
    evaluated: Evaluated, tiny_base: Path, tmp_path: Path
) -> None:
    """A piece is of one version and its scenarios: only the second one is asked when the first is
    there."""
    scenarios = ScenarioSet.open(read_by(evaluated, "held_out: scenarios")).scenarios()[: PIECE + 2]
    asked = [tiny_base.parent], scenarios, 1, tmp_path / "kept"
    first = of_version(evaluated.version, *asked)
    manifest = load_manifest(evaluated.version)
    whole, rest = (
        tmp_path / "kept" / f"{piece_name(manifest, part)}.json"
        for part in (scenarios[:PIECE], scenarios[PIECE:])
    )
    assert {whole, rest} == set((tmp_path / "kept").iterdir())
    other = whole.read_text().replace('"log_probabilities":[-', '"log_probabilities":[-9', 1)
    whole.write_text(other)
    rest.write_text(rest.read_text()[:-7])
    again = of_version(evaluated.version, *asked)
    assert again.raw[0, 0] < -90 < first.raw[0, 0], "what lies there is taken"
    assert np.abs(again.raw[1:] - first.raw[1:]).max() < TOLERANCE
    assert piece_name(load_manifest(tiny_base), scenarios[:PIECE]) not in str(whole)
