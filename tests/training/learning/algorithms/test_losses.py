"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.learning.algorithms import losses

LN2 = math.log(2)
ONES = torch.ones(1)


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def test_dpo_of_the_reference_itself_is_ln_2() -> None:
    chosen, rejected = torch.tensor([-1.0, -2.5]), torch.tensor([-3.0, -0.5])
    loss = losses.dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(loss, torch.full((2,), LN2))


def test_dpo_by_hand_and_swapping_flips_the_margin() -> None:
    # margin (-1 - -2) - (-3 - -2) = 2, beta 0.5: -log sigmoid(1) = 0.313262
    chosen, rejected, reference = (torch.tensor([value]) for value in (-1.0, -3.0, -2.0))
    loss = losses.dpo_loss(chosen, rejected, reference, reference, beta=0.5)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    swapped = losses.dpo_loss(rejected, chosen, reference, reference, beta=0.5)
    assert swapped.item() == pytest.approx(1.313262, abs=1e-6)


def test_dpo_sees_no_normaliser() -> None:
    raw = torch.tensor([[-1.0, -3.0, -2.0]])
    policy = losses.log_policy_of(raw, torch.zeros(3))
    zero = torch.zeros(1)
    a = losses.dpo_loss(raw[:, 0], raw[:, 1], zero, zero, 0.3)
    b = losses.dpo_loss(policy[:, 0], policy[:, 1], zero, zero, 0.3)
    torch.testing.assert_close(a, b)


def test_a_beta_of_zero_is_refused() -> None:
    with pytest.raises(losses.LossError, match="positive"):
        losses.dpo_loss(ONES, ONES, ONES, ONES, 0.0)


def test_the_closed_form_by_hand() -> None:
    # 0.5 e^(ln 3) : 0.25 : 0.25 = 1.5 : 0.25 : 0.25
    found = losses.closed_form(
        log(0.5, 0.25, 0.25), torch.tensor([[0.3 * math.log(3), 0.0, 0.0]]), 0.3
    )
    torch.testing.assert_close(found.exp(), torch.tensor([[0.75, 0.125, 0.125]]))


rows = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(rows, rows, rows, st.floats(0.1, 2), st.floats(-5, 5))
def test_nothing_beats_the_closed_form_and_a_constant_changes_nothing(
    reference: list[float], rewards: list[float], other: list[float], beta: float, shift: float
) -> None:
    log_reference = torch.log_softmax(torch.tensor([reference], dtype=torch.float64), -1)
    reward = torch.tensor([rewards], dtype=torch.float64)
    best = losses.closed_form(log_reference, reward, beta)
    rival = torch.log_softmax(torch.tensor([other], dtype=torch.float64), -1)
    weight = torch.ones(1, dtype=torch.float64)
    least = losses.expected_reward_loss(best, log_reference, reward, weight, beta)
    assert least <= losses.expected_reward_loss(rival, log_reference, reward, weight, beta) + 1e-9
    torch.testing.assert_close(losses.closed_form(log_reference, reward + shift, beta), best)
    # and distilling it is least at itself
    assert (
        losses.distillation_loss(best, best, weight)
        <= losses.distillation_loss(rival, best, weight) + 1e-9
    )


def test_regression_by_hand_is_nothing_at_the_closed_form() -> None:
    # said 0.5 (ln 0.5 - ln 0.25) = 0.5 ln 2 and 0; wanted 0.1 and -0.2; in units of 0.1 and 0.2
    policy, rewards = log(0.25, 0.5, 0.25), torch.tensor([[0.3, 0.4, 0.1]])
    spread, weight = torch.tensor([9.0, 0.1, 0.2]), torch.tensor([2.0])
    loss = losses.regression_loss(policy, rewards, weight, spread, 0.5)
    expected = 2 * (((0.5 * LN2 - 0.1) / 0.1) ** 2 + (0.2 / 0.2) ** 2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    best = losses.closed_form(losses.indifferent(policy), rewards, 0.5)
    assert losses.regression_loss(best, rewards, weight, spread, 0.5).item() < 1e-10


def test_expected_reward_by_hand() -> None:
    # policy (0.75, 0.25), reference (0.5, 0.5), rewards (1, 0): gain 0.25, KL 0.75 ln 1.5 + 0.25 ln
    # 0.5 = 0.130812
    loss = losses.expected_reward_loss(
        log(0.75, 0.25), log(0.5, 0.5), torch.tensor([[1.0, 0.0]]), ONES, 0.5
    )
    assert loss.item() == pytest.approx(-(0.25 - 0.5 * 0.130812), abs=1e-6)


def test_kl_and_entropy_by_hand() -> None:
    assert losses.kl_divergence(log(0.75, 0.25), log(0.5, 0.5)).item() == pytest.approx(
        0.130812, abs=1e-6
    )
    assert losses.kl_divergence(log(0.3, 0.7), log(0.3, 0.7)).item() == pytest.approx(0, abs=1e-7)
    assert losses.entropy(log(0.5, 0.5)).item() == pytest.approx(LN2)


def test_supervised_loss_is_weighted() -> None:
    policy = torch.cat([log(0.5, 0.5), log(0.25, 0.75)])
    # (1 x ln 2 + 3 x ln 4) / 2 rows
    loss = losses.supervised_loss(policy, torch.tensor([0, 0]), torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((LN2 + 3 * 2 * LN2) / 2)


def test_the_format_loss_is_zero_when_all_mass_is_on_labels() -> None:
    assert losses.format_loss(log(0.5, 0.5)).item() == pytest.approx(0)
    assert losses.format_loss(log(0.25, 0.25)).item() == pytest.approx(LN2)


def test_format_and_supervised_loss_are_token_cross_entropy_without_a_bias() -> None:
    raw = log(0.2, 0.3)
    policy = losses.log_policy_of(raw, torch.zeros(2))
    total = losses.supervised_loss(policy, torch.tensor([1]), ONES) + losses.format_loss(raw)
    assert total.item() == pytest.approx(-math.log(0.3))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # a good action is pushed no further than 1.2
        (0.5, 2.0, -1.0),
        (0.5, -2.0, 1.6),  # a bad one no further than 0.8
        (1.5, -2.0, 3.0),
    ],
)
def test_ppo_is_clipped_on_the_side_that_pays(ratio: float, advantage: float, loss: float) -> None:
    new = torch.tensor([math.log(ratio)])
    found = losses.ppo_policy_loss(new, torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    assert found.item() == pytest.approx(loss, abs=1e-6)


def test_ppo_has_no_gradient_where_it_is_clipped() -> None:
    new = torch.tensor([math.log(1.5), 0.0], requires_grad=True)
    losses.ppo_policy_loss(new, torch.zeros(2), torch.ones(2), clip=0.2).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, -1.0])


def test_value_loss_by_hand() -> None:
    assert losses.value_loss(torch.tensor([1.5]), torch.tensor([-0.5])).item() == 4.0


def test_rrhf_ranks_by_hand() -> None:
    scores, rewards = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    # worse before better: (-1 - -2) + (-1 - -3) + (-2 - -3) = 4
    assert losses.rrhf_ranking_loss(scores, rewards).item() == 4.0
    # In order: no margin is asked for.
    assert losses.rrhf_ranking_loss(-scores, rewards).item() == 0.0
    assert losses.rrhf_best_loss(scores, rewards).item() == 3.0


def test_rrhf_leaves_ties_and_unknown_rewards_out() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0]])
    assert losses.rrhf_ranking_loss(scores, torch.tensor([[1.0, 1.0, 1.0]])).item() == 0.0
    assert losses.rrhf_ranking_loss(scores, torch.tensor([[0.0, float("nan"), 1.0]])).item() == 2.0
    assert losses.rrhf_best_loss(scores, torch.tensor([[0.0, 0.5, float("nan")]])).item() == 2.0


def test_the_bias_is_taken_off_before_normalising() -> None:
    # odds 4 : 1 after the bias, whatever mass lies elsewhere
    policy = losses.log_policy_of(log(0.2, 0.1), torch.tensor([0.0, LN2]))
    torch.testing.assert_close(policy.exp(), torch.tensor([[0.8, 0.2]]))
