"""Expected reward under KL, exact: the reward of every action is known, so nothing is sampled.

`distil` (default): cross-entropy to the closed-form optimum pi* ~ pi_ref exp(R / beta), normalised
over the actions (Rafailov et al. 2023, eq. 4; as in advantage-weighted regression, Peng et al.
2019, but with all actions weighted). `gradient`: ascent on E_pi[R] - beta KL(pi || pi_ref) itself
(eq. 3 there).

Deviations: the partition function, intractable for texts, is a sum over the actions; rewards are
realised outcomes, so pi* fits their noise and only the adapter's small capacity, few epochs and the
KL average it out over scenarios.
"""

from __future__ import annotations

from pathlib import Path

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.learning import AdapterConfig, ExpectedConfig
from training.learning.algorithms import losses
from training.learning.algorithms.run import (
    Problem,
    TrainedPolicy,
    batches,
    finish,
    started,
    step,
    supervised_part,
)


def train(
    problem: Problem,
    config: ExpectedConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `CollapsedPolicy`."""
    with started(problem, config, adapter, reader, folder, progress) as run:
        for rows in batches(run, problem.train_rows, config.epochs, config.learning_rate):
            with run.accelerator.accumulate(run.policy):
                output = run.policy(rows)
                log_policy = run.log_policy(output)
                reference, rewards = run.to(run.reference, rows), run.to(problem.rewards, rows)
                weight = run.to(problem.weights, rows)
                if config.objective == "distil":
                    target = losses.closed_form(reference, rewards, config.beta)
                    loss = losses.distillation_loss(log_policy, target, weight)
                else:
                    loss = losses.expected_reward_loss(
                        log_policy, reference, rewards, weight, config.beta
                    )
                loss = loss + supervised_part(run, output, rows)
                step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)
