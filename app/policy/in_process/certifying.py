"""Making a certificate: many prompts of a version, each read both ways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from statistics import fmean
from typing import NamedTuple

import torch

from app.domain.errors import ModelFileError
from app.domain.model.manifest import Calibration, ModelManifest
from app.domain.model.prompt import render
from app.domain.record.decision import Reading, cautious, scores_of
from app.domain.scenario import Scenario
from app.policy.in_process.cascade import difference
from app.policy.in_process.certificate import SLACK, Certificate, kind_here
from app.policy.in_process.policy import TransformersPolicy


class Pair(NamedTuple):
    """The two readings of one scenario."""

    rough: Reading
    exact: Reading

    def is_equal(self, calibration: Calibration) -> bool:
        """Whether both propose the same action."""
        return cautious(self.rough, calibration).label == cautious(self.exact, calibration).label

    def is_ahead(self, calibration: Calibration, within: float) -> bool:
        """Whether the rough reading's action is ahead by more than two labels may be off."""
        sides = (scores_of(side, calibration) for side in (self.rough, self.rough.bare))
        gaps = (sorted(scores)[-1] - sorted(scores)[-2] for scores in sides)
        return min(gaps) > 2 * within / calibration.temperature


def certify(
    policy: TransformersPolicy,
    scenarios: Iterable[Scenario],
    at: datetime,
) -> Certificate:
    """Read every scenario roughly and exactly. Blocks for minutes.

    Parameters
    ----------
    at : when; recorded.

    Raises
    ------
    ModelFileError : this machine, or this version's base model, reads exactly alone.
    InvalidRecord : too few scenarios, or rough readings too far off.
    """
    require_rough(policy)
    return certificate_of(policy.manifest, [both(policy, scenario) for scenario in scenarios], at)


def require_rough(policy: TransformersPolicy) -> None:
    """Raise `ModelFileError` where nothing is read roughly."""
    if not policy.batcher.can_read_roughly():
        raise ModelFileError(
            "nothing here multiplies bfloat16 faster than float32 (AVX512-BF16 or AMX does), or not"
            " in this model: it is read exactly, and needs no certificate"
        )


def both(policy: TransformersPolicy, scenario: Scenario) -> Pair:
    """Roughly first: an exact trunk that is kept would serve both."""
    prompt = render(scenario)
    return Pair(
        *(policy.batcher.read_now(policy.ask(prompt, scenario, rough)) for rough in (True, False))
    )


def certificate_of(manifest: ModelManifest, pairs: Sequence[Pair], at: datetime) -> Certificate:
    """What pairs of readings that were made here vouch for. Raises `InvalidRecord`."""
    calibration = manifest.calibration
    off = [difference(pair.rough, pair.exact) for pair in pairs] or [0.0]
    within = SLACK * max(off)
    return Certificate.from_json(
        {
            "model_version": manifest.model_version,
            "manifest_hash": manifest.hash(),
            "kind": kind_here(),
            "torch": torch.__version__,
            "created_at": at,
            "prompts": len(pairs),
            "mean": fmean(off),
            "largest": max(off),
            "within": within,
            "actions_equal": _share(pair.is_equal(calibration) for pair in pairs),
            "read_again": 1 - _share(pair.is_ahead(calibration, within) for pair in pairs),
        }
    )


def _share(those: Iterable[bool]) -> float:
    counted = list(those)
    return sum(counted) / max(len(counted), 1)
