"""Preference pairs: of two actions in one scenario, the one that earned more.

Two sources. `outcome`: realised rewards that differ by a margin. `model`: the reward model's
out-of-fold predictions, where they differ by a margin in standard errors (the ensemble's spread of
that very difference) and no realised pair of the same two actions speaks, for or against. At most
`per_scenario` of each source and scenario: the widest first, so that the best action is always
preferred to the worst, the rest at random, so that what is preferred stays varied.

The files are TRL's conversational preference format (1.16, "dataset formats"): `prompt` is the
system's and the user's message as `app.domain.prompt` renders them, `chosen` and `rejected` one
assistant's message each, the action's letter. TRL's `DPOTrainer` makes of them exactly the ids that
the service reads (head, user's text, tail) and the letter; it then adds, to both completions alike,
what the chat template puts after an assistant's turn (for SmolLM2 `<|im_end|>` and a line feed),
which our own algorithms leave out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.actions import ACTIONS, BY_LABEL, LABELS, Action
from app.domain.decision import prepare
from app.domain.errors import AdvisorError
from app.domain.prompt import Prompt
from training.config.learning import PreferencesConfig
from training.learning.reward.ensemble import Rewards
from training.outcomes.labels import Labels
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

TABLE = "preferences.parquet"
SPLITS = (TRAIN, VALIDATE)
SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "scenario_id": pl.String(),
    "split": pl.String(),
    "chosen": pl.String(),
    "rejected": pl.String(),
    "margin": pl.Float64(),
    "weight": pl.Float64(),
    "source": pl.String(),
}


class PairSource(StrEnum):
    """Who says that one action is better."""

    OUTCOME = "outcome"
    MODEL = "model"


class PreferenceError(AdvisorError):
    """No pair clears the margin, or the table is damaged."""


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs, by row of the scenario set. `table` has the columns of `SCHEMA`:

    `chosen`, `rejected` are labels; `margin` the difference of their rewards (realised, or
    predicted for `model`), R; `weight` is 1 for an outcome, and for the reward model's own 2
    P(chosen beats rejected) - 1 by its pairwise head: what a pair weighs beside the others of its
    scenario. Pairs of `validate` are of real scenarios and outcomes alone.
    """

    table: pl.DataFrame

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage. Raises `PreferenceError` when the table is damaged."""
        try:
            table = pl.read_parquet(artifact / TABLE)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise PreferenceError(
                f"{artifact / TABLE}: {str(error).splitlines()[0]}: remove {artifact.path} and"
                " build again"
            ) from error
        if dict(table.schema) != SCHEMA:
            raise PreferenceError(
                f"{artifact / TABLE} has other columns: remove {artifact.path} and build again"
            )
        return cls(table)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(P, 3) of the split `train`: row, chosen action, rejected action."""
        return self.of(TRAIN)

    @property
    def weights(self) -> NDArray[np.float64]:
        """(P,) of the split `train`; without the scenario's own weight."""
        return self.table.filter(pl.col("split") == TRAIN)["weight"].to_numpy()

    def of(self, split: str) -> NDArray[np.int64]:
        """(P, 3) of a split: row, chosen action, rejected action."""
        chosen = self.table.filter(pl.col("split") == split)
        columns = [chosen["row"].to_list()]
        columns += [
            [LABELS.index(label) for label in chosen[name]] for name in ("chosen", "rejected")
        ]
        return np.array(columns, np.int64).reshape(3, -1).T


def preference_record(
    prompt: Prompt,
    chosen: Action,
    rejected: Action,
    *,
    margin: float,
    weight: float,
    scenario_id: str,
    source: PairSource,
) -> dict[str, Any]:
    """One pair as TRL reads it; `margin`, `weight`, `scenario_id` and `source` are columns of our
    own."""
    return {
        "prompt": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ],
        "chosen": [{"role": "assistant", "content": chosen.label}],
        "rejected": [{"role": "assistant", "content": rejected.label}],
        "margin": margin,
        "weight": weight,
        "scenario_id": scenario_id,
        "source": source.value,
    }


@stage("preferences")
def preferences(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    reward: Rewards,
    *,
    settings: PreferencesConfig,
) -> Facts:
    """Fill `folder`: `preferences.parquet`, and for each split `preferences-SPLIT.jsonl`. Facts:
    counts by split and source, and duplicates that were left out.

    In the JSONL a pair's `weight` is its own times its scenario's (uniqueness).

    Raises
    ------
    PreferenceError : no training pair clears the margin.
    """
    prompts = [prepare(scenario) for scenario in scenarios.scenarios()]
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        members = reward.members if split == TRAIN and settings.model_pairs else None
        for row in scenarios.rows(split):
            for pair in pairs_of(int(row), labels.rewards[row], members, settings):
                rows.append(
                    {"scenario_id": scenarios.table["id"][int(row)], "split": split, **pair}
                )
    table, duplicates = _distinct(pl.DataFrame(rows, SCHEMA, orient="row"), prompts)
    counts = Counter(zip(table["split"], table["source"], strict=True))
    if not any(split == TRAIN for split, _ in counts):
        raise PreferenceError(
            f"no two actions of a training scenario differ by {settings.margin} R: lower"
            " preferences.margin, or add data"
        )
    table.write_parquet(folder / TABLE)
    for split in SPLITS:
        records = _records(table.filter(pl.col("split") == split), prompts, scenarios.weight)
        with (folder / f"preferences-{split}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
    return {
        "pairs": {
            f"{split}_{source}": number for (split, source), number in sorted(counts.items())
        },
        "scenarios": table.filter(pl.col("split") == TRAIN)["row"].n_unique(),
        "duplicates": duplicates,
    }


def pairs_of(
    row: int,
    realised: NDArray[np.float64],
    members: NDArray[np.float32] | None,
    config: PreferencesConfig,
) -> Iterator[dict[str, Any]]:
    """The pairs of one scenario, as rows of the table without id and split.

    realised : (10,) rewards, NaN when excluded. members : (M, 2, N, 10) as `Rewards` has them;
        None: outcomes alone.
    """
    source = np.random.default_rng([config.seed, row])
    gained = np.nan_to_num(realised[:, None] - realised[None, :])
    spoken = np.abs(gained) >= config.margin
    for better, worse in _drawn(gained, gained >= config.margin, config.per_scenario, source):
        yield _pair(row, better, worse, gained[better, worse], 1.0, PairSource.OUTCOME)
    if members is None:
        return
    predicted = members[:, 0, row].astype(np.float64)  # (M, 10)
    gaps = predicted[:, :, None] - predicted[:, None, :]
    mean, error = gaps.mean(0), gaps.std(0)
    clear = (mean > config.model_margin * error) & (mean > 0) & ~spoken
    scores = members[:, 1, row].mean(0, dtype=np.float64)
    sure = np.tanh((scores[:, None] - scores[None, :]) / 2)  # 2 sigmoid(x) - 1
    for better, worse in _drawn(mean, clear & (sure > 0), config.per_scenario, source):
        yield _pair(row, better, worse, mean[better, worse], sure[better, worse], PairSource.MODEL)


def _drawn(
    gaps: NDArray[np.float64], allowed: NDArray[np.bool_], limit: int, source: np.random.Generator
) -> list[tuple[int, int]]:
    """The widest allowed pair, and others at random, `limit` at most."""
    better, worse = np.nonzero(allowed)
    if not len(better):
        return []
    widest = int(np.argmax(gaps[better, worse]))
    others = [int(pair) for pair in source.permutation(len(better)) if pair != widest]
    return [(int(better[pair]), int(worse[pair])) for pair in [widest, *others][:limit]]


def _pair(
    row: int, better: int, worse: int, margin: float, weight: float, source: PairSource
) -> dict[str, Any]:
    return {
        "row": row,
        "chosen": ACTIONS[better].label,
        "rejected": ACTIONS[worse].label,
        "margin": float(margin),
        "weight": float(weight),
        "source": source.value,
    }


def _distinct(table: pl.DataFrame, prompts: list[Prompt]) -> tuple[pl.DataFrame, int]:
    """The same pair for the same prompt once, the widest one. Different scenarios can share a
    prompt, which is rounded; a pair that one of them confirms and another contradicts stays, both
    ways: that is what is known."""
    keyed = table.with_columns(
        pl.Series("prompt", [prompts[row].hash for row in table["row"]], pl.String())
    )
    kept = (
        keyed.with_row_index("order")
        .sort(["margin", "order"], descending=[True, False])
        .unique(["prompt", "split", "chosen", "rejected"], keep="first", maintain_order=True)
        .sort("order")
        .drop("order", "prompt")
    )
    return kept.select(list(SCHEMA)), len(table) - len(kept)


def _records(
    table: pl.DataFrame, prompts: list[Prompt], weights: NDArray[np.float64]
) -> Iterator[dict[str, Any]]:
    for pair in table.iter_rows(named=True):
        yield preference_record(
            prompts[pair["row"]],
            BY_LABEL[pair["chosen"]],
            BY_LABEL[pair["rejected"]],
            margin=pair["margin"],
            weight=pair["weight"] * float(weights[pair["row"]]),
            scenario_id=pair["scenario_id"],
            source=PairSource(pair["source"]),
        )
