"""The reward model's network and losses: numbers by hand, and what must not matter does not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.support.rewards import reward_data
from training.learning.reward.linear import standings
from training.learning.reward.network import (
    Batch,
    Linear,
    RewardError,
    RewardInputs,
    RewardNetwork,
    Scaling,
    Sizes,
    bradley_terry_loss,
    predict,
    scalar_loss,
)

ROWS = np.arange(40)


@pytest.fixture(scope="module")
def inputs() -> RewardInputs:
    return reward_data(60).inputs


@pytest.fixture(scope="module")
def network(inputs: RewardInputs) -> RewardNetwork:
    """Untrained but for random heads, so that every part shows in its output."""
    torch.manual_seed(0)
    scaling = Scaling.fit(inputs, ROWS, 4)
    width = scaling.flat(inputs, ROWS).shape[1]
    linear = Linear(torch.randn(width, 20) * 0.1, torch.randn(20) * 0.1, torch.tensor(2.0))
    made = RewardNetwork(Sizes(3, 4, 16, 2, 2, 0.1), scaling, linear)
    torch.nn.init.normal_(made.heads.weight)
    return made.eval()


def rewards(**known: float) -> torch.Tensor:
    """One scenario's rewards, by position: `rewards(a1=0.5)`; the others are 0."""
    values = torch.zeros(1, 10)
    for name, value in known.items():
        values[0, int(name[1:])] = value
    return values


def test_scores_that_say_nothing_cost_ln_2_a_pair() -> None:
    loss = bradley_terry_loss(torch.zeros(1, 10), rewards(a3=1.0), torch.ones(1))
    assert loss.item() == pytest.approx(math.log(2))


def test_a_winner_ahead_by_one_nat_costs_what_the_logistic_says() -> None:
    scores = torch.zeros(1, 10)
    scores[0, 3] = 1.0
    won, lost = (
        bradley_terry_loss(scores, rewards(a3=gain), torch.ones(1)).item() for gain in (1.0, -1.0)
    )
    assert won == pytest.approx(
        math.log(1 + math.exp(-1))
    )  # nine pairs with action 3, all alike; the others are ties
    assert lost == pytest.approx(math.log(1 + math.e))


def test_ties_are_no_pairs_and_a_scenario_counts_by_its_weight() -> None:
    scores = torch.zeros(3, 10)
    scores[0, 3], scores[1, 3] = 1.0, 1.0
    known = torch.cat([rewards(a3=1.0), rewards(a3=-1.0), rewards()])
    loss = bradley_terry_loss(scores, known, torch.tensor([3.0, 1.0, 100.0]))
    assert loss.item() == pytest.approx((3 * math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 4)
    assert bradley_terry_loss(scores[2:], known[2:], torch.ones(1)).item() == 0.0


def test_the_scalar_loss_is_hubers_over_the_nine_approving_actions() -> None:
    predicted = rewards(a0=9.0, a1=0.5, a2=3.0)
    # 0.5^2 / 2 = 0.125; beyond 1 R it is linear: 3 - 0.5 = 2.5; to reject (9.0) does not count.
    assert scalar_loss(predicted, rewards(), torch.tensor([2.0])).item() == pytest.approx(
        (0.125 + 2.5) / 9
    )


def test_standings_count_wins_less_losses() -> None:
    found = standings(np.array([[0.0, 1.0, 1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    # Action 1 beats all but action 2, which is equal; action 3 loses to all; 0 loses to two and
    # beats one.
    assert found[0, [1, 2, 3, 0]].tolist() == pytest.approx([8 / 9, 8 / 9, -1.0, -1 / 9])


def test_an_action_is_valued_alike_alone_and_among_others(
    network: RewardNetwork, inputs: RewardInputs
) -> None:
    batch = inputs.batch(ROWS)
    together = torch.stack(network(batch))
    for action in (0, 4, 9):
        alone = torch.stack(network(batch, actions=[action]))[:, :, 0]
        assert torch.allclose(alone, together[:, :, action], atol=1e-5)


def test_to_reject_earns_nothing_and_other_actions_differ(
    network: RewardNetwork, inputs: RewardInputs
) -> None:
    scalar, score = network(inputs.batch(ROWS))
    assert scalar[:, 0].abs().max() == 0
    assert scalar[:, 1:].std(1).min() > 0
    assert score.std(1).min() > 0


def test_what_stands_in_an_absent_line_does_not_matter(
    network: RewardNetwork, inputs: RewardInputs
) -> None:
    batch = inputs.batch(ROWS)
    filled = Batch(batch.hidden + 7.0 * ~batch.lines[:, :, None], batch.lines, batch.numbers)
    assert not torch.equal(filled.hidden, batch.hidden)
    assert torch.equal(torch.stack(network(filled)), torch.stack(network(batch)))


def test_an_unknown_number_reads_as_the_training_mean_and_is_flagged(inputs: RewardInputs) -> None:
    scaling = Scaling.fit(inputs, ROWS, 4)
    batch = inputs.batch(ROWS)
    _, numbers = scaling.inputs(batch)
    missing = batch.numbers[:, 1].isnan()
    assert missing.any()
    assert (numbers[missing, 1] == 0).all()
    assert torch.equal(numbers[:, 4], missing.float())
    assert numbers[:, 0].mean().item() == pytest.approx(0, abs=1e-5)
    assert numbers[:, 0].std(correction=0).item() == pytest.approx(1, abs=0.05)


def test_scaling_reads_its_own_rows_alone(inputs: RewardInputs) -> None:
    later = RewardInputs(inputs.hidden.copy(), inputs.lines, inputs.numbers.copy())
    later.hidden[40:] *= 3
    later.numbers[40:] += 5
    for one, other in zip(
        *(vars(Scaling.fit(each, ROWS, 1)).values() for each in (inputs, later)), strict=True
    ):
        assert torch.allclose(one.abs(), other.abs(), atol=1e-5)  # a component's sign is arbitrary


def test_a_member_predicts_the_same_after_a_round_trip(
    network: RewardNetwork, inputs: RewardInputs, tmp_path: Path
) -> None:
    path = tmp_path / "member.safetensors"
    network.save(path)
    before, after = (predict([each], inputs, ROWS) for each in (network, RewardNetwork.load(path)))
    assert before.shape == (1, 2, 40, 10)
    assert np.array_equal(before, after)


def test_a_damaged_member_is_refused_by_name(network: RewardNetwork, tmp_path: Path) -> None:
    path = tmp_path / "member.safetensors"
    network.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RewardError, match=r"member\.safetensors.*again"):
        RewardNetwork.load(path)
    with pytest.raises(RewardError, match="absent"):
        RewardNetwork.load(tmp_path / "absent")
