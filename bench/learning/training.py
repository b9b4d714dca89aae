"""Cost of training: the four algorithms against TRL's DPOTrainer, in one run.

Same prompts, same pairs (one per scenario), same adapter (activated LoRA of the same rank and
targets), same batch, three epochs, reference log-probabilities precomputed for TRL. Our time counts
the base pass over the training scenarios and the last reading of all of them. No warm-up and no
supervised part, since TRL has none. TRL reads prompt and completion whole, twice per pair; several
pairs per scenario would multiply its cost and not ours.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from app.domain.model.actions import LABELS
from app.domain.model.prompt import Line, Prompt, lines_of, prompt_of
from app.policy.calibration import random_scenarios
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.whole.weights import load_model
from app.policy.versions.store import load_manifest
from bench.asked import entry
from bench.history import record
from bench.learning.planted import ALGORITHMS, PROMPT_SEED, pairs_of, plant
from training.config.learning import AdapterConfig, EncodeConfig
from training.config.section import at_home
from training.learning.model.base_pass import Encoded, build_encoded
from training.learning.targets.problem import Problem
from training.stages.store import Store

EPOCHS, BATCH, BETA = 3, 4, 0.1
ADAPTER = AdapterConfig()
DEFAULT = ["expected", "dpo", "ppo", "rrhf"]
TRL = "trl dpo"
WITHOUT_EXTRAS = {"start": "base", "supervised": 0.0, "min_entropy": 0.0, "max_majority": 1.0}


class Cost(NamedTuple):
    """CPU seconds, seconds by the clock, and held-out preference accuracy."""

    cpu: float
    clock: float
    accuracy: float


class Stopwatch:
    """CPU time of this process, and the clock's."""

    def __init__(self) -> None:
        self._cpu, self._clock = time.process_time(), time.monotonic()

    def read(self) -> tuple[float, float]:
        """Since it was made."""
        return time.process_time() - self._cpu, time.monotonic() - self._clock


def accuracy(
    labels: NDArray[np.floating], base: NDArray[np.floating], pairs: NDArray[np.int64]
) -> float:
    """Share of pairs whose chosen action gained on the rejected one, beyond the reference, as TRL
    counts it.

    `labels` and `base` are (N, 10) log-probabilities under the policy and the reference; `pairs`
    (P, 3).
    """
    row, chosen, rejected = pairs.T
    gain = labels - base
    return float((gain[row, chosen] > gain[row, rejected]).mean())


def ours(
    name: str,
    texts: list[tuple[Line, ...]],
    pairs: NDArray[np.int64],
    train: int,
    rewards: NDArray[np.float64],
    base: Path,
) -> tuple[Cost, NDArray[np.float32]]:
    """One algorithm from nothing: base pass, three epochs, all rows read. Also the base's label
    log-probabilities."""
    reader, manifest = LabelReader.load(base), load_manifest(base)
    rows = np.arange(len(texts))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def encode(those: list[tuple[Line, ...]]) -> Encoded:
            def build(target: Path) -> dict[str, Any]:
                return build_encoded(
                    target, those, reader, base, EncodeConfig(batch=BATCH), root / "cache"
                )

            return Encoded.open(Store(root).build("encode", {"prompts": len(those)}, build))

        # Held-out rows are cached before the watch starts: TRL's time has none either.
        encode(texts[train:])
        watch = Stopwatch()
        encoded = encode(texts)
        problem = Problem(
            encoded,
            rewards,
            np.ones(len(rows)),
            rows[:train],
            rows[train:],
            manifest.calibration,
            manifest.model_version,
            pairs=pairs,
        )
        fit, defaults = ALGORITHMS[name]
        changes = {"epochs": EPOCHS, "batch": BATCH, **WITHOUT_EXTRAS}
        config = type(defaults).model_validate(defaults.model_dump() | changes)
        trained = fit(problem, config, ADAPTER, reader, root / "run")
        cpu, clock = watch.read()
        before = np.array(encoded.label_log_probs)
        held_out = pairs[pairs[:, 0] >= train]
        return Cost(cpu, clock, accuracy(trained.answers.raw, before, held_out)), before


def theirs(
    prompts: list[Prompt],
    pairs: NDArray[np.int64],
    train: int,
    before: NDArray[np.float32],
    base: Path,
) -> Cost:
    """DPOTrainer on the same pairs; its time ends with training, the held-out rows are read
    afterwards."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    reader = LabelReader.load(base)
    records = []
    for row, chosen, rejected in pairs[pairs[:, 0] < train]:
        turns = [
            {"role": "system", "content": prompts[row].system},
            {"role": "user", "content": prompts[row].user},
        ]
        answers = (
            [{"role": "assistant", "content": LABELS[action]}] for action in (chosen, rejected)
        )
        records.append(dict(zip(("prompt", "chosen", "rejected"), (turns, *answers), strict=True)))
    tail = list(reader.encoder.tail)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=ADAPTER.rank,
        lora_alpha=ADAPTER.alpha,
        target_modules=list(ADAPTER.targets),
        alora_invocation_tokens=tail,
    )
    model = load_model(base)
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        trainer = DPOTrainer(
            model,
            args=trl_settings(folder),
            train_dataset=Dataset.from_list(records),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=lora,
        )
        trainer.train()
        cpu, clock = watch.read()
    labels = np.array(before)
    for row in range(train, len(prompts)):
        labels[row] = labels_after(trainer.model.eval(), reader, prompts[row])
    return Cost(cpu, clock, accuracy(labels, before, pairs[pairs[:, 0] >= train]))


def trl_settings(folder: str) -> Any:
    """As ours: the same steps, on the CPU in float32, the reference's log-probabilities computed
    once."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=folder,
        beta=BETA,
        learning_rate=5e-4,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def labels_after(model: Any, reader: LabelReader, prompt: Prompt) -> NDArray[np.float32]:
    """(10,) log-probabilities of the labels after a whole prompt, by a plain pass."""
    ids = [*reader.encoder.head, *reader.encoder.encode(prompt)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return np.asarray(torch.log_softmax(logits.float(), -1)[list(reader.encoder.label_ids)].numpy())


def main(
    scenarios: Annotated[int, typer.Option(min=1, help="Training scenarios, one pair each.")] = 24,
    held_out: Annotated[
        int, typer.Option(min=1, help="Scenarios that preferences are tried on.")
    ] = 24,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    models: Annotated[
        Path, typer.Option(callback=at_home, help="Where the small model is.")
    ] = Path("var/models"),
    only: Annotated[list[str], typer.Option(help="These algorithms; may be repeated.")] = DEFAULT,
    trl: Annotated[bool, typer.Option(help="TRL's DPOTrainer too.")] = True,
) -> None:
    """Print one line per algorithm, TRL last."""
    torch.set_num_threads(threads)
    base = import_smollm2(models)
    made = random_scenarios(scenarios + held_out, PROMPT_SEED)
    texts = [lines_of(scenario) for scenario in made]
    prompts = [prompt_of(lines) for lines in texts]
    rewards = plant(prompts, 0).expected
    pairs = pairs_of(rewards, 0.02, 1, 0)
    costs: dict[str, Cost] = {}
    base_labels = np.empty((0, 10), np.float32)
    for name in only:
        costs[name], base_labels = ours(name, texts, pairs, scenarios, rewards, base)
        _print(name, costs[name], scenarios)
    if trl:
        costs[TRL] = theirs(prompts, pairs, scenarios, base_labels, base)
        _print(TRL, costs[TRL], scenarios)
        for name in only:
            by_cpu, by_clock = (
                costs[TRL].cpu / costs[name].cpu,
                costs[TRL].clock / costs[name].clock,
            )
            print(f"{name}: {by_cpu:.1f} x TRL in CPU time, {by_clock:.1f} x by the clock")
    rates = {f"{name}_scenarios_per_cpu_s": scenarios / cost.cpu for name, cost in costs.items()}
    record("training", {"scenarios": scenarios, **rates})


def _print(name: str, cost: Cost, scenarios: int) -> None:
    print(
        f"{name:10} {cost.cpu:8.1f} CPU-s {cost.clock:8.1f} s {scenarios / cost.cpu:8.3f} scenarios"
        f" per CPU-s, held-out preference accuracy {cost.accuracy:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    entry(main)
