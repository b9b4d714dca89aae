"""Is the model still a language model? Measured on held-out dialogues of the agent, before and
after training.

Perplexity of the agent's words; KL of the adapted model to the base, token by token; and whether a
rationale would follow the decision: of the words that the agent's rules would give for approving
and for rejecting, the model should find those more likely that fit the action named in the
question. The words are templated (training/agent/words.py), so this says whether fluency was
destroyed, not whether the prose is good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from app.policy.in_process.label_reader import LabelReader
from training.agent.words import Demonstrations, Dialogue, dialogue
from training.arrays import Progress, silent
from training.learning.model.adapted import PolicyModel, opened
from training.learning.model.base_pass import Encoded

_BATCH = 8


@dataclass(frozen=True)
class Fluency:
    """Over `dialogues` dialogues of `tokens` tokens: `perplexity` of the agent's words,
    `kl_to_base` in nats per token, `consistency` the share whose likelier words fit the action
    (None without contrasting words)."""

    perplexity: float
    kl_to_base: float
    consistency: float | None
    dialogues: int
    tokens: int


def compare(
    reader: LabelReader,
    encoded: Encoded,
    adapter: Path,
    rows: NDArray[np.int64],
    said: Demonstrations,
    actions: NDArray[np.int64],
    progress: Progress = silent,
) -> dict[str, dict[str, float | int | None]]:
    """`before` (the base model) and `after` (with a saved adapter) on held-out rows.

    `actions` (N,) is the index of each row's action whose rationale is asked for in the test of
    consistency.
    """
    with opened(reader, encoded, adapter) as policy, torch.no_grad():
        after = fluency(policy, rows, said, actions, adapted=True)
        progress(1, 2)
        before = fluency(policy, rows, said, actions, adapted=False)
        progress(2, 2)
    return {"before": asdict(before), "after": asdict(after)}


def fluency(
    policy: PolicyModel,
    rows: NDArray[np.int64],
    said: Demonstrations,
    actions: NDArray[np.int64],
    *,
    adapted: bool,
) -> Fluency:
    """Measure the adapted model, or the base model beneath it."""
    nats = divergence = 0.0
    tokens, fitting = 0, 0
    for begin in range(0, len(rows), _BATCH):
        part = [int(row) for row in rows[begin : begin + _BATCH]]
        texts = [dialogue(policy.encoder, int(said.labels[row]), said.words[row]) for row in part]
        base = _distributions(policy, part, texts, adapted=False)
        own = _distributions(policy, part, texts, adapted=True) if adapted else base
        for i, text in enumerate(texts):
            places = slice(text.begins, len(text.ids))
            picked = own[i, places].gather(
                1, torch.tensor(text.ids[places])[:, None].to(own.device)
            )
            nats -= float(picked.sum())
            divergence += float((own[i, places].exp() * (own[i, places] - base[i, places])).sum())
            tokens += len(text.ids) - text.begins
        if said.contrast:
            fitting += _fitting(policy, part, said, actions, adapted)
    return Fluency(
        perplexity=math.exp(nats / tokens),
        kl_to_base=divergence / tokens,
        consistency=fitting / len(rows) if said.contrast else None,
        dialogues=len(rows),
        tokens=tokens,
    )


def _fitting(
    policy: PolicyModel,
    rows: list[int],
    said: Demonstrations,
    actions: NDArray[np.int64],
    adapted: bool,
) -> int:
    """In how many rows the words that fit the action are likelier per token than the contrary
    ones."""
    likelihood = []
    for side in (0, 1):
        texts = [
            dialogue(policy.encoder, int(actions[row]), said.contrast[row][side]) for row in rows
        ]
        distributions = _distributions(policy, rows, texts, adapted=adapted)
        means = []
        for i, text in enumerate(texts):
            places = slice(text.begins, len(text.ids))
            means.append(
                float(
                    distributions[i, places]
                    .gather(1, torch.tensor(text.ids[places])[:, None].to(distributions.device))
                    .mean()
                )
            )
        likelihood.append(means)
    approving = [actions[row] != 0 for row in rows]
    return sum((a > b) == bool(yes) for a, b, yes in zip(*likelihood, approving, strict=True))


def _distributions(
    policy: PolicyModel, rows: Sequence[int], texts: Sequence[Dialogue], *, adapted: bool
) -> torch.Tensor:
    ids = [text.ids for text in texts]
    if adapted:
        return policy.distributions(rows, ids)
    model: PeftModel = policy.model
    with model.disable_adapter():
        return policy.distributions(rows, ids)
