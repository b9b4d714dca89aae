"""Preference pairs: of two actions in one scenario, the one that is worth more.

`model`, which trains: the teacher's expectations out of fold, where they differ by a margin, in R
and in the teacher's own standard deviations. `outcome`: what really came of both, to validate on,
and to train where `targets.source` asks for that ablation. At most `per_scenario` of a scenario, of
the best action against others: against the worst first, the rest drawn by their margins.

The files are TRL's conversational preference format (1.16, "dataset formats"): `prompt` is the
system's and the user's message as `app.domain.model.prompt` renders them, `chosen` and `rejected`
one assistant's message each, the action's letter. TRL's `DPOTrainer` makes of them exactly the ids
that the service reads (head, user's text, tail) and the letter; it then adds, to both completions
alike, what the chat template puts after an assistant's turn (for SmolLM2 `<|im_end|>` and a line
feed), which our own algorithms leave out.
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
from scipy.special import ndtr

from app.domain.errors import AdvisorError
from app.domain.model.actions import ACTIONS, BY_LABEL, LABELS, Action
from app.domain.model.prompt import Prompt
from app.domain.record.decision import prepare
from training.arrays import Floats
from training.config.learning import PreferencesConfig, TargetsConfig
from training.learning.model.answers import choices
from training.learning.targets.utility import targets as worths
from training.learning.teacher.predictions import Predictions
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

    `chosen`, `rejected` are labels; `margin` the difference of what they are worth (realised, or
    expected for `model`), R; `weight` is 1 for an outcome, and for the teacher's own its certainty,
    2 P(chosen is worth more) - 1: what a pair weighs beside others. Pairs of `validate` are of real
    scenarios and outcomes alone.
    """

    table: pl.DataFrame

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage. Raises `PreferenceError` when the table is damaged."""
        try:
            table = pl.read_parquet(artifact / TABLE, glob=False)
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
    taught: Predictions,
    *,
    settings: PreferencesConfig,
    targets: TargetsConfig,
) -> Facts:
    """Fill `folder`: `preferences.parquet`, and for each split `preferences-SPLIT.jsonl`. Facts:
    counts by split and source, and duplicates that were left out.

    In the JSONL a pair's `weight` is its own times its scenario's (uniqueness).

    Raises
    ------
    PreferenceError : no training pair clears the margin.
    """
    prompts = [prepare(scenario) for scenario in scenarios.scenarios()]
    learnt = worths(labels.rewards, taught, scenarios.rows(TRAIN), targets)
    by_teacher = targets.source == "teacher"
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        worth = learnt if split == TRAIN else labels.rewards
        doubts = taught.doubt if split == TRAIN and by_teacher else None
        for row in map(int, scenarios.rows(split)):
            doubt = None if doubts is None else doubts[row]
            for pair in pairs_of(row, worth[row], doubt, settings):
                rows.append({"scenario_id": scenarios.table["id"][row], "split": split, **pair})
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
    worth: NDArray[np.float64],
    doubt: NDArray[np.float64] | None,
    config: PreferencesConfig,
) -> Iterator[dict[str, Any]]:
    """The pairs of one scenario, as rows of the table without id and split.

    worth : (10,) what each action is worth, R; NaN when excluded.
    doubt : (10,) the teacher's standard errors of that, R; None: outcomes, which are certain.

    The best action is chosen in all of them: pairs among others would lift some of those as far,
    where few are drawn. Certainty is the margin over the larger of both doubts: actions of one
    scenario follow one price path, and their difference is less in doubt than the riskier of them.
    How much luck a trade has is no matter here: it is in the utility.
    """
    known = np.nan_to_num(worth)
    best = int(choices(known[None])[0])
    margins = known[best] - known
    spread = np.zeros_like(margins) if doubt is None else np.maximum(doubt[best], doubt)
    certainty = np.divide(margins, spread, out=np.full_like(margins, np.inf), where=spread > 0)
    allowed = (margins >= config.margin) & (certainty >= config.model_margin)
    weight = 2 * ndtr(certainty) - 1
    source = PairSource.OUTCOME if doubt is None else PairSource.MODEL
    lots = np.random.default_rng([config.seed, row])
    for worse in _drawn(margins * allowed, config.per_scenario, lots):
        yield _pair(row, best, worse, margins[worse], weight[worse], source)


def _drawn(margins: Floats, limit: int, source: np.random.Generator) -> list[int]:
    """The action with the widest margin, and others drawn by their margins without replacement,
    `limit` at most; what has no margin is never drawn.

    Of exponential lots divided by margins the least come first: the k-th is drawn with a chance in
    proportion to its margin among those that are left (Efraimidis and Spirakis 2006).
    """
    worse = np.flatnonzero(margins)
    lots = source.exponential(size=len(worse)) / margins[worse]
    if len(worse):
        lots[margins[worse].argmax()] = -1.0
    return [int(action) for action in worse[lots.argsort()[:limit]]]


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
