"""Training the reward model: what is predicted was not seen, variants follow parents, signal is
found or none is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.training.support.artifacts import made_up
from tests.training.support.rewards import HOUR, reward_data, small, with_rewards
from training.learning.reward.accuracy import accuracies, pairs_within
from training.learning.reward.ensemble import (
    Predicted,
    RewardData,
    Rewards,
    build_reward,
    cross_validate,
    fit_member,
    inner_split,
    linear_control,
    report_of,
)
from training.learning.reward.network import RewardError, RewardNetwork, predict
from training.scenarios.splits import overlapping, purged_kfold
from training.stages.store import Artifact, ArtifactError

EMBARGO_S = 12.0 * HOUR


def predicted(data: RewardData, **changes: object) -> Predicted:
    return cross_validate(data, small(**changes), EMBARGO_S)[1]


def fold_of(data: RewardData, number: int) -> np.ndarray:
    folds = purged_kfold(data.as_of[data.train], data.ends_at[data.train], small().folds, EMBARGO_S)
    return data.with_variants(data.train[folds[number].test])


def test_a_scenario_is_predicted_by_members_that_never_saw_it_or_its_variants() -> None:
    data = reward_data(variants=60)
    before, mine = predicted(data), fold_of(data, 1)
    assert (mine >= 120).any()  # variants are among them
    after = predicted(with_rewards(data, mine, 3.0))
    for name in ("members", "linear", "constant"):
        one, other = (np.moveaxis(getattr(each, name), -2, 0) for each in (before, after))
        assert np.array_equal(one[mine], other[mine]), name
        assert not np.array_equal(np.delete(one, mine, 0), np.delete(other, mine, 0)), name


def test_validation_rewards_are_never_read() -> None:
    data = reward_data()
    before, after = predicted(data), predicted(with_rewards(data, data.validate, 3.0))
    assert np.array_equal(before.members, after.members)
    assert np.array_equal(before.linear, after.linear)


def test_rows_without_rewards_do_not_train_but_are_predicted() -> None:
    data = reward_data()
    unknown = with_rewards(data, np.array([3, 50]), np.nan)
    found = predicted(unknown)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.linear).all()
    fitting, stopping = inner_split(unknown, unknown.train, EMBARGO_S)
    assert not np.isin([3, 50], [*fitting, *stopping]).any()


def test_early_stopping_watches_later_scenarios_that_fitting_rows_do_not_overlap() -> None:
    data = reward_data(variants=90, every=2)  # windows of 7 hours begin every 2
    fitting, stopping = inner_split(data, data.train, EMBARGO_S)
    assert len(stopping) == round(0.15 * len(data.train))
    assert (stopping < 120).all()  # real ones decide
    assert not overlapping(fitting, stopping, data.as_of, data.ends_at, EMBARGO_S).any()
    assert data.ends_at[fitting].max() <= data.as_of[stopping].min()
    assert (fitting >= 120).any()
    assert not np.isin(data.parent[fitting], stopping).any()


def test_signal_is_found_out_of_fold_and_on_later_scenarios() -> None:
    data = reward_data(300, signal=1.0)
    report = report_of(data, predicted(data), 0)
    for part in report.values():
        assert part["within"]["pairwise_head"]["low"] > 0.696  # the anchor
        assert part["within"]["lead"]["constant"]["low"] > 0.05
        assert part["across"]["scalar_head"]["low"] > 0.6
        assert part["spearman"]["scalar_head"]["pooled"] > 0.4
        assert part["calibration"]["log_loss"] < np.log(2)


def test_without_signal_nothing_is_claimed() -> None:
    data = reward_data(300, signal=0.0)
    report = report_of(data, predicted(data), 0)
    for part in report.values():
        assert part["within"]["lead"]["constant"]["low"] <= 0
        assert part["across"]["scalar_head"]["low"] < 0.55


def test_the_transformer_finds_what_is_not_linear() -> None:
    """The sign of a product: no linear model of either number ranks better than a coin."""
    data = reward_data(500, seed=3)
    sign = np.sign(data.inputs.numbers[:, 0] * data.inputs.numbers[:, 2])
    data = replace(
        data, rewards=data.rewards * (np.sign(data.inputs.numbers[:, 0]) * sign)[:, None]
    )
    fitting, stopping = inner_split(data, data.train, EMBARGO_S)
    config = small(epochs=40, patience=10, width=32, learning_rate=3e-3)
    member = fit_member(data, fitting, stopping, config, 0)
    pairs = pairs_within(data.rewards, data.weights, data.as_of, data.validate)
    scores = np.zeros_like(data.rewards)
    scores[data.validate] = predict([member], data.inputs, data.validate)[0, 1]
    linear = np.zeros_like(data.rewards)
    linear[data.validate] = linear_control(data, fitting, stopping, data.validate, config)
    found = accuracies(pairs, {"network": scores, "linear": linear}, "network", 0)
    assert found["lead"]["linear"]["low"] > 0.03


def test_the_same_seed_gives_the_same_predictions_and_members_differ() -> None:
    data = reward_data()
    one, other = predicted(data), predicted(data)
    assert np.array_equal(one.members, other.members)
    assert one.members[:, 0, :, 1:].std(0).min() > 0
    assert not np.array_equal(one.members, predicted(data, seed=1).members)


def test_too_few_scenarios_are_one_clear_error() -> None:
    data = reward_data(40, every=1)
    with pytest.raises(RewardError, match="more scenarios"):
        inner_split(with_rewards(data, data.train[2:], np.nan), data.train, EMBARGO_S)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="multiple of heads"):
        small(width=10, heads=4)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []

    def build(folder: Path) -> dict[str, object]:
        return build_reward(folder, reward_data(), small(), EMBARGO_S, lambda *at: told.append(at))

    return made_up(tmp_path_factory.mktemp("shop"), "reward", build, small()), told


def test_the_stage_leaves_predictions_of_every_row(
    stage: tuple[Artifact, list[tuple[int, int]]],
) -> None:
    artifact, told = stage
    found = Rewards.open(artifact)
    assert found.predictions.shape == found.std.shape == (120, 10)
    assert found.members.shape == (2, 2, 120, 10)
    assert np.allclose(found.predictions, found.members[:, 0].mean(0), atol=1e-6)
    assert np.isfinite(found.predictions).all()
    assert (found.predictions[:, 0] == 0).all()
    assert told[0] == (0, 8)  # two members of all rows and of each of three folds
    assert told[-1] == (8, 8)
    assert set(found.report) == {"out_of_fold", "validate"}
    assert (
        artifact.facts["out_of_fold"]["pairwise_accuracy"]
        == found.report["out_of_fold"]["within"]["pairwise_head"]
    )


def test_the_saved_ensemble_gives_the_validation_rows_predictions(
    stage: tuple[Artifact, list[tuple[int, int]]],
) -> None:
    artifact, data = stage[0], reward_data()
    members = [RewardNetwork.load(artifact / name) for name in artifact.facts["members"]]
    again = predict(members, data.inputs, data.validate)
    assert np.allclose(
        again[:, 0].mean(0), Rewards.open(artifact).predictions[data.validate], atol=1e-6
    )


def test_a_truncated_artefact_is_refused(
    stage: tuple[Artifact, list[tuple[int, int]]], tmp_path: Path
) -> None:
    copy = tmp_path / "reward"
    copy.mkdir()
    for path in stage[0].path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "predictions.npy").write_bytes((copy / "predictions.npy").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"predictions\.npy"):
        Artifact.open(copy, "reward")
    assert json.loads((copy / "report.json").read_text())["validate"]["scenarios"] == 22
