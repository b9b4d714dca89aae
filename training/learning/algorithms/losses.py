"""Losses of policy optimisation: pure functions of tensors, each with its source. docs/papers.md
says what deviates.

Shapes: B rows, A actions, P pairs, K candidates. Log-probabilities are in nats and, where a policy
over actions is meant (`log_policy`), normalised over the actions: log_softmax(label
log-probabilities - bias). `weight` (uniqueness, mean 1 over the training rows) multiplies each
row's loss; the result is the plain mean of the products, so that halves of a batch average to the
whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from app.domain.errors import AdvisorError


class LossError(AdvisorError):
    """Tensors whose shapes or values no loss is defined for."""


def log_policy_of(label_log_probs: Tensor, bias: Tensor) -> Tensor:
    """(B, A) raw label log-probabilities and (A,) bias to the policy's log-probabilities (B, A)."""
    return torch.log_softmax(label_log_probs - bias, dim=-1)


def kl_divergence(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """KL(policy || reference) of every row, (B,), nats. Inputs (B, A)."""
    return (log_policy.exp() * (log_policy - log_reference)).sum(-1)


def entropy(log_policy: Tensor) -> Tensor:
    """Of every row, (B,), nats. Input (B, A)."""
    return -(log_policy.exp() * log_policy).sum(-1)


def supervised_loss(log_policy: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy on one action per row. `log_policy` (B, A), `labels` and `weight` (B,)."""
    picked = log_policy.gather(1, labels[:, None]).squeeze(1)
    return -(weight * picked).mean()


def format_loss(label_log_probs: Tensor) -> Tensor:
    """-log of the probability mass on labels, mean over rows: the model must answer with a letter.
    Input (B, A), raw.

    Together with `supervised_loss` this is the token cross-entropy on the label when the bias is
    zero; kept apart so that a bias stays removed from the policy.
    """
    return -torch.logsumexp(label_log_probs, dim=-1).mean()


def question_loss(label_log_probs: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the chances of a question's labels to a target distribution, both (B, K);
    raw log-probabilities are normalised over the labels. Rows whose target is NaN count nothing."""
    known = target.isfinite().all(-1)
    log_chances = torch.log_softmax(label_log_probs, dim=-1)
    of_rows = -(target.nan_to_num() * log_chances).sum(-1)
    return (weight * known * of_rows).mean()


def indifferent(log_policy: Tensor) -> Tensor:
    """The policy that knows nothing: every action alike. Same shape as `log_policy`, (B, A).

    As a reference it makes the optimum below the softmax of rewards / beta: scores that are
    utilities.
    """
    return torch.full_like(log_policy, -math.log(log_policy.shape[-1]))


def closed_form(log_reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Log of the optimum of E[R] - beta KL(pi || pi_ref): pi* ~ pi_ref exp(R / beta), normalised
    over the actions.

    Rafailov et al. 2023, eq. 4 (after Peters and Schaal 2007); the partition function is a sum of A
    terms here. Inputs and result (B, A); rewards in R, any constant added to a row changes nothing.
    Rewards must be expectations: a mean of optima of realised rewards is not the optimum of their
    mean, and prefers what is often best to what earns most.
    """
    _positive(beta)
    return torch.log_softmax(log_reference + rewards / beta, dim=-1)


def distillation_loss(log_policy: Tensor, log_target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the policy to a target distribution, both (B, A); least where they are
    equal."""
    return -(weight * (log_target.exp() * log_policy).sum(-1)).mean()


def regression_loss(
    log_policy: Tensor, rewards: Tensor, weight: Tensor, spread: Tensor, beta: float
) -> Tensor:
    """Squared error of beta (log pi(a) - log pi(reject)) as the reward that an action has beyond
    rejecting, in units of `spread`; mean over the actions that approve. 0 at `closed_form` with the
    indifferent reference, and nowhere else.

    Gao et al. 2024 (REBEL, arXiv:2404.16767), whose second action is always rejecting, the first
    one. Where the rewards of all scenarios are nearly alike, cross-entropy to the same optimum
    hardly depends on what differs between them; in units of its spread that is all there is.
    `log_policy` and `rewards` (B, A), `weight` (B,), `spread` (A,) in R.
    """
    _positive(beta)
    said = beta * (log_policy[:, 1:] - log_policy[:, :1])
    error = (said - (rewards[:, 1:] - rewards[:, :1])) / spread[1:]
    return (weight * error.square().mean(-1)).mean()


def expected_reward_loss(
    log_policy: Tensor, log_reference: Tensor, rewards: Tensor, weight: Tensor, beta: float
) -> Tensor:
    """-(E_pi[R] - beta KL(pi || pi_ref)), exact since the reward of every action is known. Inputs
    (B, A).

    The objective of Rafailov et al. 2023, eq. 3. Rewards are centred by the reference's mean, which
    leaves the gradient as it is and the number readable: the gain over the reference.
    """
    gain = (log_policy.exp() * rewards).sum(-1) - (log_reference.exp() * rewards).sum(-1)
    return -(weight * (gain - beta * kl_divergence(log_policy, log_reference))).mean()


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """-log sigmoid(beta ((chosen - reference) - (rejected - reference))) of every pair. All (P,).

    Rafailov et al. 2023, eq. 7. Log-probabilities of whole completions, nats: here a letter. What
    is common to both (normalisation over labels, mass) cancels, so raw and normalised
    log-probabilities give the same loss.
    """
    _positive(beta)
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -functional.logsigmoid(beta * margin)


def ppo_policy_loss(log_new: Tensor, log_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) of every sampled action. Any equal shapes.

    Schulman et al. 2017, eq. 7, with the sign of a loss.
    """
    ratio = (log_new - log_old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def value_loss(value: Tensor, returned: Tensor) -> Tensor:
    """(V - return)^2. Schulman et al. 2017, eq. 9, without clipping. Any equal shapes."""
    return (value - returned).square()


def rrhf_ranking_loss(scores: Tensor, rewards: Tensor) -> Tensor:
    """Sum over pairs with r_i < r_j of max(0, p_i - p_j), (B,). Inputs (B, K); NaN rewards take no
    part.

    Yuan et al. 2023, eq. 2 and 3: p is the length-normalised log-probability; a letter has length
    1. No margin.
    """
    worse = rewards[:, :, None] < rewards[:, None, :]
    excess = (scores[:, :, None] - scores[:, None, :]).clamp(min=0)
    return (excess * worse).sum((1, 2))


def rrhf_best_loss(scores: Tensor, rewards: Tensor) -> Tensor:
    """-p of the best candidate, (B,). Yuan et al. 2023, eq. 4: without it the ranking degenerates.
    Inputs (B, K)."""
    best = rewards.nan_to_num(nan=-torch.inf).argmax(1)
    return -scores.gather(1, best[:, None]).squeeze(1)


def _positive(beta: float) -> None:
    if not beta > 0:
        raise LossError(f"beta is {beta}, it must be positive")
