"""The four algorithms on a tiny random model: every part moves, reruns agree, collapse is
refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.domain.model.manifest import Calibration
from app.domain.model.outlook import Payoffs
from app.domain.model.questions import QuestionName
from app.policy.in_process.label_reader import LabelReader
from tests.training.support.planted import encoded, short_prompts, tiny_reader
from training.agent.words import Demonstrations
from training.config.learning import ALGORITHMS as SETTINGS
from training.config.learning import (
    AdapterConfig,
    DpoConfig,
    ExpectedConfig,
    RrhfConfig,
    TrainingConfig,
    WarmUpConfig,
)
from training.learning.algorithms import dpo, expected, losses, rrhf, warm_up
from training.learning.algorithms.measures import (
    CollapsedPolicy,
    check_not_collapsed,
    fit_temperature,
    setback,
    validation_metrics,
)
from training.learning.algorithms.probe import fit_probe
from training.learning.algorithms.run import TrainedPolicy
from training.learning.algorithms.table import TRAINS
from training.learning.model.answers import Answers
from training.learning.model.base_pass import Encoded
from training.learning.targets.problem import Problem, TrainingError
from training.learning.targets.questions import Questions

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROWS = 32
HELD_OUT = np.arange(24, ROWS)
ADAPTER = AdapterConfig(rank=4, alpha=8.0)
LIVELY = {"min_entropy": 0.0, "max_majority": 1.0}
ALGORITHMS: dict[str, tuple[Callable[..., TrainedPolicy], TrainingConfig]] = {
    "warm-up": (warm_up.train, WarmUpConfig(epochs=2, batch=8, **LIVELY)),
    **{
        name: (TRAINS[name], settings(epochs=2, batch=8, **LIVELY))
        for name, settings in SETTINGS.items()
    },
    "gradient": (expected.train, ExpectedConfig(epochs=2, batch=8, objective="gradient", **LIVELY)),
    "regress": (expected.train, ExpectedConfig(epochs=2, batch=8, objective="regress", **LIVELY)),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelReader, Encoded]:
    folder = tmp_path_factory.mktemp("tiny")
    reader, base = tiny_reader(folder)
    return reader, encoded(folder, short_prompts(ROWS), reader, base)


def problem(rows: Encoded, **changes: Any) -> Problem:
    """Approving fully pays in odd rows ("btc up") and costs in even ones."""
    rewards = np.zeros((ROWS, 10))
    rewards[:, 1:] = np.where(np.arange(ROWS) % 2, 1.0, -1.0)[:, None] * np.linspace(0.2, 1.0, 9)
    pairs = [(row, 9, 0) if row % 2 else (row, 0, 9) for row in range(ROWS)]
    given: dict[str, Any] = {
        "encoded": rows,
        "rewards": rewards,
        "weights": np.ones(ROWS),
        "train_rows": np.arange(24),
        "validate_rows": np.arange(24, ROWS),
        "calibration": Calibration(),
        "base_name": "tiny-1",
        "pairs": np.array(pairs),
    }
    return Problem(**(given | changes))


def test_a_levelled_problem_starts_where_the_targets_are_on_average(
    tiny: tuple[LabelReader, Encoded],
) -> None:
    _, rows = tiny
    given = problem(rows, weights=np.linspace(1, 2, ROWS)).levelled(0.5)
    train = given.train_rows
    said = Answers(np.asarray(rows.label_log_probs), given.untempered).log_policy[train]
    weights = given.weights[train]
    scores, worth = (
        np.average(table[:, 1:] - table[:, :1], axis=0, weights=weights)
        for table in (said, given.rewards[train])
    )
    np.testing.assert_allclose(scores, worth / 0.5, atol=1e-4)


def trained(
    tiny: tuple[LabelReader, Encoded], folder: Path, name: str, **changes: Any
) -> TrainedPolicy:
    """One run, after a warm-up of one epoch where the algorithm starts from one."""
    reader, rows = tiny
    train, config = ALGORITHMS[name]
    config = config.model_copy(update=changes)
    warm = folder / "warm"
    if getattr(config, "start", None) == "warm_up":
        settings = WarmUpConfig(epochs=1, batch=8, seed=config.seed, **LIVELY)
        warm_up.train(problem(rows), settings, ADAPTER, reader, warm)
    return train(problem(rows, warm_up=warm), config, ADAPTER, reader, folder)


def test_every_algorithm_that_can_be_chosen_has_a_loop() -> None:
    assert SETTINGS.keys() == TRAINS.keys()
    assert {settings().algorithm: settings for settings in SETTINGS.values()} == SETTINGS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_weight_moves_every_step_is_logged_and_a_seed_repeats_the_run(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path, name: str
) -> None:
    first = trained(tiny, tmp_path / "a", name)
    assert len(first.history) == (12 if name == "ppo" else 6)
    for entry in first.history:
        assert entry.keys() >= {
            "loss",
            "entropy",
            "majority",
            "kl",
            "label_mass",
            "learning_rate",
            "reward",
        }
        assert all(np.isfinite(value) for value in entry.values())
    weights = load_file(first.adapter / "adapter_model.safetensors")
    assert all(value.abs().sum() > 0 for value in weights.values())  # B starts at zero
    second = trained(tiny, tmp_path / "b", name)
    np.testing.assert_array_equal(first.answers.raw, second.answers.raw)
    assert first.history == second.history
    other = trained(tiny, tmp_path / "c", name, seed=1)
    assert not np.allclose(first.answers.raw, other.answers.raw, atol=1e-4)


# The others draw actions batch by batch.
@pytest.mark.parametrize("name", ["expected", "gradient", "dpo"])
def test_parts_of_a_batch_make_the_same_run(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path, name: str
) -> None:
    whole = trained(tiny, tmp_path / "a", name, supervised=0.0)
    parts = trained(tiny, tmp_path / "b", name, supervised=0.0, accumulate=4)
    np.testing.assert_allclose(whole.answers.raw, parts.answers.raw, atol=1e-3)


def test_what_is_left_behind_is_complete(tiny: tuple[LabelReader, Encoded], tmp_path: Path) -> None:
    run = trained(tiny, tmp_path, "expected")
    assert {path.name for path in run.adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    np.testing.assert_array_equal(np.load(tmp_path / "policy_log_probs.npy"), run.answers.raw)
    document = json.loads((tmp_path / "training.json").read_text())
    assert document["history"] == run.history
    assert document["metrics"]["rows"] == 8
    assert Calibration.from_json(document["calibration"]) == run.answers.calibration
    assert list((tmp_path / "tensorboard").rglob("events.*"))


def test_the_policys_readings_are_those_of_the_saved_adapter(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    from peft import PeftModel

    reader, rows = tiny
    run = trained(tiny, tmp_path, "expected")
    model = PeftModel.from_pretrained(reader.model, run.adapter).eval()
    try:
        ids = [*reader.encoder.head, *rows.ids(3), *reader.encoder.tail]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    finally:
        model.unload()
    np.testing.assert_allclose(
        run.answers.raw[3], logits[list(reader.encoder.label_ids)], atol=2e-2
    )


def test_expected_reward_rises(tiny: tuple[LabelReader, Encoded], tmp_path: Path) -> None:
    run = trained(tiny, tmp_path, "expected", epochs=15, learning_rate=5e-3, beta=0.1)
    assert run.history[-1]["reward"] > run.history[0]["reward"] + 0.1
    assert run.metrics["greedy"] <= run.metrics["oracle"]


def test_ordinary_lora_trains_too(tiny: tuple[LabelReader, Encoded], tmp_path: Path) -> None:
    reader, rows = tiny
    train, config = ALGORITHMS["expected"]
    run = train(
        problem(rows), config, ADAPTER.model_copy(update={"kind": "ordinary"}), reader, tmp_path
    )
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    assert settings["alora_invocation_tokens"] is None
    assert run.history[-1]["kl"] > 0


def test_a_collapsed_run_fails_and_saves_nothing(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    with pytest.raises(CollapsedPolicy, match="entropy"):
        trained(tiny, tmp_path, "expected", min_entropy=2.4)
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "training.json").exists()


def test_dialogues_are_learned_in_the_warm_up(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    reader, rows = tiny
    said = Demonstrations(
        np.arange(ROWS) % 2 * 8,
        tuple("Buyers lead." if i % 2 else "Too quiet." for i in range(ROWS)),
    )
    config = WarmUpConfig(
        epochs=3,
        batch=8,
        target="agent",
        supervised=1.0,
        dialogue_every=1,
        learning_rate=1e-2,
        **LIVELY,
    )
    run = warm_up.train(problem(rows, demonstrations=said), config, ADAPTER, reader, tmp_path)
    assert len(run.history) == 9
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    with pytest.raises(TrainingError, match="needs the agent's actions"):
        warm_up.train(problem(rows), config, ADAPTER, reader, tmp_path / "none")
    with pytest.raises(TrainingError, match="needs a finished warm-up"):
        rrhf.train(problem(rows), RrhfConfig(), ADAPTER, reader, tmp_path / "cold")


def test_the_warm_up_on_the_optimum_nears_it(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    bias = problem(tiny[1]).bias
    base = losses.log_policy_of(torch.from_numpy(np.array(tiny[1].label_log_probs)), bias)
    rewards = torch.from_numpy(problem(tiny[1]).rewards).float()
    target = losses.closed_form(losses.indifferent(rewards), rewards, 0.2)
    run = trained(tiny, tmp_path, "warm-up", epochs=15, beta=0.2)
    nearer, rows = losses.log_policy_of(torch.from_numpy(run.answers.raw), bias), slice(0, 24)
    away = losses.kl_divergence(target, nearer)[rows].mean()
    assert away < 0.8 * losses.kl_divergence(target, base)[rows].mean()


def test_an_algorithm_goes_on_from_the_warm_up_which_is_its_reference(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    run = trained(tiny, tmp_path, "dpo", learning_rate=1e-9)
    bias = problem(tiny[1]).bias
    warm = np.load(tmp_path / "warm" / "policy_log_probs.npy")
    assert not np.allclose(warm, tiny[1].label_log_probs, atol=1e-2)
    np.testing.assert_allclose(run.answers.raw, warm, atol=1e-3)
    np.testing.assert_allclose(
        run.reference, losses.log_policy_of(torch.from_numpy(warm), bias), atol=1e-6
    )
    assert run.history[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_dpo_without_pairs_and_overlapping_or_empty_rows_are_one_line_each(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    reader, rows = tiny
    with pytest.raises(TrainingError, match="needs preference pairs"):
        dpo.train(problem(rows, pairs=None), DpoConfig(), ADAPTER, reader, tmp_path)
    with pytest.raises(TrainingError, match="overlap"):
        problem(rows, validate_rows=np.array([23, 24]))
    with pytest.raises(TrainingError, match="no train rows with known rewards"):
        problem(rows, rewards=np.full((ROWS, 10), np.nan))


def test_rows_without_rewards_do_not_train(tiny: tuple[LabelReader, Encoded]) -> None:
    rewards = np.zeros((ROWS, 10))
    rewards[3] = np.nan
    found = problem(tiny[1], rewards=rewards, weights=np.linspace(0.1, 1, ROWS))
    assert 3 not in found.train_rows
    assert found.weights[found.train_rows].mean() == pytest.approx(1)


def test_pairs_weigh_as_their_scenarios_do(tiny: tuple[LabelReader, Encoded]) -> None:
    weights = np.ones(ROWS)
    weights[:24] = [2.0] * 12 + [0.0] * 12
    # The last is a validation row's.
    pairs = np.array([(0, 1, 2), (0, 3, 4), (13, 1, 2), (30, 1, 2)])
    table = dpo.PairTable.of(problem(tiny[1], pairs=pairs, weights=weights))
    assert table.rows.tolist() == [0, 13]
    policy = torch.full((2, 10), 0.1).log()
    loss = table.loss(policy, policy, torch.tensor([0, 13]), beta=0.1)
    # (2 + 2 + 0) ln 2 over 3 pairs
    assert loss.item() == pytest.approx(4 * np.log(2) / 3)


def test_candidates_hold_the_best_and_are_different() -> None:
    rewards = torch.tensor([[0.0, 5.0, 1.0, -1.0], [9.0, 0.0, 0.0, 0.0]])
    source = torch.Generator().manual_seed(0)
    for _ in range(20):
        chosen = rrhf.candidates(rewards, 3, source)
        assert chosen[:, 0].tolist() == [1, 0]
        assert all(len(set(row)) == 3 for row in chosen.tolist())


def test_temperature_is_found_again() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 2, (4000, 10))
    honest = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    sharpened = torch.log_softmax(torch.from_numpy(logits * 2.5), -1).numpy()
    assert fit_temperature(sharpened, honest, np.ones(4000)) == pytest.approx(2.5, rel=1e-3)


def test_collapse_is_a_matter_of_probability_not_of_the_argmax() -> None:
    rewards = np.zeros((4, 10))
    same = np.tile(np.log([0.55, *[0.05] * 9]), (4, 1))
    rows = np.arange(4)
    metrics = validation_metrics(Answers(same, Calibration()), same, rewards, rows, rows)
    assert metrics["same_argmax"] == 1.0
    assert metrics["majority"] == pytest.approx(0.55)
    check_not_collapsed(metrics, ExpectedConfig())
    with pytest.raises(CollapsedPolicy, match=r"0\.550 of the probability"):
        check_not_collapsed(metrics, ExpectedConfig(max_majority=0.5))


def test_a_setback_is_the_deepest_fall_of_what_was_learned() -> None:
    """Tenths of twenty steps: up to 0.9, down to 0.6, up to 0.95."""
    tenths = [0.5, 0.8, 0.9, 0.7, 0.6, 0.8, 0.9, 0.9, 0.95, 0.94]
    history = [{"label_mass": mass + gap} for mass in tenths for gap in (-0.01, 0.01)]
    assert setback(history) == pytest.approx(0.3)
    assert setback([{"label_mass": mass} for mass in sorted(tenths)]) == 0.0
    assert setback(history[:9]) == 0.0


def test_the_probe_finds_what_is_linear(tiny: tuple[LabelReader, Encoded]) -> None:
    rows = tiny[1]
    linear = np.asarray(rows.last)[:, 0] > np.median(rows.last[:, 0])
    rewards = np.zeros((ROWS, 10))
    rewards[:, 1:] = np.where(linear, 1.0, -1.0)[:, None]
    probe = fit_probe(problem(rows, rewards=rewards), beta=0.1)
    train = probe.log_policy[:24].argmax(1) > 0
    assert (train == linear[:24]).mean() >= 0.9
    np.testing.assert_allclose(np.exp(probe.log_policy).sum(1), 1, atol=1e-6)


def test_the_loss_of_the_closed_form_is_its_entropy(tiny: tuple[LabelReader, Encoded]) -> None:
    """The first step of `expected` starts at the reference, so its loss is the cross-entropy to the
    target."""
    rows = tiny[1]
    one = problem(rows)
    reference = losses.log_policy_of(torch.from_numpy(np.array(rows.label_log_probs)), one.bias)
    target = losses.closed_form(reference, torch.from_numpy(one.rewards).float(), 0.3)
    assert losses.distillation_loss(target, target, torch.ones(ROWS)).item() == pytest.approx(
        losses.entropy(target).mean().item(), abs=1e-5
    )


def test_questions_are_learned_beside_the_action_and_calibrated_on_rows_that_did_not_train(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    """ "btc up" wins with 0.8 and ranges far, "btc down" with 0.2."""
    reader, rows = tiny
    up = np.arange(ROWS) % 2
    win = np.where(up, 0.8, 0.2)
    questions = Questions(
        {
            QuestionName.WIN: np.column_stack([1 - win, win]),
            QuestionName.STOPPED: np.column_stack([win, 1 - win]),
            QuestionName.RANGE: np.eye(5)[np.where(up, 4, 0)],
        },
        Payoffs(won_atr=1.5, stopped_r=-1.0, other_atr=0.0, cost=0.003, spread_bps=2.0),
    )
    config = ExpectedConfig(epochs=30, batch=8, learning_rate=1e-2, questions=30.0, **LIVELY)
    run = expected.train(problem(rows, questions=questions), config, ADAPTER, reader, tmp_path)
    outlook = run.answers.calibration.outlook
    assert outlook is not None
    assert outlook.payoffs == questions.payoffs
    rises = up[:24] == 1
    for name in (QuestionName.WIN, QuestionName.RANGE):
        raw = run.answers.questions[name][:24]
        leaning = raw[:, -1] - raw[:, 0]  # the last label against the first, nats
        assert leaning[rises].mean() > leaning[~rises].mean() + 0.5, name
    readings = run.answers.readings()
    question = outlook.questions[QuestionName.WIN]
    held_out = [question.mean(readings[row].questions[QuestionName.WIN]) for row in HELD_OUT]
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.02), "calibrated"
    document = json.loads((tmp_path / "training.json").read_text())
    assert Calibration.from_json(document["calibration"]) == run.answers.calibration
    assert document["questions"].keys() == set(QuestionName)
    assert document["questions"]["win"]["rows"] == len(HELD_OUT)


def test_without_their_weight_questions_are_not_asked(
    tiny: tuple[LabelReader, Encoded], tmp_path: Path
) -> None:
    reader, rows = tiny
    half = np.full((ROWS, 2), 0.5)
    payoffs = Payoffs(won_atr=1.0, stopped_r=-1.0, other_atr=0.0, cost=0.0, spread_bps=0.0)
    given = problem(rows, questions=Questions({QuestionName.WIN: half}, payoffs))
    settings = {"epochs": 1, "batch": 8, **LIVELY}
    asked, silent = (
        expected.train(given, ExpectedConfig(questions=w, **settings), ADAPTER, reader, folder)
        for w, folder in ((1.0, tmp_path / "asked"), (0.0, tmp_path / "silent"))
    )
    plain = expected.train(
        problem(rows), ExpectedConfig(**settings), ADAPTER, reader, tmp_path / "plain"
    )
    assert asked.answers.calibration.asked == (QuestionName.WIN,)
    assert silent.answers.calibration.outlook is None
    np.testing.assert_array_equal(silent.answers.raw, plain.answers.raw)
    assert not np.array_equal(asked.answers.raw, plain.answers.raw)
