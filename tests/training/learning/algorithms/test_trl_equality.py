"""train_dpo is TRL's DPOTrainer: the same loss and the same gradient on the same preference
records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.model.actions import LABELS
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.whole.weights import load_model
from tests.policy.tiny_models import POSITIONS
from tests.training.support.planted import encoded, exact, randomise, short_prompts, tiny_reader
from training.config.learning import AdapterConfig
from training.learning.algorithms import losses
from training.learning.model.adapted import adapted
from training.learning.model.base_pass import Encoded

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # TRL's and datasets' own
]

BETA, RANK = 0.3, 4
PAIRS = [(0, 3), (5, 1), (9, 0), (2, 7)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelReader, Encoded, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    reader, base = tiny_reader(folder)
    found = encoded(folder, short_prompts(len(PAIRS)), reader, base)
    return reader, exact(found, base), base


def record(number: int) -> dict[str, Any]:
    """TRL's conversational preference format."""
    prompt, (chosen, rejected) = short_prompts(len(PAIRS))[number], PAIRS[number]
    return {
        "prompt": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ],
        "chosen": [{"role": "assistant", "content": LABELS[chosen]}],
        "rejected": [{"role": "assistant", "content": LABELS[rejected]}],
    }


def ours(
    reader: LabelReader, rows: Encoded, kind: str
) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and weights of one batch, reference: the base model, through a bias that must
    cancel."""
    config = AdapterConfig(rank=RANK, alpha=2.0 * RANK, kind=kind)
    bias = torch.linspace(-1, 1, len(LABELS))
    numbers = torch.arange(len(PAIRS))
    chosen, rejected = torch.tensor(PAIRS).unbind(1)
    with adapted(reader, rows, config, seed=0) as policy:
        randomise(policy)
        reference = losses.log_policy_of(torch.tensor(rows.label_log_probs), bias)
        log_policy = losses.log_policy_of(policy(numbers).labels, bias)
        loss = losses.dpo_loss(
            log_policy[numbers, chosen],
            log_policy[numbers, rejected],
            reference[numbers, chosen],
            reference[numbers, rejected],
            BETA,
        ).mean()
        loss.backward()
        trained = {
            name: weights
            for name, weights in policy.model.named_parameters()
            if weights.requires_grad
        }
        gradients = {
            name: weights.grad.clone()
            for name, weights in trained.items()
            if weights.grad is not None
        }
        return (
            loss.item(),
            gradients,
            {name: weights.detach().clone() for name, weights in trained.items()},
        )


def trl_settings(folder: Path) -> Any:
    """One batch of all pairs, in float32 on the CPU."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        per_device_train_batch_size=len(PAIRS),
        max_length=POSITIONS,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
    )


def theirs(
    base: Path, tail: list[int] | None, weights: dict[str, torch.Tensor], folder: Path
) -> tuple[float, dict[str, torch.Tensor]]:
    """TRL's loss and gradients with the same adapter; its completions are cut after the letter."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class LetterOnly(DataCollatorForPreference):  # type: ignore[misc]  # TRL has no types
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            cut = {"chosen_ids", "rejected_ids"}
            return super().torch_call(
                [
                    {name: value[:1] if name in cut else value for name, value in one.items()}
                    for one in examples
                ]
            )

    tokenizer = AutoTokenizer.from_pretrained(base)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        alora_invocation_tokens=tail,
    )
    trainer = DPOTrainer(
        load_model(base),
        args=trl_settings(folder),
        train_dataset=Dataset.from_list([record(i) for i in range(len(PAIRS))]),
        processing_class=tokenizer,
        peft_config=lora,
        data_collator=LetterOnly(pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id),
    )
    own = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: own[name].grad for name in weights}
    return loss.item(), {name: value for name, value in gradients.items() if value is not None}


@pytest.mark.parametrize("kind", ["activated", "ordinary"])
def test_loss_and_gradients_equal_trls(
    tiny: tuple[LabelReader, Encoded, Path], tmp_path: Path, kind: str
) -> None:
    reader, rows, base = tiny
    loss, gradients, weights = ours(reader, rows, kind)
    tail = list(reader.encoder.tail) if kind == "activated" else None
    their_loss, their_gradients = theirs(base, tail, weights, tmp_path)
    assert abs(loss - 0.6931) > 1e-4  # away from the reference, where every implementation agrees
    assert loss == pytest.approx(their_loss, abs=1e-5)
    assert gradients.keys() == their_gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, their_gradients[name], atol=1e-5, rtol=1e-3)
