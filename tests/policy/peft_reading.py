"""What PEFT itself reads with an adapter: what ours is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.whole.weights import load_model
from tests.policy.tiny_models import save_adapter

TOLERANCE = 1e-4
TEXTS = (
    "BTC",
    "ETH long and a good deal longer than the first, so that it is padded",
    "x" * 200,
    "SOL up",
)


def ids_of(reader: LabelReader, texts: Sequence[str] = TEXTS) -> list[tuple[int, ...]]:
    return [reader.encoder.encode(Prompt(PROMPT_VERSION, SYSTEM, text)) for text in texts]


def peft_says(
    directory: Path,
    adapter: Path,
    reader: LabelReader,
    rows: Sequence[Sequence[int]],
    label_ids: Sequence[int] | None = None,
) -> torch.Tensor:
    """Label log-probabilities by PEFT: whole prompts, one by one, no cache. Labels are actions'
    where nothing else is said."""
    model = PeftModel.from_pretrained(load_model(directory), str(adapter)).eval()
    found = []
    for ids in rows:
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([[*reader.encoder.head, *ids]]), use_cache=False
            ).logits[0, -1]
        found.append(
            torch.log_softmax(logits.float(), -1)[list(label_ids or reader.encoder.label_ids)]
        )
    return torch.stack(found)


def assert_agree(actual: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(actual), expected, atol=TOLERANCE, rtol=0)


def assert_differ(one: Any, other: Any) -> None:
    assert (torch.as_tensor(one) - torch.as_tensor(other)).abs().max() > 100 * TOLERANCE


def activated(reader: LabelReader, folder: Path, seed: int) -> Adapter:
    directory = save_adapter(folder / f"adapter-{seed}", reader.model, reader.encoder.tail, seed)
    return Adapter.load(directory, reader.model, reader.encoder.tail)


def change_config(**options: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **options}))

    return change
