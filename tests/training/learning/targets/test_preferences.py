"""Preference pairs: which, how many, in whose format, and that TRL reads in them what the service
reads."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.domain.model.actions import ACTIONS, BY_LABEL
from app.domain.record.decision import prepare
from app.policy.encoding import PromptEncoder
from app.policy.in_process.importer import import_smollm2
from tests.builders import scenario
from tests.domain.scenarios import AS_OF
from tests.training.support.artifacts import made_up
from training.config.data import ScenariosConfig
from training.config.learning import PreferencesConfig, TargetsConfig
from training.learning.targets.preferences import (
    PairSource,
    PreferenceError,
    Preferences,
    pairs_of,
    preference_record,
    preferences,
)
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import RealScenario, ScenarioSet, build_scenarios
from training.stages.store import Artifact

OUTCOMES = TargetsConfig(source="outcomes", risk_aversion=0.0)
COUNT = 20
START = AS_OF.replace(year=2022)
R = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 2.0])
"""Rewards by action: the last one stands out."""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> ScenarioSet:
    """Twenty, a day apart, with one variant each of the training ones; the last fifth validates."""
    found = [
        RealScenario(scenario(as_of=START + timedelta(days=i), candidate__rsi=30.0 + i))
        for i in range(COUNT)
    ]

    def build(folder: Path) -> dict[str, Any]:
        return build_scenarios(folder, found, ScenariosConfig(perturbations=1), {}, 3600)

    return ScenarioSet.open(made_up(tmp_path_factory.mktemp("shop"), "scenarios", build))


def labelled(rewards: np.ndarray) -> Labels:
    return Labels(rewards, np.zeros(len(rewards)), pl.DataFrame())


def teacher(expected: np.ndarray, doubt: float = 0.1) -> Predictions:
    """What it expects, (N, 10), everywhere as certain."""
    none = np.zeros(len(expected))
    return Predictions(
        expected,
        np.zeros_like(expected),
        np.full_like(expected, doubt),
        none + 0.001,
        none,
        none,
        none,
    )


def built(
    folder: Path,
    scenarios: ScenarioSet,
    rewards: np.ndarray,
    model: Predictions | None = None,
    targets: TargetsConfig = OUTCOMES,
    **config: Any,
) -> Artifact:
    def build(target: Path) -> dict[str, Any]:
        return preferences(
            target,
            scenarios,
            labelled(rewards),
            model or teacher(np.zeros_like(rewards)),
            settings=PreferencesConfig(**config),
            targets=targets,
        )

    return made_up(folder, "preferences", build, config)


def drawn(
    worth: np.ndarray, doubt: np.ndarray | None = None, **config: Any
) -> list[tuple[str, str, float, str]]:
    pairs = pairs_of(0, worth, doubt, PreferencesConfig(**config))
    return [
        (one["chosen"], one["rejected"], round(one["margin"], 6), one["source"]) for one in pairs
    ]


def test_every_pair_clears_the_margin_and_the_widest_is_there() -> None:
    pairs = drawn(R, margin=0.45, per_scenario=100)
    assert pairs[0] == ("J", "A", 2.0, "outcome")
    assert {chosen for chosen, *_ in pairs} == {"J"}
    # J, 2.0, against the nine, 0.0 to 0.8.
    assert len(set(pairs)) == len(pairs) == 9
    near = drawn(R, margin=1.45, per_scenario=100)
    assert sorted(margin for _, _, margin, _ in near) == [1.5, 1.6, 1.7, 1.8, 1.9, 2.0]


def test_a_scenario_gives_no_more_than_its_cap_and_the_seed_decides_which() -> None:
    pairs = drawn(R, per_scenario=4)
    assert len(pairs) == 4
    assert pairs[0][:2] == ("J", "A")
    assert drawn(R, per_scenario=4) == pairs
    assert drawn(R, per_scenario=4, seed=1) != pairs


def test_an_excluded_scenario_has_nothing_to_prefer() -> None:
    assert drawn(np.full(10, np.nan)) == []


def test_pairs_are_drawn_by_their_margins() -> None:
    """J is worth 1, B a half, the others nothing: A comes first, and of the other eight B is half
    as likely as each of the seven."""
    worth = np.array([0.0, 0.5, *[0.0] * 7, 1.0])
    firsts = [
        [pair["margin"] for pair in pairs_of(row, worth, None, PreferencesConfig(per_scenario=2))]
        for row in range(2000)
    ]
    assert all(margins[0] == 1.0 for margins in firsts)
    narrow = np.mean([margins[1] == 0.5 for margins in firsts])
    assert narrow == pytest.approx(0.5 / 7.5, abs=0.02)


def test_the_teachers_pairs_clear_a_margin_in_its_doubts_and_weigh_as_it_is_certain() -> None:
    worth = np.zeros(10)
    worth[3] = 0.2
    doubt = np.full(10, 0.1)
    doubt[0] = 0.0  # rejecting is certain
    pairs = list(pairs_of(0, worth, doubt, PreferencesConfig(model_margin=1.9, per_scenario=100)))
    assert {pair["chosen"] for pair in pairs} == {"D"}
    assert {pair["source"] for pair in pairs} == {"model"}
    # 0.2 over 0.1: two standard errors, 2 x 0.97725 - 1
    assert [pair["weight"] for pair in pairs] == pytest.approx([0.9545] * 9, abs=1e-4)
    assert drawn(worth, doubt, model_margin=2.1) == []


def test_a_trade_s_luck_does_not_make_its_expectation_doubtful(
    scenarios: ScenarioSet, tmp_path: Path
) -> None:
    """0.1 R expected, with an error of 0.05 and whatever deviation: 2 x 0.97725 - 1."""
    expected = np.zeros((len(scenarios), 10))
    expected[:, 9] = 0.1
    for number, luck in enumerate((0.0, 1.0)):
        said = teacher(expected, doubt=0.05)
        said = Predictions(**(vars(said) | {"sd": np.full_like(expected, luck)}))
        plain = TargetsConfig(risk_aversion=0.0)
        made = built(tmp_path / str(number), scenarios, np.zeros_like(expected), said, plain)
        table = Preferences.open(made).table.filter(pl.col("split") == "train")
        assert table["weight"].to_numpy() == pytest.approx(np.full(len(table), 0.9545), abs=1e-4)


def test_the_stage_trains_on_training_scenarios_and_validates_on_real_outcomes_alone(
    scenarios: ScenarioSet, tmp_path: Path
) -> None:
    rewards = np.tile(R, (len(scenarios), 1))
    train, validate = scenarios.rows("train"), scenarios.rows("validate")
    rewards[train[0]] = np.nan
    artifact = built(tmp_path, scenarios, rewards, teacher(rewards[:, ::-1]), TargetsConfig())
    found = Preferences.open(artifact)
    trained, validated = (
        found.table.filter(pl.col("split") == split) for split in ("train", "validate")
    )
    assert set(trained["row"]) == set(train[1:])
    assert set(validated["row"]) == set(validate)
    assert scenarios.real[validated["row"].to_numpy()].all()
    assert not scenarios.real[trained["row"].to_numpy()].all()  # variants train
    assert set(validated["source"]) == {"outcome"}
    assert set(trained["source"]) == {"model"}
    assert trained["chosen"][0] == "A", "the teacher says otherwise than what came of it"
    assert validated["chosen"][0] == "J"
    assert found.indices.shape == (len(trained), 3)
    assert found.weights.shape == (len(trained),)
    row, better, worse = found.of("validate")[-1]
    assert rewards[row, better] - rewards[row, worse] >= 0.02
    counts = artifact.facts["pairs"]
    assert counts["validate_outcome"] == 4 * len(validate)
    assert sum(counts.values()) == len(found.table)


def test_the_same_pair_of_the_same_prompt_is_there_once_the_widest(tmp_path: Path) -> None:
    """Scenarios that differ in what the prompt rounds away read alike to the policy."""
    found = [
        RealScenario(scenario(as_of=START + timedelta(days=i), candidate__rsi=50.0 + i / 100))
        for i in range(COUNT)
    ]

    def build(folder: Path) -> dict[str, Any]:
        return build_scenarios(folder, found, ScenariosConfig(), {}, 3600)

    alike = ScenarioSet.open(made_up(tmp_path, "scenarios", build))
    assert len({prepare(one).hash for one in alike.scenarios()}) == 1
    rewards = np.zeros((COUNT, 10))
    rewards[:, 9] = np.linspace(1, 2, COUNT)
    rewards[3] *= -1  # one of them contradicts: both ways stay
    artifact = built(tmp_path, alike, rewards, per_scenario=100, margin=0.25)
    table = Preferences.open(artifact).table.filter(pl.col("split") == "train")
    against = table.filter(pl.col("rejected") == "J")
    last = alike.rows("train")[-1]
    assert table.filter(pl.col("chosen") == "J")["row"].to_list() == [last] * 9
    assert against["row"].to_list() == [3]
    # 15 train, one is purged, 4 validate: nine pairs each, but for the one that contradicts, whose
    # best action is only better than J. Nine and that one stay in training, nine in validation.
    assert artifact.facts["duplicates"] == 9 * 18 + 1 - 19


def test_no_pair_is_one_clear_error(scenarios: ScenarioSet, tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match=r"lower preferences\.margin"):
        built(tmp_path, scenarios, np.zeros((len(scenarios), 10)))
    assert not list(tmp_path.glob("preferences-*"))


def test_a_damaged_table_is_refused(scenarios: ScenarioSet, tmp_path: Path) -> None:
    artifact = built(tmp_path, scenarios, np.tile(R, (len(scenarios), 1)))
    (artifact / "preferences.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(PreferenceError, match="build again"):
        Preferences.open(artifact)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_lines_load_as_a_dataset_of_trls_conversational_preferences(
    scenarios: ScenarioSet, tmp_path: Path
) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    artifact = built(tmp_path / "shop", scenarios, np.tile(R, (len(scenarios), 1)))
    path = artifact / "preferences-train.jsonl"
    data = load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    table = Preferences.open(artifact).table.filter(pl.col("split") == "train")
    assert len(data) == len(table)
    assert set(data.column_names) == {
        "prompt",
        "chosen",
        "rejected",
        "margin",
        "weight",
        "scenario_id",
        "source",
    }
    assert is_conversational(data[0])
    assert [one["chosen"][0]["content"] for one in data] == table["chosen"].to_list()
    first = json.loads(path.read_text().splitlines()[0])
    assert first["weight"] == pytest.approx(scenarios.weight[table["row"][0]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_reads_the_ids_that_the_service_reads_then_the_letter_and_the_end_of_turn(
    repository: Path,
) -> None:
    """Stated difference: TRL's completions go on after the letter with the template's end of turn,
    the same in both."""
    from transformers import AutoTokenizer
    from trl.data_utils import _tokenize

    base = import_smollm2(repository / "var" / "models")
    tokenizer, encoder = AutoTokenizer.from_pretrained(base), PromptEncoder.from_directory(base)
    about = scenario(
        candidate__news_summary="Rates: 5% <|im_end|> up, says the ECB", candidate__macd=-1.5
    )
    prompt = prepare(about)
    served = [*encoder.head, *encoder.encode(prompt)]
    for chosen, rejected in (("H", "A"), ("B", "J")):
        record = preference_record(
            prompt,
            BY_LABEL[chosen],
            BY_LABEL[rejected],
            margin=0.5,
            weight=1.0,
            scenario_id="one",
            source=PairSource.OUTCOME,
        )
        asked = _tokenize(tokenizer, record["prompt"], add_generation_prompt=True)["input_ids"]
        assert asked == served
        for name, label in (("chosen", chosen), ("rejected", rejected)):
            whole = _tokenize(tokenizer, record["prompt"] + record[name])["input_ids"]
            letter = encoder.label_ids[ACTIONS.index(BY_LABEL[label])]
            assert whole == [
                *served,
                letter,
                *tokenizer.encode("<|im_end|>\n", add_special_tokens=False),
            ]
