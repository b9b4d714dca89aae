"""Scenarios: what training and evaluation decide on, in one table with weights and splits.

They come from history (the reference agent's candidate rule on bars, news, fear and greed;
`training/scenarios/history.py`) or from the shadow log (`training/scenarios/recorded.py`). The
agent's book depends on what it traded before, so that scenarios of history get one stated neutral
account: 10,000, nothing open, no losses. Those of the log keep the account they had.

Uniqueness (López de Prado 2018, "Advances in Financial Machine Learning", section 4.4): the label
of row i looks at bars in (as_of, ends_at]; with c(t) labels of the same symbol looking at instant
t, its weight is the mean of 1 / c(t) over its window. Labels of other symbols do not lower it: they
see other bars, though correlated ones, so an interval for a mean over symbols must resample time,
not rows. A row and its synthetic variants share one weight in equal parts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.canonical import canonical_json
from app.domain.errors import AdvisorError
from app.domain.exits import TRAIL, Exits, Followed
from app.domain.features import features
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Account, Scenario
from training.arrays import Progress, Times, instant, silent
from training.config.data import HeldOutConfig, ScenariosConfig
from training.scenarios.splits import embargo_s, overlapping
from training.scenarios.terms import has_other_terms, other_terms
from training.scenarios.variants import Kind, other_text, variants
from training.stages.store import Artifact

TABLE = "scenarios.parquet"
REPORTED = "reported.parquet"
HISTORY, SHADOW_LOG = "history", "shadow_log"
TRAIN, VALIDATE, PURGED, HELD_OUT = "train", "validate", "purged", "held_out"
VALIDATE_SHARE = 0.2
DEFAULTS = ("fear_greed", "btc_dominance")
"""Readings whose value 50 may be the agent's default. Counted, not mended: training sees what was
served."""
NEUTRAL = Account(
    equity=10_000.0, day_pnl_fraction=0.0, drawdown_fraction=0.0, consecutive_losses=0, positions=()
)
"""The account of every scenario of history."""
SCHEMA: dict[str, pl.DataType] = {
    "id": pl.String(),
    "symbol": pl.String(),
    "as_of": pl.Int64(),
    "ends_at": pl.Int64(),
    "weight": pl.Float64(),
    "parent": pl.Int64(),
    "synthetic": pl.String(),
    "source": pl.String(),
    "decision_id": pl.String(),
    "split": pl.String(),
    "scenario": pl.String(),
    "control": pl.String(),
}
REPORTED_SCHEMA: dict[str, pl.DataType] = {"row": pl.Int64(), "outcome": pl.String()}


class ScenarioError(AdvisorError):
    """There are no scenarios to train on, or the table is damaged."""


class RealScenario(NamedTuple):
    """A real scenario with what else is known of it."""

    scenario: Scenario
    control: AgentAction | None = None
    """What the agent did; None when it never said."""
    decision_id: str | None = None
    """Of the shadow log."""
    reported: tuple[Outcome, ...] = ()
    """Outcomes that the log has of it, oldest first; kept beside the labels, never mixed with
    them."""
    redecide: Callable[[Scenario], AgentAction] | None = None
    """The agent's answer to a variant of the scenario; None: the recorded control stands."""


@dataclass(frozen=True, eq=False)
class ScenarioSet:
    """Scenarios in order: real rows by (as_of, symbol), then synthetic ones by parent. Arrays of
    shape (N,).

    table : columns of `SCHEMA`. `scenario` and `control` (what the agent did; null when it never
        said) are canonical JSON, `id` is the hash of the former, `parent` a row number (a real
        row's own), `synthetic` null for real rows.
    reported : outcomes of the shadow log by row, as JSON; empty for history.
    """

    table: pl.DataFrame
    reported: pl.DataFrame

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage. Raises `ScenarioError` when a file is damaged."""
        try:
            table, reported = (
                pl.read_parquet(artifact / name, glob=False) for name in (TABLE, REPORTED)
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ScenarioError(
                f"{artifact.path}: {str(error).splitlines()[0]}: remove it and build again"
            ) from error
        if dict(table.schema) != SCHEMA or not len(table):
            raise ScenarioError(
                f"{artifact / TABLE} has other columns, or no rows: remove it and build again"
            )
        return cls(table, reported)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def as_of(self) -> Times:
        """Decision times; seconds since 1970 UTC, rounded up."""
        return self.table["as_of"].to_numpy()

    @cached_property
    def ends_at(self) -> Times:
        """When the longest outcome is known: as_of + one bar + six hours, in the bars that label
        it."""
        return self.table["ends_at"].to_numpy()

    @cached_property
    def parent(self) -> NDArray[np.int64]:
        """Row of the real scenario that a row was made from; a real row's own."""
        return self.table["parent"].to_numpy()

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """Uniqueness, in (0, 1]."""
        return self.table["weight"].to_numpy()

    @cached_property
    def real(self) -> NDArray[np.bool_]:
        """Rows that are not synthetic."""
        return self.table["synthetic"].is_null().to_numpy()

    @cached_property
    def symbols(self) -> NDArray[np.str_]:
        """Symbols, for example BTCUSDT."""
        return self.table["symbol"].to_numpy().astype(np.str_)

    def rows(self, split: str, *, real_only: bool = False) -> NDArray[np.int64]:
        """Row numbers of `train`, `validate` or `purged`. Only training rows are ever synthetic."""
        chosen = (self.table["split"] == split).to_numpy()
        if real_only or split != TRAIN:
            chosen = chosen & self.real
        return np.flatnonzero(chosen)

    def scenarios(self) -> list[Scenario]:
        """Parsed; kept after the first call."""
        return self._scenarios

    def controls(self) -> list[AgentAction | None]:
        """What the agent did in each; None when it never said."""
        return [
            None if text is None else AgentAction.from_json(json.loads(text))
            for text in self.table["control"]
        ]

    def features(self) -> NDArray[np.float64]:
        """(N, len(FEATURE_NAMES)) by `app.domain.features`; NaN where not known."""
        return self._features

    @cached_property
    def _scenarios(self) -> list[Scenario]:
        return [Scenario.from_json(json.loads(text)) for text in self.table["scenario"]]

    @cached_property
    def _features(self) -> NDArray[np.float64]:
        return np.array([features(scenario) for scenario in self._scenarios])


def build_scenarios(
    folder: Path,
    scenarios: Sequence[RealScenario],
    config: ScenariosConfig,
    excluded: Mapping[str, int],
    label_seconds: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the table of real scenarios and their variants, and return facts.

    `scenarios` may come in any order; one that appears twice is taken once. `excluded` counts by
    reason what was left out before. `label_seconds` is the length of the longest bars that will
    label them. Splits and weights are those among all of them, whatever the limit keeps, so that a
    scenario lies on the same side of the split in every table of its period.

    Raises
    ------
    ScenarioError : nothing to train on, or nothing to validate on.
    """
    real = _in_order(scenarios)
    as_of = np.array([row.scenario.second for row in real], dtype=np.int64)
    reaches = [reach_of(row.scenario, label_seconds) for row in real]
    ends_at = as_of + np.array(reaches, dtype=np.int64)
    split = splits(as_of, ends_at, config)
    symbols = np.array([row.scenario.candidate.symbol for row in real], dtype=np.str_)
    weights = uniqueness(symbols, as_of, ends_at)
    chosen = evenly(len(real), config.limit)
    left_out = Counter(excluded)
    left_out.update(duplicate=len(scenarios) - len(real), beyond_limit=len(real) - len(chosen))
    real = [real[place] for place in chosen]
    ends_at, split, weights = ends_at[chosen], split[chosen], weights[chosen]
    rows = [_row(row, number, None) for number, row in enumerate(real)]
    rows += _variants(real, split, config, progress)
    parents = np.array([row["parent"] for row in rows], dtype=np.int64)
    weights = weights / np.bincount(parents)  # a row and its variants share the weight
    table = pl.DataFrame(rows, schema_overrides=SCHEMA).with_columns(
        # A variant that was shifted within its bar enters with the bar after it: the parent's reach
        # has that bar.
        ends_at=pl.Series(ends_at[parents]),
        weight=pl.Series(weights[parents]),
        split=pl.Series(split[parents].tolist(), dtype=pl.String()),
    )
    table.select(list(SCHEMA)).write_parquet(folder / TABLE)
    reported = [(n, _text(outcome)) for n, row in enumerate(real) for outcome in row.reported]
    pl.DataFrame(reported, schema=REPORTED_SCHEMA, orient="row").write_parquet(folder / REPORTED)
    return _facts(table, left_out)


def _in_order(scenarios: Sequence[RealScenario]) -> list[RealScenario]:
    """By time, symbol and content; of a scenario that appears twice, the first."""
    unique = {row.scenario.hash(): row for row in reversed(scenarios)}

    def place(key: str) -> tuple[int, str, str]:
        scenario = unique[key].scenario
        return scenario.second, scenario.candidate.symbol, key

    return [unique[key] for key in sorted(unique, key=place)]


def _variants(
    real: Sequence[RealScenario],
    split: NDArray[np.str_],
    config: ScenariosConfig,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows of the marked perturbations of every training scenario, and of those that are shown
    with another text or on other terms."""
    if not (config.perturbations or config.texts or config.terms):
        return []
    rows, source = [], np.random.default_rng(config.seed)
    texts = np.random.default_rng([config.seed, 1])  # of its own: perturbations stay as they are
    for number in np.flatnonzero(split == TRAIN).tolist():
        parent = real[number]
        changed = variants(parent.scenario, config.perturbations, source)
        if texts.random() < config.texts:
            changed.append(other_text(parent.scenario, texts))
        if has_other_terms(parent.scenario, config.terms, config.seed):
            changed.append((Kind.TERMS, other_terms(parent.scenario, config.seed)))
        for kind, scenario in changed:
            control = parent.redecide(scenario) if parent.redecide else parent.control
            rows.append(_row(parent._replace(scenario=scenario, control=control), number, kind))
        progress(number + 1, len(real))
    return rows


def label_reach(bar_seconds: int, exits: Exits = TRAIL) -> int:
    """Seconds from a decision to the end of its longest outcome: the wait for the next bar, and
    bars for as long as its exits let a trade last."""
    longest = exits.seconds if isinstance(exits, Followed) else 0
    return bar_seconds * (1 + -(-longest // bar_seconds))


def reach_of(scenario: Scenario, label_seconds: int) -> int:
    """That of a scenario. `label_seconds` : length of the longest bars that label it."""
    longest = max(label_seconds, math.ceil(scenario.market.bar_seconds or 0))
    return label_reach(longest, scenario.exits)


def evenly(count: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of `count` places, spread evenly from the first to the last."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, limit).round().astype(np.int64))


def uniqueness(symbols: NDArray[np.str_], as_of: Times, ends_at: Times) -> NDArray[np.float64]:
    """Average uniqueness of each label among those of its symbol, exactly, in continuous time.
    Shape (N,), (0, 1]."""
    weights = np.empty(len(as_of))
    for symbol in np.unique(symbols):
        mine = np.flatnonzero(symbols == symbol)
        begins, ends = as_of[mine], ends_at[mine]
        edges = np.unique(np.concatenate([begins, ends]))
        changes = np.zeros(len(edges))
        first, last = np.searchsorted(edges, begins), np.searchsorted(edges, ends)
        np.add.at(changes, first, 1)
        np.add.at(changes, last, -1)
        concurrent = np.maximum(np.cumsum(changes)[:-1], 1)
        area = np.concatenate([[0.0], np.cumsum(np.diff(edges) / concurrent)])
        weights[mine] = (area[last] - area[first]) / (ends - begins)
    return weights


def splits(as_of: Times, ends_at: Times, config: ScenariosConfig) -> NDArray[np.str_]:
    """`train`, `validate` or `purged` for real rows in order of time; all `held_out` in the
    held-out period.

    Validation begins with `validate_from`, or with the last fifth of rows. A training row's label
    ends `embargo_s` or more before that: those that end later are purged.

    Raises
    ------
    ScenarioError : no rows, none to train on, or none to validate on.
    """
    if not len(as_of):
        raise ScenarioError(
            "no scenarios: widen since and until, name more symbols, or bring more bars"
        )
    if isinstance(config, HeldOutConfig):
        return np.full(len(as_of), HELD_OUT)
    if config.validate_from is not None:
        cut = instant(config.validate_from)
    else:
        cut = int(as_of[min(round(len(as_of) * (1 - VALIDATE_SHARE)), len(as_of) - 1)])
    split = np.full(len(as_of), VALIDATE)
    early = np.flatnonzero(as_of < cut)
    late = np.flatnonzero(as_of >= cut)
    split[early] = TRAIN
    # The embargo lies between the end of a label and the first validation row: lengthen the earlier
    # window.
    split[early[overlapping(early, late, as_of, ends_at + round(embargo_s(config)))]] = PURGED
    for name, key in ((TRAIN, "move validate_from on"), (VALIDATE, "move validate_from back")):
        if not (split == name).any():
            raise ScenarioError(
                f"none of {len(as_of)} scenarios is left to {name}: {key} or bring more bars "
                f"(embargo {config.embargo_hours:g} h)"
            )
    return split


def _text(record: Scenario | AgentAction | Outcome) -> str:
    return canonical_json(record.as_json()).decode()


def _row(row: RealScenario, parent: int, kind: Kind | None) -> dict[str, Any]:
    return {
        "id": row.scenario.hash(),
        "symbol": row.scenario.candidate.symbol,
        "as_of": row.scenario.second,
        "parent": parent,
        "synthetic": None if kind is None else kind.value,
        "source": HISTORY if row.decision_id is None else SHADOW_LOG,
        "decision_id": row.decision_id,
        "scenario": _text(row.scenario),
        "control": None if row.control is None else _text(row.control),
    }


def _is_default(candidate: dict[str, Any], name: str) -> bool:
    """Exactly 50 without an age: the agent's default, or a reading; nobody can tell."""
    return candidate[name] == 50 and candidate[f"{name}_age_s"] is None


def _facts(table: pl.DataFrame, left_out: Counter[str]) -> dict[str, Any]:
    real = table.filter(pl.col("synthetic").is_null())
    by_year = (
        real.group_by("symbol", pl.from_epoch("as_of").dt.year().alias("year"))
        .len()
        .sort("symbol", "year")
    )
    per_year: dict[str, dict[str, int]] = {}
    for symbol, year, count in by_year.iter_rows():
        per_year.setdefault(symbol, {})[str(year)] = count
    kinds = table["synthetic"].drop_nulls().value_counts().sort("synthetic")
    controls = [json.loads(text)["decision"] for text in real["control"].drop_nulls()]
    parsed = [json.loads(text)["candidate"] for text in real["scenario"]]
    return {
        "scenarios": len(table),
        "real": len(real),
        "splits": {
            name: int((real["split"] == name).sum()) for name in (TRAIN, VALIDATE, PURGED, HELD_OUT)
        },
        "synthetic": dict(kinds.iter_rows()),
        "per_symbol_year": per_year,
        "from": int(real["as_of"].min()),  # type: ignore[arg-type]
        "to": int(real["as_of"].max()),  # type: ignore[arg-type]
        "mean_uniqueness": round(float(table["weight"].sum()) / len(real), 4),
        "controls": len(controls),
        # An agent that never approves compares with "always reject": say so before anybody reads an
        # agreement rate.
        "control_approvals": sum(controls),
        "possible_defaults": {
            name: sum(_is_default(candidate, name) for candidate in parsed) for name in DEFAULTS
        },
        "excluded": {reason: count for reason, count in sorted(left_out.items()) if count},
    }
