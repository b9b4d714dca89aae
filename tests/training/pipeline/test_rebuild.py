"""The pipeline from bars to a judged version, on a tiny model: what it leaves, how it goes on, what
it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.policy.versions.store import load_manifest
from tests.training.support.rebuilds import NOW, RIVAL, config_in, shop_of
from training.__main__ import app
from training.config.section import ConfigError
from training.judging.contest.arms import (
    ARMS,
    AS_VETO,
    BASE_MODEL,
    POLICY,
    PROBE,
    RANDOM,
    RAW,
    SHUFFLED,
    TEACHER,
    WARM_UP,
)
from training.judging.gate.looks import FILE as LOOKS
from training.learning.algorithms.measures import CollapsedPolicy
from training.learning.model.base_pass import Encoded
from training.learning.targets.utility import dealt_out, targets
from training.learning.teacher.predictions import Predictions
from training.learning.teacher.teacher import Teacher
from training.market.bars import MarketDataError
from training.outcomes.labels import Labels
from training.pipeline.evaluate import Evaluated, evaluate
from training.pipeline.rebuild import Rebuilt, rebuild
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact, ArtifactError

STAGES = {
    "candidate_scenarios": "scenarios",
    "candidate_labels": "labels",
    "scenarios": "scenarios",
    "labels": "labels",
    "encoded": "encoded",
    "teacher": "teacher",
    "taught": "taught",
    "preferences": "preferences",
    "policy": "policy",
}
"""Stages by the name that the pipeline has for their artefact."""


@pytest.fixture(scope="module")
def rebuilt(workplace: Path, tiny_base: Path, evaluated: Evaluated) -> Rebuilt:
    """The same again: everything is found."""
    lines: list[str] = []
    config = config_in(workplace, tiny_base)
    made = rebuild(config, shop_of(config, lines.append))
    assert [line.split(":")[1].split()[0] for line in lines] == ["found"] * len(STAGES)
    return made


def test_every_stage_leaves_an_artefact_that_names_what_it_was_made_from(rebuilt: Rebuilt) -> None:
    assert tuple(rebuilt.artifacts) == tuple(STAGES)
    for name, artifact in rebuilt.artifacts.items():
        again = Artifact.open(artifact.path, STAGES[name], deep=True)
        hashes = {each.hash for each in rebuilt.artifacts.values()}
        assert set(again.manifest["inputs"].values()) <= hashes
    assert set(rebuilt.policy.manifest["inputs"]) == {
        "scenarios",
        "labels",
        "encoded",
        "taught",
        "preferences",
    }


def test_the_teachers_networks_read_the_prompts_where_the_base_pass_was_made(
    rebuilt: Rebuilt,
) -> None:
    made = rebuilt.artifacts
    assert made["teacher"].manifest["inputs"] == {
        "scenarios": made["candidate_scenarios"].hash,
        "labels": made["candidate_labels"].hash,
        "prompted": made["scenarios"].hash,
        "encoded": made["encoded"].hash,
    }
    for answer in made["teacher"].facts["questions"].values():
        assert set(answer["errors"]) == {"ridge", "boosting", "network", "stack"}
    scenarios, teacher = ScenarioSet.open(made["scenarios"]), Teacher.open(made["teacher"])
    kept = Predictions.open(made["taught"])
    again = teacher.of(scenarios, Encoded.open(made["encoded"]))
    np.testing.assert_allclose(kept.expected, again.expected, atol=1e-5)
    # What it said of a scenario among all candidates, it says of it among those with prompts.
    place = {name: row for row, name in enumerate(teacher.ids.tolist())}
    rows = [place[name] for name in scenarios.table["id"]]
    np.testing.assert_allclose(kept.win, teacher.out_of_fold.win[rows], atol=1e-5)
    school = teacher.schools["whole"]
    assert all(member.get_buffer("basis").abs().sum() > 0 for member in school.networks.members)


def test_nothing_of_the_held_out_period_is_trained_on(rebuilt: Rebuilt) -> None:
    table = ScenarioSet.open(rebuilt.artifacts["scenarios"]).table
    first_held_out = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp())
    assert len(table) == 80
    assert table["as_of"].to_numpy().max() < first_held_out
    labels = Labels.open(rebuilt.artifacts["labels"]).table
    assert labels["exited_at"].drop_nulls().to_numpy().max() <= first_held_out


def test_the_same_seed_and_data_give_the_same_artefacts_elsewhere(
    rebuilt: Rebuilt, tiny_base: Path, tmp_path: Path
) -> None:
    config = config_in(tmp_path, tiny_base)
    again = rebuild(config, shop_of(config))
    for stage in ("scenarios", "labels", "preferences"):
        assert again.artifacts[stage].hash == rebuilt.artifacts[stage].hash, stage
    mine, theirs = (np.load(each.policy / "policy_log_probs.npy") for each in (rebuilt, again))
    assert np.abs(mine - theirs).max() < 1e-4


def test_a_rebuild_that_was_killed_goes_on_where_it_stopped(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = config_in(tmp_path, tiny_base)

    class Killed(BaseException):
        pass

    @contextmanager
    def dying(title: str) -> Iterator[Callable[[int, int], None]]:
        def kill(done: int, total: int) -> None:
            if title == "encoded" and done >= 32:
                raise Killed

        yield kill

    with pytest.raises(Killed):
        rebuild(config, shop_of(config, meter=dying))
    left = sorted(path.name.split("-")[0] for path in config.artifacts.iterdir())
    assert left == ["cache", "labels", "labels", "scenarios", "scenarios"]
    read: list[int] = []

    @contextmanager
    def watching(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: read.append(done) if title == "encoded" else None

    made = rebuild(config, shop_of(config, meter=watching))
    assert read[0] == 32, "the finished shard is not read again"
    assert made.artifacts["encoded"].facts["read"] == 48


def test_a_collapsed_policy_raises_and_leaves_no_artefact(
    rebuilt: Rebuilt, workplace: Path, tiny_base: Path
) -> None:
    config = config_in(workplace, tiny_base, policy__min_entropy=2.4)
    with pytest.raises(CollapsedPolicy, match="entropy"):
        rebuild(config, shop_of(config))
    policies = {path.name for path in config.artifacts.glob("policy-*")}
    assert rebuilt.policy.path.name in policies
    assert len(policies) == 2, "the judged one and its rival"


def test_a_truncated_artefact_is_one_clear_error(
    rebuilt: Rebuilt, tiny_base: Path, tmp_path: Path
) -> None:
    config = config_in(tmp_path, tiny_base)
    config.artifacts.mkdir(parents=True)
    source = rebuilt.artifacts["scenarios"].path
    shutil.copytree(source, config.artifacts / source.name)
    damaged = config.artifacts / source.name / "scenarios.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"scenarios\.parquet was cut or changed"):
        rebuild(config, shop_of(config))


def test_too_little_history_and_a_log_without_url_are_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = config_in(tmp_path, tiny_base, market={"source": "directory", "directory": tmp_path})
    with pytest.raises(MarketDataError, match="no file named like"):
        rebuild(config, shop_of(config))
    config = config_in(tmp_path, tiny_base, scenarios__source="shadow_log")
    with pytest.raises(ConfigError, match="--database or DATABASE_URL"):
        rebuild(config, shop_of(config))
    assert not list(tmp_path.rglob("manifest.json"))


def test_targets_are_what_the_teacher_expects_and_controls_are_what_they_say() -> None:
    from training.config.learning import TargetsConfig

    realised = np.array([[0.0, 2.0], [0.0, -1.0], [np.nan, np.nan]])
    expected = np.array([[0.2, 0.0], [0.0, 1.0], [5.0, 5.0]])
    train = np.array([0, 1])
    sd, none = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0]]), np.zeros(3)
    said = Predictions(expected, sd, np.zeros_like(sd), none + 0.001, none, none, none)
    worth = targets(realised, said, train, TargetsConfig(risk_aversion=0.1))
    assert worth[:2].tolist() == [[0.2, -0.1], [0.0, 0.6]]
    assert np.isnan(worth[2]).all(), "what bars cannot judge trains nobody"
    plain = {"source": "outcomes", "risk_aversion": 0.0}
    outcomes = targets(realised, said, train, TargetsConfig(**plain))
    assert outcomes[:2].tolist() == realised[:2].tolist()
    centred = targets(realised, said, train, TargetsConfig(**plain, centre=True))
    assert centred[:2].tolist() == [[0.0, 1.5], [0.0, -1.5]]


def test_dealt_out_rewards_are_whole_fates_of_other_training_rows() -> None:
    rewards = np.arange(6.0)[:, None] * np.ones(10)
    pairs = np.array([(row, 1, 0) for row in range(6)])
    train = np.arange(4)
    shuffled, moved = dealt_out(rewards, pairs, train, seed=3)
    assert sorted(shuffled[:4, 0]) == [0, 1, 2, 3]
    assert shuffled[:4, 0].tolist() != [0, 1, 2, 3]
    assert shuffled[4:, 0].tolist() == [4, 5]
    assert (shuffled == shuffled[:, :1]).all()
    # The pair that row r brought along stands where its fate went.
    assert shuffled[moved[:, 0], 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_version_is_published_and_names_its_evidence(
    evaluated: Evaluated, rebuilt: Rebuilt
) -> None:
    manifest = load_manifest(evaluated.version)
    assert manifest.model_version == evaluated.version.name
    assert manifest.base is not None
    assert manifest.provenance["data"]["policy"] == rebuilt.policy.hash
    assert manifest.provenance["algorithm"] == "expected"


def test_the_report_tells_of_every_arm(evaluated: Evaluated) -> None:
    twin = json.loads((evaluated.artifact / "report.json").read_text())
    tables = {
        table["caption"]: table for section in twin["sections"] for table in section["tables"]
    }
    arms = [row["arm"]["value"] for row in tables["Mean reward per scenario, net of costs"]["rows"]]
    assert set(arms) == {
        *ARMS,
        RANDOM,
        POLICY,
        RAW,
        AS_VETO,
        "policy dpo",
        BASE_MODEL,
        WARM_UP,
        PROBE,
        TEACHER,
        SHUFFLED,
    }
    assert "buy and hold" in [
        row["arm"]["value"] for row in tables["Measures of the portfolio, by trade"]["rows"]
    ]
    every = tables["Every candidate of the period, arms without a language model"]
    assert {row["arm"]["value"] for row in every["rows"]} == {*ARMS, TEACHER, SHUFFLED}
    shares = [row["share traded"]["value"] for row in every["rows"]]
    assert 1.0 in shares, "always approve"
    page = (evaluated.artifact / "report.html").read_text()
    assert evaluated.version.name in page
    assert ">nan" not in page.lower()


def test_a_few_scenarios_never_pass_the_gate(evaluated: Evaluated) -> None:
    codes = {each["code"] for each in evaluated.report["verdict"]["refusals"]}
    assert {"too_few_scenarios", "too_few_days"} <= codes
    assert "split_overlaps" not in codes, "what lies within the embargo was left out"
    checks = {each["name"]: each["passed"] for each in evaluated.report["checks"]}
    assert checks["parity"], evaluated.report["checks"]


def test_each_look_at_the_held_out_period_is_counted(
    evaluated: Evaluated, workplace: Path, tiny_base: Path
) -> None:
    looks = (tiny_base.parent / LOOKS).read_text().splitlines()
    counted, told = map(json.loads, looks)
    assert counted["version"] == told["version"] == evaluated.version.name
    assert "tried" not in counted, "a look is counted before anything is seen"
    assert set(told["tried"]) == {"policy", "policy dpo"}
    config = config_in(workplace, tiny_base)
    again = evaluate(config, shop_of(config), NOW, [RIVAL])
    assert again.artifact.path == evaluated.artifact.path, "found, not repeated"
    assert (tiny_base.parent / LOOKS).read_text().splitlines() == 2 * looks, "written down anew"


def test_promotion_needs_a_passing_report_or_a_named_override(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*more: str) -> Any:
        return CliRunner().invoke(
            app, ["promote", str(evaluated.artifact.path), "--url", "http://127.0.0.1:1", *more]
        )

    refused = ask()
    assert refused.exit_code == 1
    assert "did not pass the gate: " in str(refused.exception)
    assert "needs a name and a reason" in str(ask("--override").exception)
    asked = ask("--override", "--by", "Ada", "--why", "trial on the test desk")
    assert "127.0.0.1:1" in str(asked.exception), "sealed, and then the service is asked"
    [sealed] = evaluated.artifact.path.parent.glob("evaluation-*.override-*.json")
    override = json.loads(sealed.read_text())["override"]
    assert (override["by"], override["why"]) == ("Ada", "trial on the test desk")
