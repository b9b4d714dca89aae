"""Simple rivals as versions: a threshold, a logistic regression and boosted trees, in JSON of our
own. They read a scenario's numbers in microseconds, in this process, and stand on the same record
as the language model that has to beat them.

A rival knows a chance that the agent's plan makes money, and trades above a cut. Its reading is
that chance: on rejecting, and on the action that comes nearest to the plan. The cut is the bias of
its manifest's calibration, so that the decision rule approves exactly above it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Annotated, Literal, Never, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from app.domain.errors import AbstainReason, ModelFileError, PolicyAbstained
from app.domain.features import FEATURE_NAMES, features
from app.domain.fields import Record, describe
from app.domain.model.actions import ACTIONS, REJECT, Action
from app.domain.model.inquiry import full_size
from app.domain.model.manifest import Calibration, ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario
from app.policy.versions.files import read_text

RIVAL_NAME = "rival.json"
CERTAIN = 0.99
"""What a threshold, which knows no chances, says of what it trades."""
MOST_NODES = 4096
_AT_ONCE = 64
Floats = tuple[float, ...]
Indexes = tuple[Annotated[int, Field(ge=0)], ...]


class Threshold(Record):
    """Trades where one feature is at least `cut`; not where it is not known."""

    kind: Literal["threshold"] = "threshold"
    feature: str
    cut: float

    @model_validator(mode="after")
    def known_feature(self) -> Self:
        """The feature is one of a scenario's."""
        _columns((self.feature,))
        return self

    def chance(self, values: Floats) -> float:
        """Near 1 or near 0."""
        trades = values[FEATURE_NAMES.index(self.feature)] >= self.cut
        return CERTAIN if trades else 1 - CERTAIN

    def calibration(self) -> Calibration:
        """Its cut is within."""
        return Calibration()


class Learned(Record):
    """What learned models share: which features they read, what stands for an unknown one, and
    which are followed by a flag that they were unknown."""

    features: tuple[str, ...] = Field(min_length=1)
    medians: Floats
    flagged: Indexes = Field(description="of the features; each adds a column, 1 where unknown")
    cut: float = Field(gt=0, lt=1, description="it trades from this chance on")

    @model_validator(mode="after")
    def shapes_fit(self) -> Self:
        """As many medians as features; every feature and flag exists."""
        _columns(self.features)
        if len(self.medians) != len(self.features) or not _within(self.flagged, self.features):
            raise ValueError("medians or flags do not fit the features")
        return self

    @property
    def width(self) -> int:
        """Columns that the model sees."""
        return len(self.features) + len(self.flagged)

    def columns(self, values: Floats) -> list[float]:
        """What the model sees of a scenario's features."""
        told = [values[FEATURE_NAMES.index(name)] for name in self.features]
        known = [
            median if math.isnan(value) else value
            for value, median in zip(told, self.medians, strict=True)
        ]
        return known + [float(math.isnan(told[index])) for index in self.flagged]

    def calibration(self) -> Calibration:
        """A bias by which approving scores more than rejecting exactly above the cut:
        log p - log cut > log(1 - p) - log(1 - cut). A hair below it, since the rule rejects ties
        and a rival trades at its cut."""
        cut = self.cut * (1 - 1e-9)
        return Calibration(
            bias=tuple(math.log(1 - cut if action is REJECT else cut) for action in ACTIONS)
        )


class Logistic(Learned):
    """sigmoid(weights . (columns - means) / scales + intercept)."""

    kind: Literal["logistic"] = "logistic"
    means: Floats
    scales: Floats
    weights: Floats
    intercept: float

    @model_validator(mode="after")
    def one_of_each(self) -> Self:
        """One mean, scale and weight for a column; no scale is 0."""
        lengths = {len(self.means), len(self.scales), len(self.weights)}
        if lengths != {self.width} or 0 in self.scales:
            raise ValueError(f"means, scales and weights must be {self.width}, no scale 0")
        return self

    def chance(self, values: Floats) -> float:
        """That the plan makes money."""
        parts = zip(self.columns(values), self.means, self.scales, self.weights, strict=True)
        return _sigmoid(
            math.fsum(weight * (x - mean) / scale for x, mean, scale, weight in parts)
            + self.intercept
        )


class Tree(Record):
    """Nodes in parallel lists: at a node, left where its column is at most its threshold. `left`
    and `right` lie behind the node, so that every path ends; a leaf's are its own index."""

    column: Indexes = Field(min_length=1, max_length=MOST_NODES)
    threshold: Floats
    left: Indexes
    right: Indexes
    value: Floats

    @model_validator(mode="after")
    def every_path_ends(self) -> Self:
        """Lists of one length; children lie behind their parents."""
        size = len(self.column)
        if {len(self.threshold), len(self.left), len(self.right), len(self.value)} != {size}:
            raise ValueError("the lists of a tree differ in length")
        for at, children in enumerate(zip(self.left, self.right, strict=True)):
            leaf = children == (at, at)
            if not leaf and not all(at < child < size for child in children):
                raise ValueError(f"node {at} of a tree leads back or nowhere")
        return self

    def leaf(self, columns: list[float]) -> float:
        """The value that a scenario ends at."""
        at = 0
        while self.left[at] != at:
            left = columns[self.column[at]] <= self.threshold[at]
            at = self.left[at] if left else self.right[at]
        return self.value[at]


class Boosting(Learned):
    """sigmoid(baseline + the leaves of all trees), over bins: of a column, how many of its edges
    it reaches."""

    kind: Literal["boosting"] = "boosting"
    edges: tuple[Floats, ...]
    baseline: float
    trees: tuple[Tree, ...] = Field(max_length=1000)

    @model_validator(mode="after")
    def edges_ascend_and_trees_see_columns(self) -> Self:
        """Edges of every column, ascending; trees look at columns that there are."""
        if len(self.edges) != self.width or any(list(e) != sorted(e) for e in self.edges):
            raise ValueError(f"edges must be {self.width} lists that ascend")
        if not all(_within(tree.column, self.edges) for tree in self.trees):
            raise ValueError("a tree looks at a column that is not there")
        return self

    def chance(self, values: Floats) -> float:
        """That the plan makes money."""
        pairs = zip(self.columns(values), self.edges, strict=True)
        bins = [float(bisect_right(edges, value)) for value, edges in pairs]
        return _sigmoid(self.baseline + math.fsum(tree.leaf(bins) for tree in self.trees))


Rival = Threshold | Logistic | Boosting
_RIVAL: TypeAdapter[Rival] = TypeAdapter(Annotated[Rival, Field(discriminator="kind")])


def read_rival(path: Path) -> Rival:
    """The rival in a file. Raises `ModelFileError`, which names what is wrong with it."""
    try:
        return _RIVAL.validate_json(read_text(path))
    except ValidationError as error:
        wrong = describe(error.errors()[:5])
        raise ModelFileError(f"{path} is no rival: {wrong[:500]}") from error


class RivalPolicy:
    """A `Policy` that reads the scenario and no prompt."""

    def __init__(self, manifest: ModelManifest, rival: Rival) -> None:
        self._manifest, self._rival = manifest, rival

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """Nobody waits for it."""
        return _AT_ONCE

    def read(self, scenario: Scenario) -> Reading:
        """Its chance, on rejecting and on the action nearest to the plan."""
        chance = self._rival.chance(features(scenario))
        return Reading.told({REJECT.label: 1 - chance, full_size(scenario).label: chance})

    @property
    def health(self) -> str:
        """How it reads."""
        return "from the scenario"

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Never:
        """A prompt tells it nothing: abstain with BACKEND_PROTOCOL."""
        raise PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, "a rival reads scenarios, no prompts")

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """No rationale."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""


def _columns(names: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(FEATURE_NAMES))
    if unknown:
        raise ValueError(f"no scenario has the features {', '.join(unknown)[:200]}")


def _within(indexes: Indexes, of: tuple[object, ...]) -> bool:
    return all(index < len(of) for index in indexes)


def _sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without an overflow."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    weight = math.exp(score)
    return weight / (1 + weight)
