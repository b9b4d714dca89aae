"""What the four algorithms' scripts share: a run on Accelerate, one step, the verdict at the end.

Functions, no trainer: a script reads load -> batches -> loss -> step -> save. The policy that every
algorithm trains is softmax(label log-probabilities - bias) with the base manifest's bias,
temperature 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from app.domain.model.actions import ACTIONS
from app.domain.model.questions import QuestionName
from app.policy.in_process.label_reader import LabelReader
from training.agent.words import Demonstrations, dialogue
from training.arrays import Progress
from training.config.learning import AdapterConfig, AlgorithmConfig, TrainingConfig
from training.learning.algorithms import losses
from training.learning.algorithms.measures import (
    Measures,
    check_not_collapsed,
    fit_temperature,
    policy_measures,
    setback,
    validation_metrics,
)
from training.learning.model.adapted import (
    PolicyModel,
    PolicyOutput,
    adapted,
    load_adapter,
    save_adapter,
)
from training.learning.model.answers import Answers
from training.learning.targets.problem import Problem, TrainingError
from training.learning.targets.questions import calibrated

ADAPTER, READINGS = "adapter", "policy_log_probs.npy"
"""What a finished run leaves: PEFT's files, and (N, 10) raw label log-probabilities of all rows."""
_EVALUATION_BATCH = 32


@dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """A finished run. `folder/adapter` holds PEFT's files, `folder/policy_log_probs.npy` the raw
    answers to all rows, `folder/training.json` history, metrics and calibration. `reference` is (N,
    10), the reference policy's log-probabilities: what the run started from. `questions` is how
    near it comes to each question's target on the validation rows."""

    folder: Path
    history: list[Measures]
    metrics: dict[str, float]
    answers: Answers
    reference: NDArray[np.float32]
    questions: dict[str, Measures]

    @property
    def adapter(self) -> Path:
        """PEFT's two files."""
        return self.folder / ADAPTER


@dataclass(eq=False)
class Run:
    """A run under way. `reference` is (N, 10) log-probabilities of the reference policy."""

    accelerator: Accelerator
    policy: Any
    problem: Problem
    config: TrainingConfig
    reference: Tensor
    progress: Progress
    optimiser: Any = None
    schedule: Any = None
    history: list[Measures] = field(default_factory=list)
    total: int = 0

    @property
    def unwrapped(self) -> PolicyModel:
        """The policy without what Accelerate put around it."""
        return self.accelerator.unwrap_model(self.policy)  # type: ignore[no-any-return]

    @property
    def asked(self) -> tuple[QuestionName, ...]:
        """The questions that this run trains."""
        questions = self.problem.questions
        return tuple(questions.targets) if questions and self.config.questions else ()

    def read(self, rows: Tensor) -> PolicyOutput:
        """One pass over rows, for their actions and all questions."""
        return self.policy(rows, questions=self.asked)  # type: ignore[no-any-return]

    def to(self, values: NDArray[Any] | Tensor, rows: Tensor) -> Tensor:
        """Those rows of an array of all rows, as float32 on the run's device."""
        return torch.as_tensor(values)[rows.cpu()].float().to(self.accelerator.device)

    def log_policy(self, output: PolicyOutput) -> Tensor:
        """(B, 10) log-probabilities of the policy."""
        return losses.log_policy_of(output.labels, self.problem.bias.to(output.labels.device))


@contextmanager
def started(
    problem: Problem,
    config: TrainingConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress,
) -> Iterator[Run]:
    """A run with an adapter on the reader's model, fresh or warmed up; what it starts as is the
    reference policy.

    TensorBoard's files go to `folder/tensorboard`. Raises `TrainingError` when a warm-up is asked
    for and not given.
    """
    warm = None
    if isinstance(config, AlgorithmConfig) and config.start == "warm_up":
        warm = problem.warm_up
        if warm is None:
            raise TrainingError(
                "start = 'warm_up' needs a finished warm-up: give one, or use start = 'base'"
            )
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        cpu=reader.model.device.type == "cpu",
        gradient_accumulation_steps=config.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
        log_with="tensorboard",
        project_dir=folder,
    )
    accelerator.init_trackers("tensorboard")
    with adapted(reader, problem.encoded, adapter, config.seed, problem.train_rows) as policy:
        begins = problem.encoded.label_log_probs if warm is None else np.load(warm / READINGS)
        if warm is not None:
            load_adapter(policy, warm / ADAPTER)
        reference = losses.log_policy_of(torch.from_numpy(np.array(begins)), problem.bias)
        try:
            yield Run(
                accelerator, accelerator.prepare(policy), problem, config, reference, progress
            )
        finally:
            accelerator.end_training()


def batches(
    run: Run,
    rows: NDArray[np.int64],
    epochs: int,
    learning_rate: float,
    *,
    steps_each: int = 1,
    extra: list[torch.nn.Parameter] | None = None,
) -> Iterator[Tensor]:
    """Rows in shuffled batches, with an optimiser and a schedule (a linear ramp, then a cosine to
    zero).

    Parameters
    ----------
    steps_each : optimiser steps that the script makes with a batch.
    extra : parameters besides the adapter's.
    """
    config, accelerator = run.config, run.accelerator
    size = config.batch // config.accumulate
    loader: Any = DataLoader(
        np.asarray(rows, np.int64),  # type: ignore[arg-type]
        batch_size=size,
        shuffle=True,
        drop_last=len(rows) >= size,
        generator=torch.Generator().manual_seed(config.seed),
    )
    trained = [weights for weights in run.policy.parameters() if weights.requires_grad] + (
        extra or []
    )
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=config.weight_decay)
    steps = max(1, len(loader) * epochs * steps_each // config.accumulate)
    schedule = get_cosine_schedule_with_warmup(optimiser, round(config.ramp * steps), steps)
    loader, run.optimiser, run.schedule = accelerator.prepare(loader, optimiser, schedule)
    run.total = len(loader) * epochs * steps_each
    run.progress(0, run.total)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        yield from loader


def step(run: Run, loss: Tensor, log_policy: Tensor, labels: Tensor, rows: Tensor) -> None:
    """One backward pass; when the batch is complete, clip, step and log. Call it, like the forward
    pass, within `run.accelerator.accumulate(run.policy)`."""
    accelerator = run.accelerator
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        trained = [weights for group in run.optimiser.param_groups for weights in group["params"]]
        accelerator.clip_grad_norm_(trained, run.config.clip_norm)
    rate = run.schedule.get_last_lr()[0]
    run.optimiser.step()
    run.schedule.step()
    run.optimiser.zero_grad()
    with torch.no_grad():
        measures = policy_measures(
            log_policy, run.to(run.reference, rows), labels, run.to(run.problem.rewards, rows)
        )
        measures["loss"] = loss.detach()
        reduced = accelerator.reduce(measures, "mean")
    entry = {name: float(value) for name, value in reduced.items()} | {"learning_rate": float(rate)}
    run.history.append(entry)
    accelerator.log(entry, step=len(run.history))
    run.progress(len(run.history), run.total)


def beside_the_action(run: Run, output: PolicyOutput, rows: Tensor) -> Tensor:
    """What every algorithm's loss is joined by: the questions, and the supervised part."""
    return question_part(run, output, rows) + supervised_part(run, output, rows)


def question_part(run: Run, output: PolicyOutput, rows: Tensor) -> Tensor:
    """The questions' log scores, mean over them, weighted."""
    questions = run.problem.questions
    loss = output.labels.new_zeros(())
    if questions is None or not output.questions:
        return loss
    weight = run.to(run.problem.weights, rows)
    for name, labels in output.questions.items():
        scored = losses.question_loss(labels, run.to(questions.targets[name], rows), weight)
        loss = loss + scored / questions.units.get(name, 1.0)
    return run.config.questions / len(output.questions) * loss


def supervised_part(run: Run, output: PolicyOutput, rows: Tensor) -> Tensor:
    """What is mixed in, weighted: the format of the answer, and in some steps the agent's words in
    one dialogue.

    The agent's letter is given there, not asked for: imitating it would pull against the reward.
    """
    weight = run.config.supervised
    if not weight:
        return output.labels.new_zeros(())
    loss = losses.format_loss(output.labels)
    said, every = run.problem.demonstrations, run.config.dialogue_every
    if said is not None and every and len(run.history) % every == 0:
        loss = loss + words_loss(run, rows[:1], said)
    return weight * loss


def words_loss(run: Run, rows: Tensor, said: Demonstrations) -> Tensor:
    """Mean negative log-likelihood (nats a token) of the agent's words after its letter and the
    follow-up question."""
    texts = [
        dialogue(run.unwrapped.encoder, int(said.labels[row]), said.words[row])
        for row in rows.tolist()
    ]
    output = run.policy(rows, [text.ids for text in texts])
    parts = [output.text[i, text.begins : len(text.ids)] for i, text in enumerate(texts)]
    return -torch.cat(parts).mean()


def read_rows(
    run: Run, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], dict[QuestionName, NDArray[np.float32]]]:
    """Raw label log-probabilities of rows, (len(rows), 10), and of each question's labels: shared
    out among the processes, known to all of them."""
    mine = rows[run.accelerator.process_index :: run.accelerator.num_processes]
    policy, asked, found = run.unwrapped, run.asked, []
    with torch.no_grad():
        for begin in range(0, len(mine), _EVALUATION_BATCH):
            part = mine[begin : begin + _EVALUATION_BATCH]
            output = policy(torch.from_numpy(part), questions=asked)
            read = [output.labels, *(output.questions[name] for name in asked)]
            found.append((part, [values.float().cpu().numpy() for values in read]))
    shared = gather_object(found)
    place = {int(row): number for number, row in enumerate(np.concatenate([p for p, _ in shared]))}
    order = [place[int(row)] for row in rows]
    labels, *answers = (
        np.concatenate(parts)[order] for parts in zip(*(read for _, read in shared), strict=True)
    )
    return labels, dict(zip(asked, answers, strict=True))


def finish(run: Run, folder: Path) -> TrainedPolicy:
    """Read every row, judge the validation rows, and save.

    Raises
    ------
    CollapsedPolicy : the policy hardly depends on the scenario any more; nothing is saved.
    """
    problem = run.problem
    raw, answered = read_rows(run, np.arange(len(problem.encoded)))
    plain = Answers(raw, problem.untempered)
    metrics = validation_metrics(
        plain,
        run.reference.numpy(),
        problem.rewards,
        problem.train_rows,
        problem.validate_rows,
    )
    metrics["setback"] = setback(run.history)
    check_not_collapsed(metrics, run.config)
    validate = problem.validate_rows
    target = log_softmax(problem.rewards[validate] / run.config.beta, axis=1)
    temperature = fit_temperature(plain.log_policy[validate], target, problem.weights[validate])
    least_mass = float(plain.label_mass[validate].min())
    calibration = problem.calibration.model_copy(
        update={"temperature": temperature, "min_label_mass": round(least_mass / 2, 3)}
    )
    measured: dict[str, Measures] = {}
    if problem.questions is not None and answered:
        outlook, measured = calibrated(answered, problem.questions, problem.weights, validate)
        calibration = calibration.model_copy(update={"outlook": outlook})
    answers = Answers(raw, calibration, questions=answered)
    trained = TrainedPolicy(folder, run.history, metrics, answers, run.reference.numpy(), measured)
    if run.accelerator.is_main_process:
        save_adapter(run.unwrapped, trained.adapter, problem.base_name)
        np.save(folder / READINGS, raw)
        document = {
            "metrics": metrics,
            "questions": measured,
            "calibration": calibration.as_json(),
            "actions": [action.name for action in ACTIONS],
            "config": run.config.model_dump(mode="json"),
            "history": run.history,
        }
        (folder / "training.json").write_text(
            json.dumps(document, indent=1) + "\n", encoding="utf-8"
        )
    run.accelerator.wait_for_everyone()
    return trained
