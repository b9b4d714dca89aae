"""The contest's simpler rivals as versions that the service serves beside the policy: fitted on the
training scenarios that it learned from, written as JSON of our own.

What scikit-learn fitted is told in numbers, which `app.policy.rivals` reads; nothing is pickled. A
test holds the two against each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from app.domain.features import FEATURE_NAMES
from app.domain.model.manifest import ModelManifest
from app.policy.rivals import RIVAL_NAME, Boosting, Logistic, Rival, Threshold, Tree, read_rival
from training.judging.contest.arms import (
    HEURISTICS,
    Fitted,
    Past,
    fitted,
    threshold,
    threshold_cut,
)
from training.judging.contest.contest import Trained
from training.outcomes.labels import Labels
from training.publish.version import PublishError, Release, lineage
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

LICENCE = "Apache-2.0"


def rivals_of(
    policy: Artifact, name: str, embargo_s: float, created_at: datetime, folder: Path
) -> Iterator[Release]:
    """Every rival of the contest, fitted on what the policy learned from, ready to be published;
    its file in a folder of its own under `folder`.

    Raises
    ------
    ArtifactError : scenarios or labels of the policy are not there any more.
    PublishError : every plan had one fate, so that there was nothing to learn.
    """
    inputs = lineage(policy)
    scenarios = ScenarioSet.open(inputs["scenarios"])
    past = Trained(scenarios, Labels.open(inputs["labels"]), embargo_s).past()
    for algorithm in HEURISTICS:
        rival = rival_of(algorithm, past)
        short = algorithm.replace(" ", "-")
        files = folder / short
        files.mkdir()
        (files / RIVAL_NAME).write_text(json.dumps(rival.as_json(), allow_nan=False) + "\n")
        read_rival(files / RIVAL_NAME)  # What cannot be served is not published.
        facts = {
            "algorithm": algorithm,
            "scenarios": {"training": len(past.rewards), "validation": 0},
            "data": {stage: inputs[stage].hash for stage in ("scenarios", "labels")},
            "cut": rival.cut,
        }
        kind = ModelManifest(
            model_version=short,
            base_model=algorithm,
            licence=LICENCE,
            created_at=created_at,
            files={},
        )
        yield Release(files, f"{name}-{short}", kind, rival.calibration(), facts)


def rival_of(algorithm: str, past: Past) -> Rival:
    """One of `HEURISTICS`, fitted. Raises `PublishError`."""
    make = HEURISTICS[algorithm]
    [argument] = make.args
    if make.func is threshold:
        cut = threshold_cut(argument, past)
        if not np.isfinite(cut):
            raise PublishError(f"{algorithm}: no scenario has {argument}, so there is no cut")
        return Threshold(feature=argument, cut=cut)
    learned = fitted(argument, past)
    if learned.pipeline is None:
        raise PublishError(f"{algorithm}: every plan had one fate, so there is nothing to learn")
    steps = dict(learned.pipeline.steps)
    if "logisticregression" in steps:
        return _logistic(learned, steps)
    return _boosting(learned, steps)


def _shared(learned: Fitted, steps: dict[str, Any]) -> dict[str, Any]:
    """What both learned kinds have: the imputer's medians, and the flags that it adds."""
    imputer = steps["simpleimputer"]
    return {
        "features": FEATURE_NAMES,
        "medians": tuple(map(float, imputer.statistics_)),
        "flagged": tuple(map(int, imputer.indicator_.features_)),
        "cut": learned.cut,
    }


def _logistic(learned: Fitted, steps: dict[str, Any]) -> Logistic:
    scaler, model = steps["standardscaler"], steps["logisticregression"]
    return Logistic(
        **_shared(learned, steps),
        means=tuple(map(float, scaler.mean_)),
        scales=tuple(map(float, scaler.scale_)),
        weights=tuple(map(float, model.coef_[0])),
        intercept=float(model.intercept_[0]),
    )


def _boosting(learned: Fitted, steps: dict[str, Any]) -> Boosting:
    """Bins by the edges within; trees node by node, as scikit-learn keeps them."""
    bins, model = steps["kbinsdiscretizer"], steps["histgradientboostingclassifier"]
    return Boosting(
        **_shared(learned, steps),
        edges=tuple(tuple(map(float, edges[1:-1])) for edges in bins.bin_edges_),
        baseline=float(model._baseline_prediction.ravel()[0]),
        trees=tuple(_tree(predictor.nodes) for [predictor] in model._predictors),
    )


def _tree(nodes: Any) -> Tree:
    """A leaf's children are itself."""
    leaves = [bool(node["is_leaf"]) for node in nodes]

    def told(name: str, leaf: Any) -> tuple[Any, ...]:
        return tuple(leaf(at) if leaves[at] else node[name].item() for at, node in enumerate(nodes))

    return Tree(
        column=told("feature_idx", lambda at: 0),
        threshold=told("num_threshold", lambda at: 0.0),
        left=told("left", lambda at: at),
        right=told("right", lambda at: at),
        value=tuple(float(node["value"]) for node in nodes),
    )
